"""What tries a relay out from outside: the token for its topics, `canary/**`, and what a refusal says."""

import argparse

import httpx
import msgspec

from relay.errors import SettingsError
from relay.settings import read_settings
from relay.terminal import make_token


def canary_token(sub: str, ttl_s: int) -> str:
    """Made with the relay's own secret, where that is known here."""
    settings = read_settings(needs_key=False)
    if not settings.jwt_secret:
        raise SettingsError(["give --token, or set RELAY_JWT_SECRET: this needs a token that may read and publish canary/**"])
    grants = {"subscribe": ["canary/**"], "publish": ["canary/**"], "admin": []}
    return make_token(argparse.Namespace(sub=sub, ttl=ttl_s, inactive=False, **grants), settings)


class Refusal(msgspec.Struct, frozen=True):
    """Of a problem's details, what says why."""

    code: str = ""
    detail: str = ""


def refusal_of(answer: httpx.Response) -> Refusal:
    """Empty where the answer is no refusal, or none of a relay's. Its body has been read."""
    try:
        return Refusal() if answer.is_success else msgspec.json.decode(answer.content, type=Refusal)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Refusal()

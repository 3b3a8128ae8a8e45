"""What those share that try a relay out from outside: the token for their topics, `canary/**`, what a refusal says, how times are told."""

import argparse
from collections.abc import Iterable

import httpx
import msgspec

from relay.errors import SettingsError
from relay.settings import read_settings
from relay.terminal import make_token

SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def canary_token(sub: str, ttl_s: int) -> str:
    """Made with the relay's own secret, where that is known here."""
    settings = read_settings(needs_key=False)
    if not settings.jwt_secret:
        raise SettingsError(["give --token, or set RELAY_JWT_SECRET: this needs a token that may read and publish canary/**"])
    grants = {"subscribe": ["canary/**"], "publish": ["canary/**"], "admin": []}
    return make_token(argparse.Namespace(sub=sub, ttl=ttl_s, inactive=False, **grants), settings)


def quantiles(values: Iterable[float]) -> dict[str, float]:
    """Of one value or more."""
    ordered = sorted(values)
    return {name: ordered[min(len(ordered) - 1, int(len(ordered) * share))] for name, share in SHARES.items()}


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

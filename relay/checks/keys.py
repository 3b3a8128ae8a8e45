"""The keys: whether those that are set here are strong, and whether an issuer's can be had."""

from collections import Counter

import httpx

from relay.checks import faults
from relay.fetch import FetchError
from relay.finding import Finding, good
from relay.jwks import fetch_keys, open_client
from relay.keys import fingerprint, is_guessable
from relay.settings import Settings


async def look_at_keys(settings: Settings) -> list[Finding]:
    return [*await look_at_token_keys(settings), *look_at_seal_keys(settings)]


async def look_at_token_keys(settings: Settings) -> list[Finding]:
    if settings.jwt_jwks_url:
        return [await look_at_issuer(settings.jwt_jwks_url)]
    if settings.jwt_public_key_file:
        return [good("token key", f"RELAY_JWT_PUBLIC_KEY_FILE holds one for {settings.jwt_public_key_file[0].algorithm}")]
    secrets = secrets_of(settings)
    if any(map(is_guessable, secrets)):
        return [faults.GUESSABLE_SECRET.found()]
    return [good("token key", told("RELAY_JWT_SECRET", secrets))]


async def look_at_issuer(url: str) -> Finding:
    async with await open_client() as client:
        try:
            keys = await fetch_keys(client, httpx.URL(url))
        except FetchError as error:
            return faults.NO_KEY_SET.found(reason=error)
        except ValueError as error:
            return faults.NO_KEY_IN_SET.found(reason=error)
    algorithms = Counter(key.algorithm for same in keys.values() for key in same)
    counted = ", ".join(f"{count} for {algorithm}" for algorithm, count in sorted(algorithms.items()))
    return good("JWKS", f"keys that tokens may be signed with: {counted}")


def look_at_seal_keys(settings: Settings) -> list[Finding]:
    """Weak ones are mistakes in the settings: the relay doesn't start with them."""
    masters = settings.sse_encryption_key
    if not masters:
        return [good("seal key", "SSE_ENCRYPTION_KEY is unset: nothing is sealed")]
    findings = []
    if set(masters) & set(secrets_of(settings)):
        findings.append(faults.ONE_KEY_FOR_BOTH.found())
    if settings.seal_keys == "shared" and settings.require_sealed.patterns and settings.allowed_origins:
        findings.append(faults.SEALED_FOR_NOBODY.found(topics=",".join(settings.require_sealed.texts())))
    return findings or [good("seal key", told("SSE_ENCRYPTION_KEY", masters))]


def secrets_of(settings: Settings) -> tuple[str, ...]:
    return tuple(key.key.decode() for key in settings.jwt_secret)


def told(name: str, keys: tuple[str, ...]) -> str:
    """To be compared with other processes' (`Keyring.fingerprint`)."""
    previous = f"; a previous one, {fingerprint(keys[1])}, counts too" if len(keys) > 1 else ""
    return f"{name} has the fingerprint {fingerprint(keys[0])}{previous}"

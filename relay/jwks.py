"""The issuer's keys, from where it publishes them (RFC 7517): fetched by need, kept while the issuer is away.

They are fetched when a token needs them, once for all who wait; anew before they are stale, while they still serve; and for a key
that they don't hold, at most once in 30 seconds, or a flood of made-up tokens would be one for the issuer. In that time an unknown
key can't be decided on: it may just have been published. A key that wasn't there when it was asked for is refused.

Only keys with a public half are taken, each for one algorithm: a symmetric one in public would let anybody sign.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable
from typing import Any

import httpx
import jwt
import msgspec

from relay.auth import RSA_BITS_MIN, Key
from relay.errors import Unauthorized, Unavailable
from relay.fetch import FetchError, fetch, tls

FETCH_S = 5.0
BYTES_MAX = 256 << 10
KEYS_MAX = 100
REFRESH_S = 150.0  # from then on they are fetched anew, while the ones known serve
STALE_S = 300.0  # from then on a token waits for that
RETRY_S = 5.0  # after a fetch that failed
UNKNOWN_S = 30.0
REFUSED_MAX = 1000

RSA_ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
CURVES = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA"}

Keys = dict[str, tuple[Key, ...]]  # by `kid`; '' for those without

logger = logging.getLogger("relay")


class KeySet:
    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.url = httpx.URL(url)
        self.version = 0  # another one: tokens that held before may hold no longer
        self._clock = clock
        self._client: httpx.AsyncClient | None = None
        self._keys: Keys = {}
        self._fetched_s = self._failed_s = self._asked_s = -math.inf  # the last success, failure, question for an unknown key
        self._refused: set[str] = set()  # keys that weren't there at the last fetch
        self._fetching: asyncio.Task[bool] | None = None
        self._failure = ""

    def refresh(self) -> None:
        """Starts a fetch if it is time. For each token, also where it was checked before: a key may be withdrawn."""
        now = self._clock()
        if self._keys and now - self._fetched_s > REFRESH_S and now - self._failed_s > RETRY_S:
            self._start()

    async def find(self, kid: str | None) -> tuple[Key, ...]:
        """The keys which a token that names this one may be signed with. Raises Unauthorized, Unavailable."""
        now = self._clock()
        if now - self._fetched_s > STALE_S and now - self._failed_s > RETRY_S:
            await asyncio.shield(self._start())
        if not self._keys:
            raise self._undecided(RETRY_S)
        found = self._known(kid)
        if found or kid is None or kid in self._refused:
            return found or refuse(kid)
        wait_s = self._asked_s + UNKNOWN_S - now
        if wait_s > 0:
            raise self._undecided(wait_s)
        self._asked_s = now
        if self._fetching:
            await asyncio.shield(self._fetching)  # it may have begun before the key was published
        if not self._known(kid) and not await asyncio.shield(self._start()):
            raise self._undecided(RETRY_S)
        found = self._known(kid)
        if not found and len(self._refused) < REFUSED_MAX:
            self._refused.add(kid)
        return found or refuse(kid)

    def _known(self, kid: str | None) -> tuple[Key, ...]:
        if kid is None:  # there is no need to name the only one
            keys = [key for same in self._keys.values() for key in same]
            return tuple(keys) if len(keys) == 1 else ()
        return self._keys.get(kid, ())

    def _undecided(self, wait_s: float) -> Unavailable:
        cause = f"RELAY_JWT_JWKS_URL: {self._failure or 'a key is not known yet'}"
        retry_s = wait_s * random.uniform(1, 1.5)  # not all of a new key's readers in one moment
        return Unavailable("the issuer's keys can't be had now: try again", retry_after_s=retry_s, cause=cause)

    def _start(self) -> asyncio.Task[bool]:
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch())
            self._fetching.add_done_callback(self._done)
        return self._fetching

    def _done(self, _: object) -> None:
        self._fetching = None

    async def _fetch(self) -> bool:
        """Whether it succeeded."""
        try:
            if self._client is None:
                self._client = await open_client()
            keys = await fetch_keys(self._client, self.url)
        except (FetchError, ValueError) as error:
            return self._fail(str(error))
        if self._failure:
            logger.info("the issuer's keys are there again")
        self._fetched_s, self._failure = self._clock(), ""
        self._refused.clear()
        if named(keys) != named(self._keys):
            self.version += 1
        self._keys = keys
        return True

    def _fail(self, failure: str) -> bool:
        if not self._failure:
            logger.warning("the issuer's keys can't be fetched, those that are known stay: %s", failure)
        self._failed_s, self._failure = self._clock(), failure
        return False

    async def close(self) -> None:
        if self._fetching:
            self._fetching.cancel()
        if self._client:
            await self._client.aclose()


async def open_client() -> httpx.AsyncClient:
    return httpx.AsyncClient(trust_env=False, verify=await asyncio.to_thread(tls))


async def fetch_keys(client: httpx.AsyncClient, url: httpx.URL) -> Keys:
    """What is published there now. Raises FetchError where nothing is had, ValueError where none of it is a key for tokens."""
    try:
        async with asyncio.timeout(FETCH_S):
            body = await fetch(client, url, BYTES_MAX)
    except TimeoutError as error:
        raise FetchError(f"no answer within {FETCH_S:g} s") from error
    return parse_key_set(body)


def refuse(kid: str | None) -> tuple[Key, ...]:
    if kid is None:
        raise Unauthorized("the token doesn't say which key signed it (kid)", code="bad_token")
    raise Unauthorized("the token is signed with a key that its issuer doesn't publish (kid)", code="bad_token")


def parse_key_set(body: bytes) -> Keys:
    """What is no key that a token may be signed with is passed over. Raises ValueError where none is left."""
    try:
        found = msgspec.json.decode(body, type=dict[str, Any]).get("keys")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError("it is no JSON object") from error
    keys: Keys = {}
    for jwk in found[:KEYS_MAX] if isinstance(found, list) else []:
        key = parse_key(jwk) if isinstance(jwk, dict) else None
        if key:
            kid = jwk.get("kid", "")
            keys[kid] = (*keys.get(kid, ()), key)
    if not keys:
        raise ValueError("it holds no RSA, elliptic curve or Ed25519 key for signatures")
    return keys


def parse_key(jwk: dict[str, Any]) -> Key | None:
    algorithm = algorithm_of(jwk)
    if algorithm is None or "d" in jwk or jwk.get("use", "sig") != "sig" or not isinstance(jwk.get("kid", ""), str):
        return None  # a key that was published with its private half is everybody's
    try:
        key = jwt.PyJWK(jwk, algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    return Key(key, algorithm) if getattr(key, "key_size", RSA_BITS_MIN) >= RSA_BITS_MIN or jwk["kty"] != "RSA" else None


def algorithm_of(jwk: dict[str, Any]) -> str | None:
    """The one that the key is for, by its own word or by its kind; None for a key that isn't ours to use."""
    named = jwk.get("alg")
    match jwk.get("kty"), jwk.get("crv"):
        case "RSA", _:
            return "RS256" if named is None else named if named in RSA_ALGORITHMS else None
        case ("EC" | "OKP") as kind, str(curve) if (CURVES.get(curve) == "EdDSA") == (kind == "OKP"):
            algorithm = CURVES.get(curve)
            return algorithm if named in (None, algorithm) else None
        case _:
            return None


def named(keys: Keys) -> set[tuple[str, str, object]]:
    return {
        (kid, key.algorithm, key.key.public_numbers() if hasattr(key.key, "public_numbers") else key.key.public_bytes_raw())
        for kid, same in keys.items()
        for key in same
    }

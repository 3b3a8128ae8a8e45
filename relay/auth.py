"""Who a token is for and what it grants: JSON Web Tokens, checked as RFC 8725 (JWT Best Current Practices) advises.

The algorithm follows from the key that the operator configured, never from the token (RFC 8725, section 3.1), and a token
without `exp` and `sub` is none. Pure: keys come in as values, the time as an argument.

PyJWT and what it brings are imported when the first token comes: they are an eighth of a function's cold start, and public
topics need none of it. `relay.app` imports them at once.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any, TypeGuard

import msgspec

from relay.errors import Unauthorized
from relay.topic import Patterns

TOKEN_BYTES_MAX = 4096
LEEWAY_S = 30
SECRET_BYTES_MIN = 32  # RFC 7518, section 3.2: a key of the hash's size or larger
RSA_BITS_MIN = 2048
NAME_CHARACTERS_MAX = 255  # of `sub` and `jti`
SURROGATE = re.compile("[\ud800-\udfff]")

logger = logging.getLogger("relay")


class Grants(msgspec.Struct, frozen=True):
    subscribe: Patterns = Patterns()
    publish: Patterns = Patterns()
    admin: frozenset[str] = frozenset()


class Subscription(msgspec.Struct, frozen=True):
    """Is it active, and until when (unix seconds)."""

    status: str = ""
    until: float | None = None

    def active(self, now_s: float) -> bool:
        return self.status == "active" and (self.until is None or now_s < self.until)


class Identity(msgspec.Struct, frozen=True):
    """Who asks. Without a token: nobody, who is granted nothing."""

    sub: str = ""
    grants: Grants = Grants()
    subscription: Subscription = Subscription()
    expires_s: int | None = None  # `exp`
    issued_s: float | None = None
    jti: str = ""
    ticket: str = ""  # the hash of the ticket by which it came, if it did


NOBODY = Identity()


class Key(msgspec.Struct, frozen=True):
    """What verifies tokens, and the one algorithm it is for."""

    key: Any
    algorithm: str


class Verifier(msgspec.Struct, frozen=True):
    """Checks tokens. Several keys are for a rotation: the first that fits counts."""

    keys: tuple[Key, ...]
    max_s: int  # `exp` is at most so far ahead
    issuer: str | None = None
    audience: str | None = None
    grants_claim: str = "relay"
    subscription_claim: str = "subscription"

    def verify(self, token: str, now_s: float, keys: tuple[Key, ...] = ()) -> Identity:
        """By other keys than its own, if some are given. Raises Unauthorized, with a reason that tells nothing of the keys."""
        check_size(token)
        claims = self._decode(token, keys or self.keys)
        expires_s, sub = claims["exp"], claims["sub"]
        if not is_name(sub):
            raise Unauthorized(f"sub must be a string of 1 to {NAME_CHARACTERS_MAX} characters", code="bad_token")
        if isinstance(expires_s, bool) or not isinstance(expires_s, int | float):  # PyJWT takes the text of a number too
            raise Unauthorized("exp must be a number", code="bad_token")
        if expires_s > now_s + self.max_s:
            raise Unauthorized(f"exp is more than {self.max_s} s ahead: make tokens that end sooner", code="bad_token")
        issued_s, jti = claims.get("iat"), claims.get("jti")
        if isinstance(issued_s, bool) or not isinstance(issued_s, int | float):
            issued_s = None
        # A denial is kept for as long as a token may last, so none may last longer than that.
        elif expires_s > issued_s + self.max_s:
            raise Unauthorized(f"exp is more than {self.max_s} s behind iat: make tokens that end sooner", code="bad_token")
        return Identity(
            sub,
            parse_grants(claim(claims, self.grants_claim)),
            parse_subscription(claim(claims, self.subscription_claim)),
            int(expires_s),
            issued_s,
            jti if is_name(jti) else "",
        )

    def _decode(self, token: str, keys: tuple[Key, ...]) -> dict[str, Any]:
        import jwt

        failure: Exception | None = None
        for key in keys:
            try:
                return jwt.decode(
                    token,
                    key.key,
                    algorithms=[key.algorithm],
                    audience=self.audience,
                    issuer=self.issuer,
                    leeway=LEEWAY_S,
                    options={
                        "require": [
                            "exp",
                            "sub",
                            *(["iss"] if self.issuer else []),
                            *(["aud"] if self.audience else []),
                        ],
                        "verify_aud": self.audience is not None,
                        "enforce_minimum_key_length": True,
                    },
                )
            except jwt.InvalidSignatureError as error:
                failure = failure or error
            except jwt.ExpiredSignatureError as error:
                raise Unauthorized("the token has expired: get a new one", code="token_expired") from error
            except (jwt.PyJWTError, ValueError, OverflowError, RecursionError) as error:
                failure = error
        try:
            raise Unauthorized(f"the token doesn't hold: {reason(failure)}", code="bad_token") from failure
        finally:
            # It refers to this frame, by its traceback, and the frame to it: a cycle, which the collector would find late. A flood of
            # bad tokens took 18 MB so.
            del failure


def check_size(token: str) -> None:
    if len(token) > TOKEN_BYTES_MAX:
        raise Unauthorized(f"the token has more than {TOKEN_BYTES_MAX} bytes", code="bad_token")


def key_id(token: str) -> str | None:
    """Which key a token says that signed it: of a set that the operator has named, else of no consequence."""
    import jwt

    check_size(token)
    try:
        kid: str | None = jwt.get_unverified_header(token).get("kid")
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise Unauthorized("the token doesn't hold: its form is not right", code="bad_token") from error
    return kid


def reason(error: Exception | None) -> str:
    """What a client may know of why."""
    import jwt

    match error:
        case jwt.MissingRequiredClaimError():
            return f"the claim {error.claim} is missing"
        case jwt.InvalidAudienceError() | jwt.InvalidIssuerError():
            return "it is not meant for this relay (aud, iss)"
        case jwt.ImmatureSignatureError():
            return "it is not valid yet (nbf, iat)"
        case _:
            return "its form, algorithm or signature is not right"


def is_name(value: object) -> TypeGuard[str]:
    """Whether a `sub` or a `jti` can be one. JSON may hold half a surrogate pair, which is no character."""
    return isinstance(value, str) and 1 <= len(value) <= NAME_CHARACTERS_MAX and not SURROGATE.search(value)


def parse_secret(text: str) -> tuple[Key, ...]:
    """`current` or `current,previous`. Raises ValueError."""
    secrets = [part.strip().encode() for part in text.split(",")]
    if not 1 <= len(secrets) <= 2 or any(len(secret) < SECRET_BYTES_MIN for secret in secrets):
        raise ValueError(f"needs at least {SECRET_BYTES_MIN} bytes, or two such secrets joined by a comma")
    return tuple(Key(secret, "HS256") for secret in secrets)


def parse_public_key(pem: bytes) -> Key:
    """The key of a PEM file, and the algorithm that it is for. Raises ValueError."""
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = load_pem_public_key(pem)
    match key:
        case RSAPublicKey() if key.key_size >= RSA_BITS_MIN:
            return Key(key, "RS256")
        case EllipticCurvePublicKey() if isinstance(key.curve, SECP256R1):
            return Key(key, "ES256")
        case Ed25519PublicKey():
            return Key(key, "EdDSA")
        case _:
            raise ValueError(f"holds no RSA key of {RSA_BITS_MIN} bits or more, P-256 or Ed25519 public key")


def claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, or by a JSON Pointer (RFC 6901) into the claims."""
    if not name.startswith("/"):
        return claims.get(name)
    value: Any = claims
    for part in name[1:].split("/"):
        part = part.replace("~1", "/").replace("~0", "~")
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def parse_grants(value: Any) -> Grants:
    """What can't be understood grants nothing, and is logged."""
    if not isinstance(value, Mapping):
        if value is not None:
            logger.warning("a token's grants are no object, so grant nothing: %.200r", value)
        return Grants()
    subscribe, bad = Patterns.parse(strings(value, "subscribe"))
    publish, bad_too = Patterns.parse(strings(value, "publish"))
    for pattern in bad + bad_too:
        logger.warning("a token's pattern grants nothing, since it is none: %.200r", pattern)
    return Grants(subscribe, publish, frozenset(strings(value, "admin")))


def strings(grants: Mapping[str, Any], name: str) -> list[str]:
    value = grants.get(name)
    found = [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
    if value is not None and found != value:
        logger.warning("a token's %s is no list of texts, and what is none grants nothing: %.200r", name, value)
    return found


def parse_subscription(value: Any) -> Subscription:
    if not isinstance(value, Mapping):
        return Subscription()
    status, until = value.get("status"), value.get("until")
    known = isinstance(until, int | float) and not isinstance(until, bool)
    if not isinstance(status, str) or (until is not None and not known):
        return Subscription()
    return Subscription(status, until)

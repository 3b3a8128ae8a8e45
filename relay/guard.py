"""Who a request is from, and whether it may: tokens and their carriers, subscriptions, grants, origins.

Knows requests by their ASGI scope alone, so that the relay and the polling function check the same way. What is checked
comes in a fixed order, 401, 402, 403; what can't be understood (400) was found before. What can't be decided now, because who
knows it can't be asked, is `Unavailable` or `LogUnavailable`, never one of those.
"""

import hashlib
import ipaddress
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from relay.auth import LEEWAY_S, NOBODY, Grants, Identity, Verifier, key_id
from relay.denial import Denials
from relay.entitlement import Check, claimed
from relay.errors import Forbidden, NotSubscribed, Unauthorized
from relay.query import one, parse_fields
from relay.settings import Settings
from relay.topic import Patterns

if TYPE_CHECKING:
    from relay.jwks import KeySet

# `__Host-` cookies can only have been set by this host, over TLS (RFC 6265bis, section 4.1.3.2).
COOKIES = ("__Host-relay_token", "relay_token")
VERIFIED_MAX = 10_000  # tokens that are known to hold
EXPOSED = b"ETag, Retry-After"
PREFLIGHT = [
    (b"access-control-allow-methods", b"GET, POST"),
    (b"access-control-allow-headers", b"Authorization, Content-Type, Last-Event-ID, If-None-Match, Idempotency-Key"),
    (b"access-control-max-age", b"600"),
]

logger = logging.getLogger("relay")

Scope = Mapping[str, Any]


def header(scope: Scope, name: bytes) -> str:
    """A request header's value; the first, if it came twice; empty if it didn't."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


NO_DENIALS = Denials()


async def nothing_denied(identity: Identity, topics: Sequence[str]) -> Denials:
    return NO_DENIALS


async def no_ticket(ticket: str) -> Identity:
    raise Unauthorized("this is no JWT", code="bad_token")


class Permit(msgspec.Struct, frozen=True):
    """What a reader was let in with, and so what its stream ends for."""

    identity: Identity  # without its grants: streams last for hours, and there are many
    closed: tuple[str, ...]  # its topics that aren't public
    subscribed: bool = False  # whether it needs its subscription
    until: float | None = None  # when that ends

    @property
    def ends_s(self) -> int | None:
        """When its stream must end."""
        ends = [end for end in (self.identity.expires_s and self.identity.expires_s + LEEWAY_S, self.until) if end]
        return math.ceil(min(ends)) if ends else None


class Guard:
    """`denials` finds those that may hold for a token and for topics; `subscription` is None where none is needed; `ticket` finds
    out whose one is."""

    def __init__(
        self,
        verifier: Verifier,
        *,
        denials: Callable[[Identity, Sequence[str]], Awaitable[Denials]] = nothing_denied,
        subscription: Check | None = claimed,
        ticket: Callable[[str], Awaitable[Identity]] = no_ticket,
        key_set: "KeySet | None" = None,
        query_token: str = "jwt",
        public: Patterns = Patterns(),
        origins: Iterable[str] = (),
        trusted_proxies: Iterable[str] = (),
    ) -> None:
        self.verifier = verifier
        self.public = public
        self._denials = denials
        self._ticket = ticket
        self._key_set, self._version = key_set, 0
        self._query_token = query_token
        self._subscription = subscription
        self._origins = frozenset(origins)
        self._trusted = [ipaddress.ip_network(network) for network in trusted_proxies]
        self._refused_origins: set[str] = set()
        self._verified: dict[bytes, Identity] = {}

    # Origins

    def origin_headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """What lets a page of another origin read the answer, if it may."""
        origin = header(scope, b"origin")
        if not origin or not self.allows_origin(scope):
            return [(b"vary", b"Origin")]
        return [
            (b"vary", b"Origin"),
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-allow-credentials", b"true"),
            (b"access-control-expose-headers", EXPOSED),
        ]

    def allows_origin(self, scope: Scope) -> bool:
        """Whether there is none, or it is allowed. `null` never is: any sandboxed page can have it."""
        origin = header(scope, b"origin")
        if not origin:
            return True
        if origin == "null":
            return False
        if self._origins:
            return origin in self._origins
        return origin.partition("://")[2] == header(scope, b"host") != ""

    def check_origin(self, scope: Scope) -> None:
        if self.allows_origin(scope):
            return
        origin = header(scope, b"origin")[:200]
        if origin not in self._refused_origins and len(self._refused_origins) < 100:  # each is logged once
            self._refused_origins.add(origin)
            logger.warning("origin %r refused: add it to RELAY_ALLOWED_ORIGINS if it is yours", origin)
        raise Forbidden("this origin may not use the relay; its operator can allow it", code="origin_refused")

    # Tokens

    async def identify(self, scope: Scope) -> Identity:
        """Who asks, by the first carrier that has a token; nobody if none has. Raises Unauthorized for a bad one."""
        return (await self._identify(scope, ()))[0]

    async def _identify(self, scope: Scope, topics: Sequence[str]) -> tuple[Identity, Denials]:
        """And what is denied, of these topics too."""
        token, in_query = self._find_token(scope)
        if not token:
            return NOBODY, NO_DENIALS
        now = time.time()
        if in_query and "." not in token:
            identity = await self._ticket(token)
            if identity.expires_s is not None and identity.expires_s + LEEWAY_S <= now:
                raise Unauthorized("the ticket's token has expired: get a new one", code="token_expired")
        elif in_query and self._query_token == "ticket":
            raise Unauthorized("this relay takes no JWT in the query, but a ticket: POST /stream/ticket", code="bad_token")
        else:
            identity = await self._verify(token, now)
        denials = await self._denials(identity, topics)
        denials.check_token(identity)
        return identity, denials

    async def _verify(self, token: str, now_s: float) -> Identity:
        """A token that held a moment ago still does until it ends; to check it anew costs as much as an append.

        Remembered by its hash, so that no token lies about in memory.
        """
        if self._key_set:
            self._key_set.refresh()
            if self._version != self._key_set.version:
                self._verified.clear()
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        identity = self._verified.get(digest)
        if identity is None or identity.expires_s is None or identity.expires_s + LEEWAY_S <= now_s:
            keys = await self._key_set.find(key_id(token)) if self._key_set else ()
            identity = self.verifier.verify(token, now_s, keys)
            self._version = self._key_set.version if self._key_set else 0
            if len(self._verified) >= VERIFIED_MAX:
                del self._verified[next(iter(self._verified))]
            self._verified[digest] = identity
        return identity

    def _find_token(self, scope: Scope) -> tuple[str, bool]:
        """The token of the first carrier that has one, and whether that is the query; empty if none has."""
        authorization = header(scope, b"authorization")
        if authorization:
            scheme, _, token = authorization.partition(" ")
            if scheme.lower() != "bearer" or not token.strip():
                raise Unauthorized("the Authorization header must be: Bearer <token>", code="bad_token")
            return token.strip(), False
        if scope["method"] != "GET":
            return "", False
        token = one(parse_fields(scope["query_string"]), "token")
        if token:
            if self._query_token == "off":
                raise Unauthorized("this relay takes no token in the query: send Authorization", code="bad_token")
            return token, True
        return self._cookie(scope), False

    def _cookie(self, scope: Scope) -> str:
        """A cookie comes with every request, so also with those that a foreign page makes: only ours count."""
        origin = header(scope, b"origin")
        ours = self.allows_origin(scope) if origin else header(scope, b"sec-fetch-site") == "same-origin"
        if not ours:
            return ""
        # Not `http.cookies`, which drops all cookies when one, of whatever other application, isn't to its liking. HTTP/2 may
        # bring them as several headers (RFC 9113, section 8.2.3).
        pairs = [part.partition("=") for key, value in scope["headers"] if key == b"cookie" for part in value.decode("latin-1").split(";")]
        cookies = {name.strip(): value.strip() for name, _, value in reversed(pairs)}
        return next((cookies[name] for name in COOKIES if cookies.get(name)), "")

    # Decisions

    async def may_read(self, scope: Scope, topics: Iterable[str]) -> Permit:
        """Raises Unauthorized, NotSubscribed or Forbidden."""
        closed = tuple(topic for topic in topics if not self.public.match(topic))
        identity, denials = await self._identify(scope, closed)
        permit = Permit(msgspec.structs.replace(identity, grants=Grants()), closed)
        if closed:
            if identity is NOBODY:
                raise Unauthorized("no token: send it as Authorization: Bearer <token>", code="no_token")
            if self._subscription:
                subscription = await self._subscription(identity)
                if not subscription.active(time.time()):
                    raise NotSubscribed("the subscription is not active")
                permit = msgspec.structs.replace(permit, subscribed=True, until=subscription.until)
            for topic in closed:
                if not identity.grants.subscribe.match(topic):
                    raise Forbidden(f"the token grants no subscription to {topic}", code="topic_not_granted")
            denials.check_topics(identity, closed)
        self.check_origin(scope)
        return permit

    async def may_act(self, scope: Scope) -> Identity:
        """Who does something that a token must grant: what, is asked for each case. No subscription is needed."""
        identity = await self.identify(scope)
        if identity is NOBODY:
            raise Unauthorized("no token: send it as Authorization: Bearer <token>", code="no_token")
        self.check_origin(scope)
        return identity

    async def may_revoke(self, scope: Scope) -> None:
        if "revoke" not in (await self.may_act(scope)).grants.admin:
            raise Forbidden('the token grants no revoking: it needs "admin": ["revoke"]', code="admin_not_granted")

    async def sees_status(self, scope: Scope) -> bool:
        """Whether the status may name topics and hosts."""
        return "status" in (await self.identify(scope)).grants.admin

    def address(self, scope: Scope) -> str:
        """The client's address: the last one in X-Forwarded-For that no trusted proxy has."""
        client = scope.get("client")
        address = str(client[0]) if client else ""
        forwarded = [part.strip() for part in header(scope, b"x-forwarded-for").split(",") if part.strip()]
        while forwarded and self._is_trusted(address):
            address = forwarded.pop()
        return address[:64]

    def _is_trusted(self, address: str) -> bool:
        try:
            return any(ipaddress.ip_address(address) in network for network in self._trusted)
        except ValueError:
            return False


def key_set_of(settings: Settings) -> "KeySet | None":
    if not settings.jwt_jwks_url:
        return None
    from relay.jwks import KeySet  # brings an HTTP client, which a function's cold start is spared otherwise

    return KeySet(settings.jwt_jwks_url)


def guard_of(
    settings: Settings,
    denials: Callable[[Identity, Sequence[str]], Awaitable[Denials]],
    subscription: Check | None,
    ticket: Callable[[str], Awaitable[Identity]],
    key_set: "KeySet | None",
) -> Guard:
    return Guard(
        settings.verifier(),
        denials=denials,
        subscription=subscription,
        ticket=ticket,
        key_set=key_set,
        query_token=settings.query_token,
        public=settings.public_topics,
        origins=settings.allowed_origins,
        trusted_proxies=settings.trusted_proxies,
    )

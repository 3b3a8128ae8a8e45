"""What Valkey keeps beside the log: denials, subscriptions and tickets.

    {relay:0}:denials         sorted set: the names of denials, each with the second since when it holds
    {relay:0}:ticket:<hash>   string: who a ticket is for and what it opens, as JSON; the ticket itself is kept nowhere
    {relay:0}:tickets:<sub>   string: how many tickets a subject got lately
    relay:subscription:<sub>  hash: status, until (a Unix time, or empty)

A denial lives as long as a token may that it holds for. It is set in one step with the notice of it (`relay.notice`); a changed
subscription is told of right behind its change. That is how open streams hear of them.
"""

import hashlib
import math
import re
import secrets
from collections.abc import Iterable, Sequence

import msgspec

from relay.auth import LEEWAY_S, Grants, Identity, Subscription
from relay.denial import Denial, Denials, names_of_token, names_of_topic
from relay.errors import LogAway, TooMany, Unauthorized
from relay.log import APPEND, Log, NewEvent
from relay.notice import SHARD, TOPIC, Denied, Notice, SubscriptionChanged, Undone
from relay.servers import joined_scripts
from relay.topic import Patterns

DENIALS = f"{{relay:{SHARD}}}:denials"
DENIALS_MAX = 100_000  # every process holds all of them

TICKET = re.compile(r"[A-Za-z0-9_-]{43}")  # 256 random bits; a JWT has dots
TICKET_S = 600  # it dies so long after its last use
TICKETS_MAX = 10_000  # of one subject in that time
TICKETS_AT_ONCE = 500  # in one call

DENY = joined_scripts("deny", APPEND)


class Kept(msgspec.Struct, frozen=True):
    """What is kept of a ticket: what its token said, without what it may publish and administer."""

    sub: str
    jti: str
    expires_s: int
    issued_s: float | None
    subscribe: list[str]
    subscription: Subscription


KEPT = msgspec.json.Decoder(Kept)


class Records:
    """`token_life_s`: how long a token may last."""

    def __init__(self, log: Log, token_life_s: int) -> None:
        self.log, self.token_life_s = log, token_life_s

    # Denials

    async def deny(self, denial: Denial) -> float:
        """Returns the second up to which tokens are denied. Raises TooMany, LogUnavailable."""
        since_s = await self._now_s()
        await self._deny(denial, f"{since_s:.3f}", Denied(denial, since_s), since_s)
        return since_s

    async def undo(self, denial: Denial) -> None:
        await self._deny(denial, "", Undone(denial), await self._now_s())

    async def _deny(self, denial: Denial, since: str, notice: Notice, now_s: float) -> None:
        horizon_s = now_s - self.token_life_s - LEEWAY_S
        more: list[str | int] = [denial.name(), since, f"{horizon_s:.3f}", DENIALS_MAX, (self.token_life_s + LEEWAY_S) * 1000]
        if await self.log.append_with(DENY, SHARD, event_of(notice), [DENIALS], more) == b"full":
            raise TooMany(f"{DENIALS_MAX} denials are kept already: wait until some have ended", code="too_many_denials")

    async def _now_s(self) -> float:
        """By the server's clock, so that all denials have one."""
        async with self.log.servers.of(SHARD) as server:
            seconds, microseconds = await server.call("TIME")
        return int(seconds) + int(microseconds) // 1000 / 1000

    async def all_denials(self) -> Denials:
        async with self.log.servers.of(SHARD) as server:
            found = await server.call("ZRANGE", DENIALS, 0, -1, "WITHSCORES")
        return Denials({name.decode(): float(since) for name, since in zip(found[::2], found[1::2], strict=True)})

    async def denials_for(self, identity: Identity, topics: Sequence[str]) -> Denials:
        """Those of them that may hold for a token and for topics."""
        names = [*names_of_token(identity), *(name for topic in topics for name in names_of_topic(topic, identity.sub))]
        async with self.log.servers.of(SHARD) as server:
            found = await server.call("ZMSCORE", DENIALS, *names)
        return Denials({name: float(since) for name, since in zip(names, found, strict=True) if since is not None})

    def _check_here(self) -> None:
        """While the tail can't reach Valkey, nobody waits to find that out again."""
        if SHARD in self.log.away:
            raise LogAway("it was away a moment ago")

    # Tickets

    async def add_ticket(self, identity: Identity, subscribe: Patterns, now_s: float) -> tuple[str, int]:
        """A ticket, and how many seconds it lasts if it isn't used. Raises TooMany."""
        ticket = secrets.token_urlsafe(32)
        assert identity.expires_s is not None, "tokens end"
        life_s = max(1, min(TICKET_S, int(identity.expires_s - now_s)))
        kept = Kept(identity.sub, identity.jti, identity.expires_s, identity.issued_s, subscribe.texts(), identity.subscription)
        count = f"{{relay:{SHARD}}}:tickets:{identity.sub}"
        async with self.log.servers.of(SHARD) as server:
            given, _ = await server.call_many([("INCR", count), ("EXPIRE", count, TICKET_S, "NX")])
            if given > TICKETS_MAX:
                raise TooMany(f"{TICKETS_MAX} tickets in ten minutes: use them again", code="too_many_tickets", retry_after_s=60)
            await server.call("SET", ticket_key(hash_of(ticket)), msgspec.json.encode(kept), "EX", TICKET_S)
        return ticket, life_s

    async def find_ticket(self, ticket: str) -> Identity:
        """Whose it is; that is a use of it. Raises Unauthorized."""
        hash = hash_of(ticket) if TICKET.fullmatch(ticket) else ""
        stored = await self._use_ticket(hash) if hash else None
        if stored is None:
            raise Unauthorized("there is no such ticket, or no longer: get a new one", code="bad_ticket")
        kept = KEPT.decode(stored)
        grants = Grants(Patterns.parse(kept.subscribe)[0])
        return Identity(kept.sub, grants, kept.subscription, kept.expires_s, kept.issued_s, kept.jti, hash)

    async def _use_ticket(self, hash: str) -> bytes | None:
        self._check_here()
        async with self.log.servers.of(SHARD) as server:
            stored: bytes | None = await server.call("GETEX", ticket_key(hash), "EX", TICKET_S)
        return stored

    async def use_tickets(self, hashes: Iterable[str]) -> None:
        """By open streams."""
        keys = [ticket_key(hash) for hash in hashes]
        for first in range(0, len(keys), TICKETS_AT_ONCE):
            async with self.log.servers.of(SHARD) as server:
                await server.call_many([("EXPIRE", key, TICKET_S) for key in keys[first : first + TICKETS_AT_ONCE]])

    # Subscriptions

    async def subscription(self, sub: str) -> Subscription:
        """What can't be understood is none."""
        self._check_here()
        key = subscription_key(sub)
        async with self.log.servers.of_key(key) as server:
            status, until = await server.call("HMGET", key, "status", "until")
        try:
            until_s = float(until) if until else None
        except ValueError:
            return Subscription()
        if until_s is not None and not math.isfinite(until_s):
            return Subscription()
        return Subscription((status or b"").decode("utf-8", "replace"), until_s)

    async def set_subscription(self, sub: str, status: str, until: float | None) -> None:
        """Seen at once: if this raises LogUnavailable it may be seen only when streams are looked at again."""
        key = subscription_key(sub)
        async with self.log.servers.of_key(key) as server:
            await server.call("HSET", key, "status", status, "until", "" if until is None else f"{until:.15g}")
        await self.log.append_with(APPEND, SHARD, event_of(SubscriptionChanged(sub)))


def event_of(notice: Notice) -> NewEvent:
    return NewEvent(TOPIC, "notice", msgspec.json.encode(notice))


def hash_of(ticket: str) -> str:
    return hashlib.sha256(ticket.encode()).hexdigest()


def ticket_key(hash: str) -> str:
    return f"{{relay:{SHARD}}}:ticket:{hash}"


def subscription_key(sub: str) -> str:
    return f"relay:subscription:{sub}"

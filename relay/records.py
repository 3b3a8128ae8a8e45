"""What Valkey keeps beside the log: denials and subscriptions.

    {relay:0}:denials         sorted set: the names of denials, each with the second since when it holds
    relay:subscription:<sub>  hash: status, until (a Unix time, or empty)

A denial lives as long as a token may that it holds for. It is set in one step with the notice of it (`relay.notice`); a changed
subscription is told of right behind its change. That is how open streams hear of them.
"""

import math
from collections.abc import Sequence

import msgspec

from relay.auth import LEEWAY_S, Identity, Subscription
from relay.denial import Denial, Denials, names_of_token, names_of_topic
from relay.errors import TooMany
from relay.log import APPEND, Log, NewEvent
from relay.notice import SHARD, TOPIC, Denied, Notice, SubscriptionChanged, Undone
from relay.servers import joined_scripts

DENIALS = f"{{relay:{SHARD}}}:denials"
DENIALS_MAX = 100_000  # every process holds all of them

DENY = joined_scripts("deny", APPEND)


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

    # Subscriptions

    async def subscription(self, sub: str) -> Subscription:
        """What cannot be understood is none."""
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


def subscription_key(sub: str) -> str:
    return f"relay:subscription:{sub}"

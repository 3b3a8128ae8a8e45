"""One process of many does a job: a lease in Valkey, and a fence that keeps out whoever had it before.

    {relay:0}:lease:<name>   the holder, until its life ends
    {relay:N}:shard          hash; its field `f:<name>` is the fence: the holder's number, and who that is

A lease alone is not enough. Its holder may be stopped for longer than the lease lives, or have an append on a slow way, and go
on in the belief that it still holds it. So each holder has a number higher than all before, and writes it into every shard's
fence before its first append; the append script refuses whoever's fence isn't the one that stands there. Both are compared
whole, not by order: a log that was lost begins to count anew, and must not take an old holder for the current one.

A holder counts its time from before it asked, so that by its own clock it ends before it does in Valkey; and it gives up when
it can't renew the lease by then. Whoever waits asks three times in a lease's life. So a holder that is gone is replaced within
twice that life.
"""

import asyncio
import os
import platform
import random
import secrets
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import msgspec

from relay.errors import Fenced, LogUnavailable
from relay.servers import Servers, load_script

LEASE, FENCE = load_script("lease"), load_script("fence")
TRIES = 3  # to renew it, or to take it over, in the time of its life


class Fence(msgspec.Struct, frozen=True):
    """What a holder shows with each append: the value must be what stands in the field of the shard's hash."""

    field: str
    value: str


def new_holder() -> str:
    """The name of a process, of no other and of none before."""
    return f"{platform.node() or 'host'}:{os.getpid()}:{secrets.token_hex(4)}"


class Lease:
    """One lease, as one process sees it."""

    def __init__(self, servers: Servers, shards: int, name: str, holder: str, life_s: float) -> None:
        self.name = name
        self.life_s = life_s
        self._servers, self._shards, self._holder = servers, shards, holder
        self._field = f"f:{name}"

    async def take(self) -> Fence | None:
        """The fence, once it stands in every shard; None while another holds the lease. Raises LogUnavailable."""
        above = 0
        while number := int(await self._call("take", above)):
            fence = Fence(self._field, f"{number} {self._holder}")
            # A shard may know a higher number, where the first one has lost its own.
            above = max([await self._raise(shard, number, fence) for shard in range(1, self._shards)], default=0)
            if not above:
                return fence
        return None

    async def _raise(self, shard: int, number: int, fence: Fence) -> int:
        async with self._servers.of(shard) as server:
            return int(await FENCE.call(server, [f"{{relay:{shard}}}:shard"], [fence.field, number, fence.value]))

    async def keep(self, fence: Fence) -> bool:
        """Whether it is still this process's, for another life. Raises LogUnavailable."""
        return bool(await self._call("keep", fence.value))

    async def leave(self, fence: Fence) -> None:
        """So that another takes it without waiting for its end."""
        await self._call("leave", fence.value)

    async def _call(self, action: str, value: str | int) -> Any:
        async with self._servers.of(0) as server:
            keys = [lease_key(self.name), "{relay:0}:shard"]
            return await LEASE.call(server, keys, [action, self._holder, round(self.life_s * 1000), self._field, value])


async def lead(lease: Lease, work: Callable[[Fence], Coroutine[Any, Any, None]]) -> None:
    """Does the work while this process holds the lease, for ever. The work is cancelled when the lease is lost; when it ends by
    itself, the lease is left, and taken again in its turn. Raises what the work raises, but for Fenced: that is a loss too."""
    while True:
        asked_s = time.monotonic()
        fence = await take(lease)
        if fence:
            working = asyncio.create_task(work(fence))
            try:
                await keep(lease, fence, asked_s, working)
            finally:
                working.cancel()
                await asyncio.wait([working])
                with suppress(LogUnavailable):
                    await lease.leave(fence)
            if not working.cancelled():
                with suppress(Fenced):
                    working.result()
        await asyncio.sleep(lease.life_s / TRIES * random.uniform(0.8, 1))


async def take(lease: Lease) -> Fence | None:
    """The fence, if the lease can be had. If this is cancelled, the lease isn't had: not even where the answer was on its way."""
    taking = asyncio.ensure_future(lease.take())
    try:
        return await asyncio.shield(taking)
    except LogUnavailable:  # whoever follows the log tells of that
        return None
    except asyncio.CancelledError:
        with suppress(LogUnavailable):
            fence = await taking
            if fence:
                await lease.leave(fence)
        raise


async def keep(lease: Lease, fence: Fence, asked_s: float, working: "asyncio.Task[None]") -> None:
    """Renews the lease until that fails, or the work has ended."""
    ends_s = asked_s + lease.life_s
    while True:
        done, _ = await asyncio.wait([working], timeout=min(lease.life_s / TRIES, max(0, ends_s - time.monotonic())))
        asked_s = time.monotonic()
        if done or asked_s >= ends_s:
            return
        try:
            async with asyncio.timeout(ends_s - asked_s):
                if not await lease.keep(fence):
                    return
        except (LogUnavailable, TimeoutError):
            continue
        ends_s = asked_s + lease.life_s


def lease_key(name: str) -> str:
    return f"{{relay:0}}:lease:{name}"

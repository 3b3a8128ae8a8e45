"""Reads the end of the log into the hub, once for the whole process.

For each shard one task on a connection of its own reads the journal from the place where the last read ended. That place
is read once, at the start: `$` would pass over what comes between two reads, and a reader for each topic would cost the
server 2 ms an event at 1,000 topics. The price is that each process reads every event of the log, some 2 µs each.

`s` is dense, so the next entry must have `s + 1`. Where it hasn't, or where the place isn't in the journal's history any
more (a failover, a lost log), the hub starts again at the journal's last place, and every reader finds out from its own
place what it has missed. Whether the place is still valid is asked at each empty block, and at an entry of another epoch:
after a lost log, `s + 1` may come from the new one. At an empty block it is also asked whether the place is the end: entries that
were trimmed before they were read are missing, though nothing comes that would tell.

A tail also remembers how far it had been in each epoch, since nobody else can tell that an older copy has come into a server's one
life. It ends the epoch then: soon the copy has as many events as there were, and lost places would look like its own.

This is the only module that knows how events reach the hub.
"""

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from typing import Protocol

import msgspec

from relay.cursor import EARLIEST, Place
from relay.errors import LogUnavailable
from relay.event import Event
from relay.hub import CHUNK_BYTES, Hub, Reader
from relay.log import Log

BLOCK_MS = 1000
BATCH_EVENTS_MAX = 1000
BATCH_BYTES = CHUNK_BYTES  # a batch aims at this, by the size of the events before
PACE_S = 0.02  # the longest that it waits for the sends of its last batch
PACE_STEP_S = 0.001
BACKOFF_S = (0.05, 2.0)
EPOCHS_MAX = 100  # that a tail remembers

logger = logging.getLogger("relay")


class Observer(Protocol):
    """Who counts what the tail does."""

    def batch(self, events: Sequence[Event]) -> None: ...
    def restarted(self) -> None: ...


class Listener(Protocol):
    """Who has to know of entries themselves, not only their readers."""

    async def renew(self) -> None:
        """The tail begins at a place: what was before it won't come."""

    def take(self, events: Sequence[Event]) -> None: ...


class Statistics(msgspec.Struct, frozen=True):
    connected: bool
    lag_ms: int | None  # how old the newest entry was when it was read
    restarts: int


class Tail:
    """One shard's tail."""

    def __init__(self, log: Log, hub: Hub, shard: int, observer: Observer, listener: Listener | None = None) -> None:
        self.log, self.hub, self.shard, self.observer, self.listener = log, hub, shard, observer, listener
        self.connected = False
        self.lag_ms: int | None = None
        self.restarts = 0
        self.tried = asyncio.Event()  # set once the log has been reached, or found to be away
        self._left: dict[str, Place] = {}  # by epoch, how far it had been when it had to begin anew
        self._started = False
        self._most = BATCH_EVENTS_MAX

    def statistics(self) -> Statistics:
        return Statistics(self.connected, self.lag_ms, self.restarts)

    async def run(self) -> None:
        """Until cancelled. A server that is away is asked again, with growing pauses."""
        pause, told = BACKOFF_S[0], False
        while True:
            try:
                if not self._started:
                    await self._start()
                while True:
                    await self._step()
                    if told:
                        logger.info("the log is back", extra={"shard": self.shard})
                    pause, told = BACKOFF_S[0], False
            except LogUnavailable as error:
                if not told:
                    logger.warning("the log is away: %s", error, extra={"shard": self.shard})
                self._reached(False)
                told = True
            # Jitter, so that a fleet doesn't come back to its server in one moment.
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, BACKOFF_S[1])

    async def _start(self) -> None:
        self.hub.start(self.shard, await self._find_end())
        self._started = True
        self._reached(True)

    async def _find_end(self) -> Place:
        """The journal's last place. It is found first, and what was told before it is read then, so that nothing is between."""
        place = (await self.log.look(self.shard, EARLIEST)).end
        if self.listener:
            await self.listener.renew()
        return place

    def _reached(self, here: bool) -> None:
        self.connected = here
        self.tried.set()
        if here:
            self.log.away.discard(self.shard)
        else:
            self.log.away.add(self.shard)

    async def _step(self) -> None:
        """One look at the journal: a batch, or an empty block."""
        place = self.hub.rings[self.shard].place
        events = await self.log.follow(self.shard, place, self._most, BLOCK_MS)
        self._reached(True)  # before the hub wakes those who wait for that
        if not events or events[0].place.epoch != place.epoch:
            read = await self.log.look(self.shard, place)
            if read.reset:
                return await self._restart("its place is not in the log any more")
            if not events and read.end != place:
                # What came since the block, up to this look, is there to be read.
                events = await self.log.follow(self.shard, place, self._most, 1)
                if not events:
                    return await self._restart("what came after its place is gone")
        if not events:
            return self.hub.idle(self.shard)
        if [event.place.s for event in events] != list(range(place.s + 1, place.s + 1 + len(events))):
            return await self._restart("entries are missing after its place")
        unfinished = self.hub.advance(self.shard, events)
        if self.listener:
            self.listener.take(events)
        self.lag_ms = max(0, int(time.time() * 1000) - events[-1].ts)
        self.observer.batch(events)
        size = sum([len(event.data) for event in events]) // len(events)
        self._most = max(1, min(BATCH_EVENTS_MAX, BATCH_BYTES // max(1, size)))
        await self._pace(unfinished)

    async def _restart(self, why: str) -> None:
        logger.warning("the tail starts again at the journal's end: %s", why, extra={"shard": self.shard})
        self._remember(self.hub.rings[self.shard].place)
        end = (await self.log.look(self.shard, EARLIEST)).end
        known = self._left.get(end.epoch)
        if known and await self.log.end_rewound(self.shard, known):
            logger.warning("an older copy of the log is in its place: its epoch is ended", extra={"shard": self.shard})
        self.hub.restart(self.shard, await self._find_end())
        self.restarts += 1
        self.observer.restarted()

    def _remember(self, place: Place) -> None:
        known = self._left.pop(place.epoch, place)
        self._left[place.epoch] = max(known, place, key=Place.at)
        while len(self._left) > EPOCHS_MAX:
            del self._left[next(iter(self._left))]

    async def _pace(self, unfinished: list[Reader]) -> None:
        """Waits until most have taken the batch: under load batches grow instead of channels filling up.

        Not for long, and not for the last tenth: a slow reader delays nobody.
        """
        few = self.hub.statistics().readers // 10
        patience = time.monotonic() + PACE_S
        while len(unfinished) > few and time.monotonic() < patience:
            await asyncio.sleep(PACE_STEP_S)
            unfinished = [reader for reader in unfinished if reader.sending is not None]

"""The update job: looks at each source, turn by turn, and appends what is new, exactly once.

An item's key and version make its idempotency key, and what the upstream still shows is remembered (`memory`), so nothing is
appended twice, whoever is killed wherever. An append whose outcome is unknown is repeated with the same key before anything else
is looked at: by then the upstream may show the item no longer. Each source has a lease and a task of its own, so that one which is
slow, down or lying holds up no other.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

import msgspec

from relay.errors import Fenced, LogUnavailable, SettingsError
from relay.event import Retention
from relay.lease import Fence, Lease, lead, new_holder
from relay.log import Log, NewEvent
from relay.metrics import Metrics
from relay.settings import Settings, retention_of
from relay.updates.database import open_database
from relay.updates.feed import SEEN_MAX, Batch, FeedError, Look, Open
from relay.updates.function import open_function
from relay.updates.item import UNFIT, scalar
from relay.updates.memory import Memory, Progress
from relay.updates.sources import HTTP, PYTHON, SQL, SSE, Source, read_sources
from relay.updates.stream import open_stream
from relay.updates.web import open_web

GRACE_S = 86400.0  # what a snapshot shows no longer is remembered for so long
SAVE_S = 1.0  # so often at most, what a look has found so far is remembered
QUIET_SAVE_S = 60.0  # and so often where nothing comes, so that the status tells that it is still looked at
BACKOFF_MAX_S = 300.0
FAULT_PAUSE_S = 10.0
LOG_PAUSE_S = (0.1, 2.0)
APPENDED_MAX = 500  # events that are repeated at most when the log goes away meanwhile
SKIPS_TOLD_S = 60.0
KEY_LIFE_MIN_MS = 3_600_000
TOLD_CHARACTERS = 300
JOB = {"job": True}  # of log lines
T = TypeVar("T")

logger = logging.getLogger("relay")

OPEN: dict[str, Open] = {HTTP: open_web, SQL: open_database, SSE: open_stream, PYTHON: open_function}


class Job:
    """All sources of the file: this process looks at those whose lease it has."""

    def __init__(self, path: Path, interval_ms: int, log: Log, metrics: Metrics, max_event_bytes: int, lease_s: float) -> None:
        self._path, self._interval_ms, self._lease_s = path, interval_ms, lease_s
        self.log, self._metrics, self._max_event_bytes = log, metrics, max_event_bytes
        self._holder = new_holder()
        self._watches: dict[Source, tuple[Watch, asyncio.Task[None]]] = {}
        self._ending: set[asyncio.Task[None]] = set()  # of sources that are watched no longer
        self._stopped = False

    def load(self) -> None:
        """Begins with what the file says, at first or once more. A source that is as before isn't touched, and a changed one goes on
        from its place; a file with mistakes changes nothing."""
        if self._stopped:
            return
        try:
            wanted = read_sources(self._path, self._interval_ms)
        except SettingsError as error:
            for mistake in error.mistakes:
                logger.error("%s", mistake, extra=JOB)  # noqa: TRY400  # it says all that there is to say
            return
        for source in self._watches.keys() - set(wanted):
            self._end(source)
            self._metrics.source_state(source.name, leads=False, lag_s=0)
        for source in wanted:
            if source not in self._watches:
                lease = Lease(self.log.servers, self.log.shards, source.name, self._holder, self._lease_s)
                watch = Watch(source, self.log, lease, self._metrics, self._holder, self._max_event_bytes)
                self._watches[source] = watch, asyncio.create_task(watch.run())
        logger.info("%d sources: %s", len(wanted), ", ".join(source.name for source in wanted), extra=JOB)

    def tick(self) -> None:
        """Once a second: how far behind the sources are that this process looks at."""
        for watch, _ in self._watches.values():
            self._metrics.source_state(watch.source.name, leads=watch.leads, lag_s=watch.lag_s())

    async def stop(self) -> None:
        """For good. Leaves all leases, so that others go on at once. A second call returns no sooner than the first: the one who drains
        a process and the one who ends it both call, and the log is closed after that."""
        self._stopped = True
        for source in list(self._watches):
            self._end(source)
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _end(self, source: Source) -> None:
        _, task = self._watches.pop(source)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        task.cancel()


class Watch:
    """One source, and what this process has seen of it."""

    def __init__(self, source: Source, log: Log, lease: Lease, metrics: Metrics, holder: str, max_event_bytes: int) -> None:
        self.source = source
        self.leads = False
        self._log, self._lease, self._metrics, self._holder = log, lease, metrics, holder
        self._max_event_bytes = max_event_bytes
        self._memory = Memory(log.servers, source.name)
        self._progress = Progress(source.name, source.kind)
        self._failures = 0  # in a row
        self._began_ms = 0
        self._saved_s = 0.0
        self._skips_told_s = -SKIPS_TOLD_S

    async def run(self) -> None:
        while True:
            try:
                await lead(self._lease, self._work)
            except Exception:
                logger.exception("source %s: a fault of the relay", self.source.name, extra=JOB)
                await asyncio.sleep(FAULT_PAUSE_S * random.uniform(0.5, 1))

    def lag_s(self) -> float:
        """How long ago the log was known to have all that the upstream shows."""
        return max(0, now_ms() - (self._progress.last_success or self._began_ms)) / 1000 if self.leads else 0.0

    async def _work(self, fence: Fence) -> None:
        """Looks at the source for as long as the lease is held."""
        await self._insist(self._memory.load)
        self._progress = self._memory.progress or self._progress
        self._progress.leader, self._progress.kind = self._holder, self.source.kind
        self._began_ms, self._failures, self.leads = now_ms(), 0, True
        logger.info("source %s: this process looks at it now, under %s", self.source.name, fence.value, extra=JOB)
        try:
            async with OPEN[self.source.kind](self.source) as look:
                await self._look_again_and_again(look, fence)
        finally:
            self.leads = False
            logger.info("source %s: this process looks at it no longer", self.source.name, extra=JOB)

    async def _look_again_and_again(self, look: Look, fence: Fence) -> None:
        interval_ms = self.source.interval_ms
        while True:
            began_s = time.monotonic()
            try:
                found, asked_s = await self._look(look, fence)
            except FeedError as error:
                pause_s = self._fails(str(error), interval_ms, error.retry_after_s or 0)
            except (Fenced, LogUnavailable):
                raise
            except Exception as error:  # of a driver, or of code that isn't ours: no reason to leave the others alone
                pause_s = self._fails(f"{type(error).__name__}: {error}", interval_ms, 0)
            else:
                self._is_well()
                self._metrics.source_looks.labels(self.source.name, "new" if found else "nothing").inc()
                interval_ms = next_interval_ms(self.source, interval_ms, found=bool(found))
                pause_s = max(0, interval_ms / 1000 - (time.monotonic() - began_s)) if asked_s is None else asked_s
            self._progress.interval_ms = interval_ms
            await self._save(fence)
            await asyncio.sleep(pause_s)

    def _fails(self, reason: str, interval_ms: int, asked_s: float) -> float:
        """The pause until the next look."""
        reason = reason[:TOLD_CHARACTERS]
        self._failures += 1
        pause_s = max(backoff_s(interval_ms, self._failures), asked_s)
        self._progress.errors += 1
        self._progress.error = reason
        self._metrics.source_looks.labels(self.source.name, "failed").inc()
        logger.warning("source %s %s; looked at again in %.1f s", self.source.name, reason, pause_s, extra=JOB)
        return pause_s

    def _is_well(self) -> None:
        if self._progress.error:
            logger.info("source %s is well again", self.source.name, extra=JOB)
        self._failures, self._progress.error = 0, None
        self._progress.last_success = now_ms()

    async def _look(self, look: Look, fence: Fence) -> tuple[int, float | None]:
        """How many events were appended, and what pause the upstream asked for."""
        source, memory = self.source, self._memory
        self._progress.last_look = now_ms()
        shown: dict[bytes, None] = {}  # in the order in which it was seen
        appended, unchanged, changed, place, asked_s = 0, False, False, memory.place, None
        try:
            async with aclosing(with_ticks(look(memory.place), SAVE_S)) as batches:
                async for batch in batches:
                    if batch is not None:
                        appended += await self._take(batch, shown, fence)
                        place = place if batch.place is None else batch.place
                        unchanged, asked_s = unchanged or batch.unchanged, batch.pause_s
                    if source.endless:  # what it has found so far is all there is to wait for
                        memory.place = place
                        self._progress.last_look = now_ms()
                        if batch is not None:
                            self._is_well()
                            changed = True
                        if time.monotonic() - self._saved_s >= (SAVE_S if changed else QUIET_SAVE_S):
                            await self._save(fence)
                            changed = False
        except Exception:
            if not source.endless:
                memory.shows(shown)
            raise
        # The place goes into memory with what was seen before it, never earlier: it hides that from the next look.
        memory.place = place
        if not source.endless and not unchanged:
            memory.shows_only(shown, GRACE_S if source.snapshot else 0)
        return appended, asked_s

    async def _take(self, batch: Batch, shown: dict[bytes, None], fence: Fence) -> int:
        """Appends what is new in a batch, and says how much that was."""
        shape = self.source.shape
        fresh: dict[bytes, tuple[object, NewEvent]] = {}
        skipped, why = 0, ""
        for number, raw in enumerate(batch.items, 1):
            if number % 100 == 0:
                await asyncio.sleep(0)  # others want their turn
            try:
                value = msgspec.json.decode(raw)
                digest = shape.identify(value)
                if digest in self._memory.seen or digest in shown:
                    shown[digest] = None
                elif digest not in fresh:
                    version = scalar(value, shape.version) if shape.version else None
                    fresh[digest] = version, shape.event_of(raw, value, digest, self._max_event_bytes)
            except UNFIT as error:
                skipped += 1
                why = why or f"item {number}: {error}"
        self._progress.items_seen += len(batch.items)
        if skipped:
            self._skips(skipped, len(batch.items), why)
        return await self._append(in_order(fresh, by_version=self.source.snapshot), shown, fence)

    def _skips(self, count: int, of: int, why: str) -> None:
        self._progress.skipped += count
        self._metrics.source_items.labels(self.source.name, "skipped").inc(count)
        if time.monotonic() - self._skips_told_s >= SKIPS_TOLD_S:
            self._skips_told_s = time.monotonic()
            why = why[:TOLD_CHARACTERS]
            logger.warning("source %s: %d of %d items can't become events: %s", self.source.name, count, of, why, extra=JOB)

    async def _append(self, fresh: list[tuple[bytes, NewEvent]], shown: dict[bytes, None], fence: Fence) -> int:
        done = 0
        for begin in range(0, len(fresh), APPENDED_MAX):
            part = fresh[begin : begin + APPENDED_MAX]
            events = [event for _, event in part]
            answers = await self._insist(lambda events=events: self._log.append_fenced(events, fence))  # type: ignore[misc]
            shown.update((digest, None) for digest, _ in part)
            while len(shown) > SEEN_MAX:
                del shown[next(iter(shown))]
            known = sum(answer.duplicate or answer.reused for answer in answers)
            self._progress.duplicates += known
            self._progress.appended += len(part) - known
            self._metrics.source_items.labels(self.source.name, "duplicate").inc(known)
            self._metrics.source_items.labels(self.source.name, "appended").inc(len(part) - known)
            done += len(part) - known
        return done

    async def _save(self, fence: Fence) -> None:
        await self._insist(lambda: self._memory.save(fence, self._progress))
        self._saved_s = time.monotonic()

    async def _insist(self, action: Callable[[], Awaitable[T]]) -> T:
        """Does it again while the log is away: all that is done this way does no harm when it is done twice."""
        pause_s, told = LOG_PAUSE_S[0], False
        while True:
            try:
                return await action()
            except LogUnavailable as error:
                if not told:
                    logger.warning("source %s waits for the log, which is away: %s", self.source.name, error, extra=JOB)
                    told = True
                await asyncio.sleep(pause_s * random.uniform(0.5, 1))
                pause_s = min(2 * pause_s, LOG_PAUSE_S[1])


def job_retention(settings: Settings) -> Retention:
    """Keys outlive the time from an append to its being remembered, whichever process comes to do that."""
    kept = retention_of(settings)
    return msgspec.structs.replace(kept, idempotency_ms=max(kept.idempotency_ms, KEY_LIFE_MIN_MS))


def in_order(fresh: dict[bytes, tuple[object, NewEvent]], *, by_version: bool) -> list[tuple[bytes, NewEvent]]:
    """In the upstream's order, or where versions are numbers, and so tell which came first, in that."""
    found = [(version, digest, event) for digest, (version, event) in fresh.items()]
    if by_version and all(isinstance(version, int | float) for version, _, _ in found):
        found.sort(key=lambda one: one[0])  # type: ignore[arg-type,return-value]
    return [(digest, event) for _, digest, event in found]


def next_interval_ms(source: Source, interval_ms: int, *, found: bool) -> int:
    """Shorter while there is something new, longer while there is nothing, within the source's bounds."""
    return max(source.interval_min_ms, interval_ms // 2) if found else min(source.interval_max_ms, interval_ms * 5 // 4 + 1)


def backoff_s(interval_ms: int, failures: int) -> float:
    """With jitter, so that the sources of one upstream don't all come back at once."""
    longest_s = max(BACKOFF_MAX_S, interval_ms / 1000)
    return min(longest_s, math.ldexp(interval_ms / 1000, min(failures, 20))) * random.uniform(0.5, 1)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def with_ticks(batches: AsyncGenerator[Batch, None], every_s: float) -> AsyncGenerator[Batch | None, None]:
    """The batches, and None in between whenever nothing has come for so long."""
    coming: asyncio.Future[Batch] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(batches))
            await asyncio.wait([coming], timeout=every_s)
            if not coming.done():
                yield None
                continue
            try:
                batch = coming.result()
            except StopAsyncIteration:
                return
            coming = None
            yield batch
    finally:
        if coming:
            coming.cancel()
            await asyncio.wait([coming])
        await batches.aclose()

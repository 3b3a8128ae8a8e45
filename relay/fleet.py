"""What the processes of a fleet say of themselves, so that each can answer for all.

Each leaves its figures in the log's Valkey every few seconds, with a short life; one that is gone is forgotten with them. They
are read when somebody asks, once a second at most, however many ask.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence

import msgspec

from relay.errors import LogUnavailable
from relay.log import Log

REPORT_S = 2.0
LIFE_MS = 10_000
LEAVE_S = 1.0  # the longest that a process that ends takes to say so
FRESH_S = 1.0  # what was read so lately isn't read again

logger = logging.getLogger("relay")


class Kept(msgspec.Struct, frozen=True):
    """What a process leaves in the log when it appends."""

    seconds: int
    topic_events: int
    journal_events: int


class Figures(msgspec.Struct, frozen=True):
    """One process. All but who it is has a default, since processes of another version may say less."""

    host: str
    pid: int
    version: str
    kind: str = "relay"  # or "job", which has no streams
    uptime_s: int = 0
    connections: int = 0
    behind: int = 0
    waiting_polls: int = 0
    topics: int = 0
    audiences: int = 0
    events: int = 0
    deliveries: int = 0
    events_per_s: float = 0.0
    deliveries_per_s: float = 0.0
    connected: bool = False
    lag_ms: int | None = None
    restarts: int = 0
    draining: bool = False
    fingerprint: str = ""
    retention: Kept | None = None


def kept_by(log: Log) -> Kept:
    kept = log.retention
    return Kept(kept.retention_ms // 1000, kept.topic_events, kept.journal_events)


def find_differences(all: Sequence[Figures]) -> list[str]:
    """Where processes differ that should be alike, as while the fleet is changed from one to the other; what comes of it."""
    found = []
    versions = sorted({each.version for each in all})
    if len(versions) > 1:
        found.append(f"processes are of different versions: {', '.join(versions)}")
    fingerprints = sorted({each.fingerprint or "none" for each in all if each.kind == "relay"})
    if len(fingerprints) > 1:
        keys = ", ".join(fingerprints)
        found.append(
            f"relays seal with different keys ({keys}): what one seals doesn't open with the keys that another gives; SSE_ENCRYPTION_KEY"
        )
    if len({each.retention for each in all if each.retention}) > 1:
        found.append(
            "processes keep events for different times or in different numbers: the log keeps the least of them; RELAY_RETENTION_…"
        )
    return found


def sum_up(all: Sequence[Figures]) -> dict[str, object]:
    """The fleet as one. Every process reads every event, and many have the same topics, so of these the most counts."""
    return {
        "processes": len(all),
        "versions": sorted({each.version for each in all}),
        "connections": sum(each.connections for each in all),
        "behind": sum(each.behind for each in all),
        "waiting_polls": sum(each.waiting_polls for each in all),
        "topics": max(each.topics for each in all),
        "audiences": sum(each.audiences for each in all),
        "events": max(each.events for each in all),
        "deliveries": sum(each.deliveries for each in all),
        "events_per_s": max(each.events_per_s for each in all),
        "deliveries_per_s": round(sum(each.deliveries_per_s for each in all), 2),
        "tail": {
            "connected": min(each.connected for each in all),
            "lag_ms": max((each.lag_ms for each in all if each.lag_ms is not None), default=None),
            "restarts": sum(each.restarts for each in all),
        },
    }


class Fleet:
    """This process among the others."""

    def __init__(self, log: Log, own: Callable[[], Figures]) -> None:
        self.log, self.own = log, own
        self.name = secrets.token_hex(8)
        self._others: list[Figures] = []
        self._asked_s = 0.0
        self._asking = asyncio.Lock()

    async def all(self) -> list[Figures]:
        """This process, and the others as of a moment ago; alone while the log is away."""
        async with self._asking:
            if time.monotonic() > self._asked_s + FRESH_S:
                self._others = await self._ask()
                self._asked_s = time.monotonic()
        return [self.own(), *self._others]

    async def _ask(self) -> list[Figures]:
        try:
            reports = await self.log.reports(LIFE_MS)
        except LogUnavailable:
            return []
        found = []
        for name, figures in sorted(reports.items()):
            try:
                if name != self.name:
                    found.append(msgspec.json.decode(figures, type=Figures))
            except msgspec.DecodeError:  # of a version that says it another way
                logger.debug("figures of another process can't be read: %r", figures[:200])
        return found

    async def report(self) -> None:
        """Leaves this process's figures, until cancelled; then takes them back. What fails is left out: the next comes soon."""
        try:
            while True:
                try:
                    await self.log.report(self.name, msgspec.json.encode(self.own()), LIFE_MS)
                except LogUnavailable as error:
                    logger.debug("the fleet isn't told of this process: %s", error)
                await asyncio.sleep(REPORT_S)
        finally:
            try:
                async with asyncio.timeout(LEAVE_S):
                    await self.log.retract(self.name)
            except (LogUnavailable, TimeoutError):
                pass  # forgotten in a moment all the same

"""What readers hold open in this process, and the end of it when their right to it ends.

A stream or a waiting poll enters here before it reads anything, and is looked at once more then: so whatever is revoked, a process
either knew of it before, or finds who is concerned among those who have entered. It hears of denials and of changed subscriptions
by shard 0's tail (`relay.notice`), and knows all denials: to ask whether a token is denied costs no round trip. Where the tail
begins anew, the denials are read anew, after the place from which it goes on was.

Where subscriptions are looked up, each subject with open streams is looked at once in each interval, at a time of its own. What
can't be found out then changes nothing: open streams go on.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any

from relay.auth import Identity, Subscription
from relay.denial import Denial, Denials
from relay.entitlement import Look
from relay.errors import LogAway, LogUnavailable, Problem, Unavailable
from relay.event import Event
from relay.guard import Permit
from relay.log import Log
from relay.notice import SHARD, Denied, SubscriptionChanged, Undone, parse_notices
from relay.records import DENIALS_MAX, Records

SLOTS_A_SECOND = 4
TICKETS_S = 60.0  # so often open streams use their tickets, which die when nobody does
LOOKS_MAX = 16  # at subscriptions at once, beside those of readers who connect
# Many streams that end in one moment have been seen to crash the server.
ENDS_AT_ONCE = 100
ENDS_PAUSE_S = 0.005
LOOKS_AT_ONCE = 1000  # some milliseconds, in which nothing else is done
# So long a change of a subscription is remembered: readers who were let in before may enter only now.
CHANGED_S = 10.0
CHANGED_MAX = 10_000

logger = logging.getLogger("relay")


class Held:
    """One stream or waiting poll."""

    __slots__ = ("end", "expiry", "permit")

    def __init__(self, permit: Permit, end: Callable[[str], None]) -> None:
        self.permit = permit
        self.end = end  # with a reason
        self.expiry: asyncio.TimerHandle | None = None


class Standing:
    """`look` finds a subject's subscription; None where it is not looked up."""

    def __init__(self, log: Log, records: Records, look: Look | None, recheck_s: float) -> None:
        self.log, self.records, self.look, self.recheck_s = log, records, look, recheck_s
        self._denials: Denials | None = None  # None until they were read
        self._held: set[Held] = set()
        # Those whose subscription is looked at, by subject, in the part of the interval in which it is the subject's turn.
        self._turns: list[dict[str, set[Held]]] = [{} for _ in range(max(1, round(recheck_s * SLOTS_A_SECOND)))]
        self._changed: dict[str, float] = {}  # subscriptions, and when that was told
        self._looks = asyncio.Semaphore(LOOKS_MAX)
        self._looking: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def denials(self, identity: Identity, topics: Sequence[str]) -> Denials:
        """All that this process knows. Raises LogAway where it can't know them: that is for readers, whose topics are named."""
        if self._denials is None or (topics and SHARD in self.log.away):
            raise LogAway("denials aren't known")
        return self._denials

    # Who holds what

    def enter(self, permit: Permit, end: Callable[[str], None]) -> Held:
        held = Held(permit, end)
        self._held.add(held)
        if permit.subscribed and self.look:
            self._turn(permit.identity.sub).setdefault(permit.identity.sub, set()).add(held)
        return held

    def leave(self, held: Held) -> None:
        self._held.discard(held)
        if held.expiry:
            held.expiry.cancel()
        turn, sub = self._turn(held.permit.identity.sub), held.permit.identity.sub
        if sub in turn:
            turn[sub].discard(held)
            if not turn[sub]:
                del turn[sub]

    def _turn(self, sub: str) -> dict[str, set[Held]]:
        return self._turns[hash(sub) % len(self._turns)]

    def review(self, held: Held) -> None:
        """To be called once behind `enter`: something may have been revoked since the reader was let in."""
        if self._is_denied(held):
            held.end("revoked")
        elif self.look and self._changed.get(held.permit.identity.sub, 0.0) > time.monotonic() - CHANGED_S:
            self._start_looking(held.permit.identity.sub)

    def _is_denied(self, held: Held) -> bool:
        if self._denials is None or not held.permit.identity.sub:
            return False
        try:
            self._denials.check_token(held.permit.identity)
            self._denials.check_topics(held.permit.identity, held.permit.closed)
        except Problem:
            return True
        return False

    # What the tail of shard 0 does

    async def renew(self) -> None:
        """The tail begins at a place, before which it won't read: what was told before is read from where it is kept."""
        self._denials = await self.records.all_denials()
        self._start(self._end_all(self._is_denied))

    def take(self, events: Sequence[Event]) -> None:
        """What the tail has read."""
        for notice in parse_notices(events):
            match notice:
                case Denied(denial, since_s):
                    self._deny(denial, since_s)
                case Undone(denial):
                    assert self._denials is not None, "they are read before the tail begins"
                    self._denials.remove(denial.name())
                case SubscriptionChanged(sub) if self.look:
                    self._changed.pop(sub, None)
                    if len(self._changed) >= CHANGED_MAX:
                        del self._changed[next(iter(self._changed))]
                    self._changed[sub] = time.monotonic()
                    self._start_looking(sub)

    def _deny(self, denial: Denial, since_s: float) -> None:
        assert self._denials is not None, "they are read before the tail begins"
        self._denials.add(denial.name(), since_s)
        if len(self._denials) > DENIALS_MAX:
            self._denials.forget(since_s - self.records.token_life_s)
        concerns = denial.holds(since_s)
        self._start(self._end_all(lambda held: concerns(held.permit.identity, held.permit.closed)))

    async def _end_all(self, concerned: Callable[[Held], bool]) -> None:
        ended = 0
        for looked, held in enumerate(list(self._held), 1):
            if held in self._held and concerned(held):
                held.end("revoked")
                ended += 1
                if ended % ENDS_AT_ONCE == 0:
                    await asyncio.sleep(ENDS_PAUSE_S)
            if looked % LOOKS_AT_ONCE == 0:
                await asyncio.sleep(0)

    # Subscriptions of open streams

    async def run(self) -> None:
        """Looks at subscriptions, each once in the interval, and uses tickets, until cancelled."""
        loop = asyncio.get_running_loop()
        next_s, turn = loop.time(), 0
        tickets_s = next_s + TICKETS_S
        try:
            while True:
                next_s += 1 / SLOTS_A_SECOND
                await asyncio.sleep(max(0, next_s - loop.time()))
                turn = (turn + 1) % len(self._turns)
                for sub in self._turns[turn].keys() - self._looking:
                    self._start_looking(sub)
                if loop.time() >= tickets_s:
                    tickets_s += TICKETS_S
                    self._start(self.use_tickets())
        finally:
            for task in self._tasks:
                task.cancel()

    async def use_tickets(self) -> None:
        with suppress(LogUnavailable):
            await self.records.use_tickets({held.permit.identity.ticket for held in self._held} - {""})

    def _start_looking(self, sub: str) -> None:
        if sub in self._turn(sub):
            self._looking.add(sub)
            self._start(self._look(sub))

    async def _look(self, sub: str) -> None:
        assert self.look
        try:
            async with self._looks:
                subscription = await self.look(sub)
        except (Unavailable, LogUnavailable):
            return
        finally:
            self._looking.discard(sub)
        self._apply(subscription, list(self._turn(sub).get(sub, ())))

    def _apply(self, subscription: Subscription, all_held: Iterable[Held]) -> None:
        now = time.time()
        for held in all_held:
            if not subscription.active(now):
                held.end("revoked")
            elif subscription.until is not None and subscription.until - now < self.recheck_s:
                if held.expiry:
                    held.expiry.cancel()
                held.expiry = asyncio.get_running_loop().call_later(subscription.until - now, held.end, "expired")

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

"""What a client keeps and what it was promised: every retained event once and in order, and the truth about what is gone.

A `Client` does what a browser or a poller does, by what is on the wire: it keeps the last id, drops its state at a reset, comes
back with its cursor. Its `Promise` is the judge. It compares each frame with `Log.ever`, all that was appended to the log as it is
now, and with what is still retained; so it can judge the frames of a real relay too, if the model's log holds the same events
under the same places.

What a client is owed, by shard: all events of its topics after the first place that a cursor of its names there, or, at the
earliest, all of the topics' present lives; with `k` also the newest k as it asks. Not what a gap told as lost, and not what its
filter hides.

A frame is judged when it is taken, which may be long after it was sent. Since then events may have been trimmed, or the log lost:
so a claim that something is gone must be true now, and where the log was lost since the client connected, what was claimed before
isn't judged, since a reset must follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy

from . import model
from .model import EARLIEST, OLD_MS, Ask, Bye, Cursor, Env, Event, Frame, Gap, Hello, Page, Place, Process, Shard, Stream, Sync


class Violation(Exception):
    """The promise is broken. What stands before the colon says how."""


class Promise:
    """What one client was sent, what it is owed, and whether that fits."""

    def __init__(self, env: Env, shards: Sequence[Shard], ask: Ask) -> None:
        self.env, self.shards, self.ask = env, shards, ask
        self.at: dict[int, Place] = {}  # by shard, where its cursor is; a shard that isn't named owes nothing
        self.seen: list[Event] = []
        self.excused: set[Event] = set()  # was before its time, or was told as lost
        self.dropped = False  # after a reset, until the first event: a gap is told of each topic, whatever is missing
        self.gaps_due = 0  # before the next event
        self.told: set[Gap] = set()  # on this connection
        self.connected()

    def copy(self) -> Promise:
        """The same client's, if it goes on twice from here."""
        other = copy(self)
        other.at, other.seen = self.at.copy(), self.seen.copy()
        other.excused, other.told, other.before_newest = self.excused.copy(), self.told.copy(), self.before_newest.copy()
        return other

    # What the client does

    def connected(self) -> None:
        """With `k`, the newest as of now are owed. And what was claimed before a loss isn't judged; but now there is a new start."""
        self.losses = self._losses()
        self.gaps_due, self.told = 0, set()
        self.before_newest: set[Event] = set()
        if self.ask.k and not self.at:
            newest = [event for topic in self.ask.topics for event in self._retained(topic)[-self.ask.k :]]
            self.before_newest = set(self._ever()).difference(newest)

    def choose(self, topics: str) -> None:
        """Other topics from now on, by the same cursor: of a new one, what comes after its place."""
        added = set(topics).difference(self.ask.topics)
        self.ask = self.ask._replace(topics=topics)
        for shard, place in self.at.items():
            self._begin(shard, place, added)

    # What it gets

    def hello(self, hello: Hello) -> None:
        self._greet(hello.resume, page=False)
        self.moved(hello.cursor)

    def page(self, page: Page) -> None:
        self._greet(page.resume, page=True)
        for gap in page.gaps:
            self.gap(gap)
        for event in page.events:
            self.event(event)
        if self.gaps_due or (page.gaps and page.resume not in ("gap", "reset")):
            raise Violation(f"wrong resume: {page}")
        self.moved(page.cursor)

    def begins_at(self, cursor: Cursor) -> None:
        """It asks for a place itself."""
        self._go_to(cursor)

    def moved(self, cursor: Cursor) -> None:
        """A cursor reached the client, so it holds all up to there; a shard that it names newly begins there."""
        for shard in self.env.shape.shards_of(self.ask.topics):
            if cursor.places[shard] == EARLIEST != self.at.get(shard):
                raise Violation(f"earliest: {cursor}, which nobody asked for")
        self._go_to(cursor)

    def _go_to(self, cursor: Cursor) -> None:
        self.at = {shard: place for shard, place in self.at.items() if cursor.places[shard]}
        self.seen = [event for event in self.seen if cursor.places[self._shard(event)]]
        for shard, place in enumerate(cursor.places):
            if place is None:
                continue
            if shard not in self.at:
                self._begin(shard, place, self.ask.topics)
            elif place.id < self.at[shard].id and self._holds(shard, self.at[shard]):
                raise Violation(f"cursor went back: from {self.at[shard]} to {place}")
            self.at[shard] = place

    def gap(self, gap: Gap) -> None:
        shard = self.env.shape.shard_of(gap.topic)
        if gap in self.told and gap.first_n is not None:
            raise Violation(f"told twice: {gap}")
        self.told.add(gap)
        place, retained = self.at.get(shard, EARLIEST), self._retained(gap.topic)
        after = [e for e in self.shards[shard].log.ever if e.topic == gap.topic and e.place.id > place.id]
        gone = [e for e in after if (e not in retained if gap.first_n is None else e.n < gap.first_n)]
        if self._is_of_this_log(gap, shard):
            self._check_gap(gap, place, gone)
        self.excused.update(gone)
        self.gaps_due = max(0, self.gaps_due - 1)

    def event(self, event: Event) -> None:
        shard = self._shard(event)
        before, ever = [e for e in self.seen if self._shard(e) == shard], self.shards[shard].log.ever
        if not self.ask.wants(event):
            raise Violation(f"not asked for: {event}")
        if self.gaps_due:
            raise Violation(f"untold: {event} before a gap")
        if event in before:
            raise Violation(f"twice: {event}")
        if event in ever and (lost := [e for e in before if e not in ever]):
            raise Violation(f"no reset: {event} after {lost}, which the log lost")
        if before and before[-1].place.id >= event.place.id:
            raise Violation(f"out of order: {before[-1]}, then {event}")
        self.seen.append(event)
        self.dropped = False

    # What happens to the log

    def life_over(self, shard: int, topic: str) -> None:
        """The earliest is whatever is there when one looks: a life that ended before that was never promised."""
        if self.at.get(shard) == EARLIEST:
            self.excused.update(event for event in self._ever() if event.topic == topic)

    # Whether it fits

    def settled(self, how: str) -> None:
        """The client has caught up: it has, or was told of, all that it is owed, and has nothing that the log lost."""
        for event in self._ever():
            owed = self.ask.wants(event) and self._shard(event) in self.at and event not in self.excused
            if owed and event not in self.seen:
                raise Violation(f"missing: {event} ({how}, at {self.at})")
        if kept := [event for event in self.seen if event not in self.shards[self._shard(event)].log.ever]:
            raise Violation(f"kept without a reset: {kept[0]} ({how}, at {self.at})")

    def _greet(self, resume: model.Resume, page: bool) -> None:
        if resume == "reset":
            self._check_reset(page)
            self.at, self.seen, self.excused, self.told, self.dropped = {}, [], set(), set(), True
            if not self.ask.k:
                self.begins_at(model.earliest(self.env.shape, self.ask))
        elif resume == "new" and not self.at:
            self.excused |= self.before_newest
        self.gaps_due = {"gap": 1, "reset": len(self.ask.topics)}.get(resume, 0)

    def _check_reset(self, page: bool) -> None:
        """Honest if a place isn't one of the log any more, or is too old to tell."""
        lost = any(not self._holds(shard, place) for shard, place in self.at.items())
        old = any(self._old(place) for place in self.at.values())
        # A stream's places may be ahead of the client's, or come from a hub that doesn't know yet of a loss, however old.
        lost_ahead = not page and self._losses() > 0
        if not (lost or old or lost_ahead):
            raise Violation(f"false reset: at {self.at}")

    def _check_gap(self, gap: Gap, place: Place, gone: Sequence[Event]) -> None:
        shard = self.env.shape.shard_of(gap.topic)
        told, retained = f"{gap} at {place}", [event for event in gone if event in self._retained(gap.topic)]
        if retained and not (self.dropped and self.ask.k):
            raise Violation(f"gap over a retained event: {told}, {retained[0]}")
        if gap.oldest and gap.first_n not in [event.n for event in self._ever() if event.place == gap.oldest]:
            raise Violation(f"wrong first number: {told}")
        if gap.lost is None:
            # No server's clock is ahead of this one, and what is untraced stays so.
            if not (gone or self.dropped or place == EARLIEST or self.shards[shard].log.untraced(self.env.now, place)):
                raise Violation(f"false gap: {told}")
            return
        # What a filter hid may lie between the client's place and the reader's.
        wanted = [event for event in gone if self.ask.wants(event) and event not in self.excused]
        if not (len(wanted) if self.ask.only else len(gone)) <= gap.lost <= len(gone):
            raise Violation(f"wrong number: {told}, {len(gone)} are gone")

    def _is_of_this_log(self, gap: Gap, shard: int) -> bool:
        """The read may be an older one than this connection, if another stream had begun it."""
        if self._losses() != self.losses:
            return False
        return self._holds(shard, gap.oldest) if gap.oldest else not self.shards[shard].losses

    def _begin(self, shard: int, place: Place, topics: Iterable[str]) -> None:
        """Owed from here on: what comes after a place, and from the earliest what is there now or comes."""
        log = self.shards[shard].log
        for event in log.ever:
            if place == EARLIEST:
                head = log.heads.get(event.topic)
                owed = head is not None and event.n >= head.first_n
            else:
                owed = event.place.id > place.id
            if event.topic in topics and not owed:
                self.excused.add(event)

    def _shard(self, event: Event) -> int:
        return self.env.shape.shard_of(event.topic)

    def _ever(self) -> list[Event]:
        logs = [self.shards[shard].log for shard in self.env.shape.shards_of(self.ask.topics)]
        return [event for log in logs for event in log.ever if event.topic in self.ask.topics]

    def _retained(self, topic: str) -> tuple[Event, ...]:
        return self.shards[self.env.shape.shard_of(topic)].log.streams.get(topic, ())

    def _losses(self) -> int:
        return sum(self.shards[shard].losses for shard in self.env.shape.shards_of(self.ask.topics))

    def _old(self, place: Place) -> bool:
        return place.id[0] < self.env.now - OLD_MS  # no server's clock is ahead of this one

    def _holds(self, shard: int, place: Place) -> bool:
        ever = self.shards[shard].log.ever
        return place == EARLIEST or any(e.place.epoch == place.epoch and e.place.id >= place.id for e in ever)


Heard = tuple[object, ...]


def heard(data: Hello | Gap | Event | Sync | Bye) -> Heard:
    """What is the same in any relay that was asked the same: without ids, which hold times and random epochs."""
    match data:
        case Hello(resume, _):
            return "hello", resume
        case Gap(topic, lost, first_n, _):
            return "gap", topic, lost, first_n
        case Event():
            return "event", data.topic, data.n, data.name, data.data
        case Sync():
            return ("sync",)
        case Bye(reason):
            return "bye", reason


class Client:
    """A browser or a poller, or the one after the other. `heard` is all that it was told, in order."""

    def __init__(self, env: Env, shards: Sequence[Shard], ask: Ask) -> None:
        self.env, self.shards, self.ask = env, shards, ask
        self.promise = Promise(env, shards, ask)
        self.cursor: Cursor | None = None
        self.stream: Stream | None = None
        self.wire: list[Frame] = []
        self.greeted = False
        self.heard: list[Heard] = []

    def choose(self, topics: str) -> None:
        self.cut()
        self.ask = self.ask._replace(topics=topics)
        self.promise.choose(topics)

    def connect(self, process: Process, earliest: bool) -> None:
        self.cut()
        self.promise.connected()
        if earliest and not self.cursor:
            self.cursor = model.earliest(self.env.shape, self.ask)
            self.promise.begins_at(self.cursor)
        self.stream = Stream(process, self.ask, self.cursor, self.wire)

    def cut(self) -> None:
        """What was on its way is lost."""
        if self.stream:
            self.stream.leave()
        self.stream, self.wire, self.greeted = None, [], False

    def ended(self) -> None:
        """The server ended the stream. What it had sent may still come."""
        self.stream = None

    def take(self, most: int) -> list[Frame]:
        frames = self.wire[:most]
        del self.wire[:most]
        for frame in frames:
            self.receive(frame)
        return frames

    def receive(self, frame: Frame) -> None:
        """A frame of the stream, of this relay or another."""
        self.heard.append(heard(frame.data))
        match frame.data:
            case Hello() as hello:
                self.promise.hello(hello)
            case Bye():
                pass
            case _ if not self.greeted:
                raise Violation(f"no hello: {frame}")
            case Gap() as gap:
                self.promise.gap(gap)
            case Event() as event:
                self.promise.event(event)
        self.greeted = True
        if frame.id:
            self.promise.moved(frame.id)
            self.cursor = frame.id

    def poll(self, limit: int, answer_lost: bool) -> Page:
        """An answer may get lost, after which the same is asked again."""
        self.cut()
        self.promise.connected()
        page = model.page(self.env, self.shards, self.ask, self.cursor, limit)
        if not answer_lost:
            self.receive_page(page)
        return page

    def receive_page(self, page: Page) -> None:
        self.heard += [("page", page.resume), *map(heard, page.gaps), *map(heard, page.events)]
        self.promise.page(page)
        self.cursor = page.cursor

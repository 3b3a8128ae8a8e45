"""The relay's rules as a program: one log, its tails, streams and pages; without I/O, and with neither clock nor chance of its own.

The rules, by the names that the faults below use:

Append     One script: a known idempotency key gets its first answer; else the event takes the shard's next count `s` and the topic's
           next number `n`, both dense; its id is `max(now, the shard's last ms)-s`; it goes to the shard's journal and to the
           topic's stream with `p`, the id of the topic's previous event (0-0 for the first of a life). Then both are trimmed, by
           whole nodes.
Place      An epoch and an id in a shard's journal. Two places are equal only if both are. A cursor is a place for each shard, and
           on a single topic its number there, which counts for that topic only. A shard that it doesn't name starts at now.
Reset      An epoch begins at the first contact with a shard, so that its end is a place even where nothing was ever published: the
           earliest is no end. It ends when the log finds itself on another server, or in another life of one; and when a tail sees
           the count go back within it, since an older copy may come into a server's one life. A place is valid if its epoch is the
           present one and neither its time nor its count is beyond the last, or beyond where its past epoch was closed. Else
           everything starts over, in all shards of that stream or page.
Gap        After a place, what is read of a topic is complete exactly if the first entry's `p` isn't beyond the place (with no
           entry: the topic's last id). Else a gap is told, with the number lost where numbers of one life allow it. A topic's
           head outlives its events, but not for ever: a cursor that is older than heads live for certain is told a gap of unknown
           size; unless nothing came after it, or the journal still has the entry right behind it, which is younger than that.
Tail       One reader per shard and process goes on from the end, read once, by its own place. It expects the next `s`; at an empty
           block and at an entry of another epoch it asks whether its place is valid, and at an empty block whether it is the end.
           If something is wrong it goes to the end with an empty ring, and every reader finds out for itself.
Audiences  Readers with the same topics and filter get one chunk per batch, all their topics in journal order.
Live       A reader is live (its place equals the hub's) or behind (it has its own); it joins behind. Who is behind goes on by its
           own place: from the ring if that is an entry of it or the one just before, else from the log. Who has read the log to
           its end and still isn't where the hub is looks again after any step that the tail took since that read began. Equal
           reads are done once. Who begins at now has the topic's number as the tail knows it, by an event. What number a client
           says is for that client alone: it may say any.
Fan-out    A batch goes to the live only. A send that finds the one before unfinished makes its reader behind; nothing is skipped.
Pages      A page's cursor is the smallest place to which a topic was read, if it wasn't read to its end; nothing beyond it is
           delivered.
Contract   A hello's id is the place resumed from; a gap's, on a single topic, the place before the oldest retained event. On
           several topics a gap has none, and is told once on a connection. A bye's id is where its client was led so far.

Read it from the top: values, the log, the tail, a stream, a page. What a relay sends is a `Frame` or a `Page`, and holds only what
is on the wire; whether that was right is judged in `promise`, by `Log.ever`, which no relay has.

`FAULTS` names the ways to break a rule on purpose. Each is a condition here, and `test_rules` shows that the judge notices it.

Assumed: connections don't outlive their process; no two servers of a shard have clocks half a retention apart.
Left out: sealing, bytes and their limits, denials, leases, `wait`, and a shard of which only a part is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import count
from typing import Literal, NamedTuple

RETENTION_MS = 20
IDEMPOTENCY_MS = RETENTION_MS
OLD_MS = 2 * RETENTION_MS
HEAD_MS = 3 * RETENTION_MS  # half a retention of skew on either side, and a cursor is old before the head that it needs is gone
EPOCH_MS = 3 * RETENTION_MS

FAULTS = {
    "numbers-restart": "Append: a topic's new life counts from 1",
    "ids-follow-the-clock": "Append: an id has the server's time, whatever the last one was",
    "key-unread": "Append: a known idempotency key appends again",
    "key-reused": "Append: a known key answers for whatever is published under it",
    "equal-by-id": "Place: a reader is live where its id is the hub's, whatever the epochs",
    "empty-ends-at-earliest": "Reset: a shard without events has no epoch, and its end is the earliest place",
    "number-of-another-topic": "Place: the cursor's number is taken for whatever topic is asked",
    "any-epoch": "Reset: a place is valid if its id isn't beyond the last one",
    "present-epoch-only": "Reset: a place in a past epoch isn't valid",
    "rewound-epoch-goes-on": "Reset: an older copy of the log that comes into a server's one life goes on with its epoch",
    "one-shard-resets": "Reset: the other shards stay where they are",
    "p-unread": "Gap: nobody looks at what came before the first entry",
    "lost-across-lives": "Gap: numbers of two lives of a topic are subtracted",
    "lost-below-nothing": "Gap: whatever number a client says is subtracted",
    "short-heads": "Gap: a topic's head dies with its events",
    "quiet-cursors-doubted": "Gap: a cursor's age alone counts, whether or not anything came after it",
    "old-cursors-trusted": "Gap: nobody looks at a cursor's age",
    "tail-from-newest": "Tail: after a batch it goes on from the newest entry, as with `$`",
    "tail-uncounted": "Tail: it doesn't expect the next `s`",
    "tail-place-unchecked": "Tail: it never asks whether its place is valid",
    "tail-epoch-unchecked": "Tail: it asks at empty blocks only, not at an entry of another epoch",
    "tail-end-unchecked": "Tail: where nothing comes, it never asks whether its place is the end",
    "return-keeps-live": "Tail: when it goes to the end, who is live stays so",
    "return-keeps-ring": "Tail: when it goes to the end, the ring stays",
    "topic-by-topic": "Audiences: a chunk has one topic after the other",
    "audience-unfiltered": "Audiences: readers with other filters share a chunk",
    "joins-live": "Live: a reader that brings a place joins as live",
    "claims-are-shared": "Live: the number that a reader brings is its audience's, if that has none",
    "live-when-ahead": "Live: who isn't behind the hub is live",
    "ahead-waits-for-events": "Live: who is ahead looks again after batches only",
    "steps-from-landing": "Live: who is ahead misses the steps that the tail took during its read",
    "ring-unchecked": "Live: the ring serves any place that isn't older than it",
    "ring-repeats": "Live: the ring gives the entry at the reader's own place again",
    "shared-read-jumps": "Live: after a read, shared or not, a reader is where the hub is",
    "slow-skipped": "Fan-out: a chunk for which there is no room is left out",
    "page-at-last": "Pages: the cursor is the journal's last place, whatever was read",
    "page-past-cursor": "Pages: all that was read is delivered, beyond the cursor too",
    "hello-without-id": "Contract: a hello has no id",
    "hello-at-tail": "Contract: a hello's id is the hub's place",
    "hello-after-k": "Contract: with `k`, the hello's id is the place after the newest k",
    "gap-at-oldest": "Contract: a gap's id is the oldest retained event's own",
    "gap-repeated": "Contract: each read of a catching-up stream tells the same gap again",
    "reset-untold": "Contract: a reset tells no gap of each topic",
    "bye-in-reset": "Contract: a bye's id is a place that its reader is reset to, before the client was told of the reset",
    "bye-at-tail": "Contract: a bye's id is the hub's place",
}

Id = tuple[int, int]
"""ms, s"""

Resume = Literal["new", "exact", "gap", "reset"]


# Values, as they are on the wire


class Place(NamedTuple):
    """Compared by `id` once it is known to be valid; equal only as a whole."""

    epoch: int
    id: Id

    def before(self) -> Place:
        """The place just before an entry. `s` is dense, so nothing need be looked up; it may be no entry's own."""
        ms, s = self.id
        return Place(self.epoch, (ms, s - 1))


EARLIEST = Place(0, (0, 0))
"""Any epoch accepts it. No journal ends here, not even an empty one."""


class Event(NamedTuple):
    """An entry of the journal and, under the same id, of its topic's stream."""

    place: Place
    topic: str
    n: int
    p: Id
    name: str
    data: int


class Cursor(NamedTuple):
    """What a client keeps. `topic` stands for the tag that says whose number `n` is."""

    places: tuple[Place | None, ...]
    topic: str | None = None
    n: int | None = None


class Ask(NamedTuple):
    """What a client asks for. A topic is a letter, so several are a string of them; `only` is the events filter."""

    topics: str
    only: str | None = None
    k: int = 0

    def wants(self, event: Event) -> bool:
        return event.topic in self.topics and self.only in (None, event.name)


class Gap(NamedTuple):
    """With nothing retained, `first_n` is the number that comes next, if there is still a head to tell it, and `oldest` is None."""

    topic: str
    lost: int | None
    first_n: int | None
    oldest: Place | None


class Hello(NamedTuple):
    resume: Resume
    cursor: Cursor


class Sync(NamedTuple):
    cursor: Cursor


class Bye(NamedTuple):
    reason: str


class Frame(NamedTuple):
    """A block of a stream."""

    id: Cursor | None
    data: Hello | Gap | Event | Sync | Bye


class Page(NamedTuple):
    events: tuple[Event, ...]
    cursor: Cursor
    more: bool
    resume: Resume
    gaps: tuple[Gap, ...]


class Shape(NamedTuple):
    """The sizes of a world. Small ones, since most faults show at an edge."""

    topics: str = "ABCD"
    shards: int = 1
    processes: int = 1
    journal_events_max: int = 200
    stream_events_max: int = 50
    ring_events_max: int = 50
    node_events: int = 1
    clients: tuple[Ask, ...] = (Ask("A"),)

    def shard_of(self, topic: str) -> int:
        return ord(topic) % self.shards

    def shards_of(self, topics: str) -> list[int]:
        return sorted({self.shard_of(topic) for topic in topics})


@dataclass
class Env:
    """What lies outside of the rules: sizes, the time, what is random in a real relay, and the faults."""

    shape: Shape
    faults: frozenset[str] = frozenset()
    now: int = 100
    tokens: Iterator[int] = field(default_factory=lambda: count(1))


# Append, Reset, Gap: the log


class Draft(NamedTuple):
    """What a publisher sends."""

    topic: str
    name: str
    data: int = 0
    key: str | None = None


class Appended(NamedTuple):
    place: Place
    n: int
    outcome: Literal["new", "duplicate", "reused"]


class Head(NamedTuple):
    """What is known of a topic when its events are gone."""

    n: int
    last: Id
    first_n: int  # of this life
    renewed: int  # by the clock of the server that appended


class Known(NamedTuple):
    """What is kept under an idempotency key."""

    draft: Draft
    place: Place
    n: int
    stored: int


class Read(NamedTuple):
    """What a shard answers: events above `start` up to `end`, and what is missing among them."""

    start: Place
    end: Place
    n: int | None  # the topic's number at `end`, if the shard was asked for one topic
    events: tuple[Event, ...]
    gaps: tuple[Gap, ...]
    last: Place  # the journal's, from the same script

    @property
    def more(self) -> bool:
        return self.end.id < self.last.id


class Log:
    """One shard: journal, topics and heads, with the scripts that append and read.

    `now` and `replid` are what TIME and INFO tell a script. Values are replaced, never changed, so that a shallow copy is a replica.
    """

    def __init__(self, env: Env) -> None:
        self.env = env
        self.s, self.last = 0, EARLIEST.id
        self.epoch, self.replid = 0, 0
        self.closed: Mapping[int, tuple[Id, int]] = {}  # a past epoch's last id, and when it was closed
        self.journal: tuple[Event, ...] = ()
        self.streams: Mapping[str, tuple[Event, ...]] = {}
        self.heads: Mapping[str, Head] = {}
        self.keys: Mapping[tuple[str, str], Known] = {}
        self.ever: tuple[Event, ...] = ()  # all that was appended to this log as it is now: for the judge alone

    def copy(self) -> Log:
        return copy(self)

    def end(self) -> Place:
        """The journal's last place."""
        return Place(self.epoch, self.last)

    def meet(self, now: int, replid: int) -> None:
        """The first contact, of whoever it is."""
        if not self.epoch and "empty-ends-at-earliest" not in self.env.faults:
            self._open_epoch(now, replid)
            self.last = (now, self.s)

    def append(self, now: int, replid: int, draft: Draft) -> Appended:
        known = self.keys.get((draft.topic, draft.key)) if draft.key else None
        if known and "key-unread" not in self.env.faults:
            same = known.draft == draft or "key-reused" in self.env.faults
            return Appended(known.place, known.n, "duplicate" if same else "reused")
        if not self.epoch or self.replid != replid:
            self._open_epoch(now, replid)
        event = self._write(now, draft)
        if draft.key:
            self.keys = {**self.keys, (draft.topic, draft.key): Known(draft, event.place, event.n, now)}
        return Appended(event.place, event.n, "new")

    def _open_epoch(self, now: int, replid: int) -> None:
        if self.epoch:
            closed = {**self.closed, self.epoch: (self.last, now)}
            self.closed = {epoch: (last, at) for epoch, (last, at) in closed.items() if at + EPOCH_MS > now}
        self.epoch, self.replid = next(self.env.tokens), replid

    def _write(self, now: int, draft: Draft) -> Event:
        topic, head, faults, shape = draft.topic, self.heads.get(draft.topic), self.env.faults, self.env.shape
        self.s += 1
        ms = now if "ids-follow-the-clock" in faults else max(now, self.last[0])
        self.last = (ms, self.s)
        # A topic without a head goes on from the shard's count, which is higher than any number it had.
        n = head.n + 1 if head else self.s if "numbers-restart" not in faults else 1
        event = Event(self.end(), topic, n, head.last if head else EARLIEST.id, draft.name, draft.data)
        self.ever += (event,)
        self.journal = self._trimmed((*self.journal, event), shape.journal_events_max)
        stream = self._trimmed((*self.streams.get(topic, ()), event), shape.stream_events_max)
        self.streams = {**self.streams, topic: stream}
        self.heads = {**self.heads, topic: Head(n, self.last, head.first_n if head else n, now)}
        return event

    def _trimmed(self, events: tuple[Event, ...], events_max: int) -> tuple[Event, ...]:
        """Less what is too much or too old, but only whole nodes of it: what MAXLEN ~ and MINID ~ leave."""
        aged = sum(event.place.id[0] < self.last[0] - RETENTION_MS for event in events)
        surplus, node = max(0, aged, len(events) - events_max), self.env.shape.node_events
        return events[surplus // node * node :]

    def expire(self, now: int) -> list[str]:
        """What the server does by itself to keys that weren't renewed. Returns the topics whose life is over."""
        head_ms = RETENTION_MS if "short-heads" in self.env.faults else HEAD_MS
        idle = [topic for topic, head in self.heads.items() if head.renewed + RETENTION_MS <= now]
        over = [topic for topic in idle if self.heads[topic].renewed + head_ms <= now]
        if any(topic in self.streams for topic in idle):
            self.streams = {topic: stream for topic, stream in self.streams.items() if topic not in idle}
        if over:
            self.heads = {topic: head for topic, head in self.heads.items() if topic not in over}
        if any(known.stored + IDEMPOTENCY_MS <= now for known in self.keys.values()):
            self.keys = {key: known for key, known in self.keys.items() if known.stored + IDEMPOTENCY_MS > now}
        return over

    def valid(self, place: Place) -> bool:
        """Whether all up to here is still in this log or was trimmed from it, and isn't lost."""
        if place == EARLIEST:
            return True
        if place.epoch == self.epoch or "any-epoch" in self.env.faults:
            return within(place.id, self.last)
        if "present-epoch-only" in self.env.faults or place.epoch not in self.closed:
            return False
        return within(place.id, self.closed[place.epoch][0])

    def end_rewound(self, now: int, replid: int, known: Place) -> None:
        """Ends the epoch in which the log had been further, up to a place that somebody knows."""
        if known.epoch == self.epoch and not within(known.id, self.last) and "rewound-epoch-goes-on" not in self.env.faults:
            self._open_epoch(now, replid)

    def read(self, now: int, place: Place, n: int | None, topics: str, most: int, anew: bool = False) -> Read | None:
        """Up to `most` entries of each topic after a place, or None for a reset. `n` is the cursor's number, if it has one.

        `anew` is for a client that has dropped its state: it is told of each topic what is the first that it can get.
        """
        if not self.valid(place):
            return None
        after = {topic: self._after(topic, place) for topic in topics}
        gaps = [self._gap(now, place, n, topic, after[topic], anew) for topic in topics]
        unfinished = [entries[most - 1].place for entries in after.values() if len(entries) > most]
        if not unfinished or "page-at-last" in self.env.faults:
            end = self.end()
        else:
            end = min(unfinished, key=lambda each: each.id)
        events = sorted((e for entries in after.values() for e in entries[:most]), key=lambda e: e.place.id)
        if "page-past-cursor" not in self.env.faults:
            events = [e for e in events if e.place.id <= end.id]
        number = self._number(topics, n, events, end)
        return Read(place, end, number, tuple(events), tuple(gap for gap in gaps if gap), self.end())

    def newest(self, topics: str, k: int) -> Read:
        """The newest k of each topic, and the place before the oldest of them."""
        newest = {topic: self.streams.get(topic, ())[-k:] for topic in topics}
        events = sorted((e for entries in newest.values() for e in entries), key=lambda e: e.place.id)
        start = events[0].place.before() if events else self.end()
        gaps = tuple(self._first(topic, entries) for topic, entries in newest.items())
        return Read(start, self.end(), self._number(topics, None, events, self.end()), tuple(events), gaps, self.end())

    def _after(self, topic: str, place: Place) -> tuple[Event, ...]:
        return tuple(event for event in self.streams.get(topic, ()) if event.place.id > place.id)

    def _first(self, topic: str, entries: Sequence[Event]) -> Gap:
        head = self.heads.get(topic)
        if entries:
            return Gap(topic, None, entries[0].n, entries[0].place)
        return Gap(topic, None, head.n + 1 if head else None, None)

    def _gap(self, now: int, place: Place, n: int | None, topic: str, entries: Sequence[Event], anew: bool) -> Gap | None:
        head, gap, faults = self.heads.get(topic), self._first(topic, entries), self.env.faults
        came_before = entries[0].p if entries else head.last if head else EARLIEST.id
        begins_a_life = came_before == EARLIEST.id
        old = place not in (EARLIEST, self.end()) and place.id[0] < now - OLD_MS
        untraced = old if "quiet-cursors-doubted" in faults else self.untraced(now, place)
        if anew or (begins_a_life and untraced and "old-cursors-trusted" not in faults):
            return gap
        if came_before <= place.id or "p-unread" in faults:
            return None
        if head and n is not None and gap.first_n and self._can_be(n, head, gap.first_n):
            return gap._replace(lost=gap.first_n - 1 - n)
        return gap

    def _can_be(self, n: int, head: Head, first_n: int) -> bool:
        """Whether a client may have counted so far in this life, and be told that something after it is gone."""
        least, most = head.first_n - 1, first_n - 2
        return (n >= least or "lost-across-lives" in self.env.faults) and (n <= most or "lost-below-nothing" in self.env.faults)

    def untraced(self, now: int, place: Place) -> bool:
        """Whether something may have come after a place and gone, of which nothing is left, no head either."""
        if place == EARLIEST or place.id[0] >= now - OLD_MS or place.id[1] >= self.last[1]:
            return False
        behind = [event.place.id for event in self.journal if event.place.id > place.id]
        return not behind or behind[0][1] > place.id[1] + 1 or behind[0][0] < now - OLD_MS

    def _number(self, topics: str, n: int | None, events: Sequence[Event], end: Place) -> int | None:
        head = self.heads.get(topics)
        if head and head.last <= end.id:
            return head.n
        return events[-1].n if events and len(topics) == 1 else n


def within(id: Id, last: Id) -> bool:
    """Whether an id is no later than the last one of the same epoch, in which both its time and its count only grow."""
    return id[0] <= last[0] and id[1] <= last[1]


class Shard:
    """A log and the server that it is on now: its clock and its `master_replid`."""

    def __init__(self, env: Env, number: int) -> None:
        self.env, self.number = env, number
        self.log = Log(env)
        self.replica = self.log.copy()
        self.replid, self.clock_off_ms = next(env.tokens), 0
        self.losses = 0  # how often something that had been appended was lost: for the judge alone

    def now(self) -> int:
        return self.env.now + self.clock_off_ms

    def append(self, draft: Draft) -> Appended:
        return self.log.append(self.now(), self.replid, draft)

    def end(self) -> Place:
        self.log.meet(self.now(), self.replid)
        return self.log.end()

    def read(self, place: Place, n: int | None, topics: str, most: int, anew: bool = False) -> Read | None:
        self.log.meet(self.now(), self.replid)
        return self.log.read(self.now(), place, n, self._own(topics), most, anew)

    def newest(self, topics: str, k: int) -> Read:
        self.log.meet(self.now(), self.replid)
        return self.log.newest(self._own(topics), k)

    def _own(self, topics: str) -> str:
        return "".join(topic for topic in topics if self.env.shape.shard_of(topic) == self.number)

    def replicate(self) -> None:
        self.replica = self.log.copy()

    def restart(self, clock_off_ms: int) -> None:
        """The same disk, another life of the server."""
        self.replid, self.clock_off_ms = next(self.env.tokens), clock_off_ms

    def failover(self, clock_off_ms: int) -> None:
        """What the replica hadn't got is lost."""
        self._now_holds(self.replica)
        self.restart(clock_off_ms)

    def end_rewound(self, known: Place) -> None:
        self.log.end_rewound(self.now(), self.replid, known)

    def rewind(self) -> None:
        """An older copy comes into the server's one life, as where a machine goes on from a snapshot."""
        self._now_holds(self.replica)

    def flush(self) -> None:
        """FLUSHALL: everything is gone, and the server is still the same."""
        self._now_holds(Log(self.env))

    def lose(self, clock_off_ms: int) -> None:
        """A start with an empty disk."""
        self.flush()
        self.restart(clock_off_ms)

    def _now_holds(self, log: Log) -> None:
        self.losses += len(log.ever) < len(self.log.ever)
        self.log = log.copy()
        self.replicate()


# Tail, Audiences: one process


class Hub:
    """One shard's tail in one process: its place, and the ring of what it read last."""

    def __init__(self, process: Process, shard: Shard) -> None:
        self.process, self.shard, self.faults = process, shard, process.env.faults
        self.place = shard.end()
        self.base = self.place  # just before the ring
        self.ring: tuple[Event, ...] = ()
        self.numbers: dict[str, int] = {}  # by topic, at this place, where it is known
        self.left: dict[int, Place] = {}  # by epoch, how far it had been when it went to the end
        self.steps = 0

    def step(self, most: int) -> None:
        """XREAD returned: up to `most` entries, or none. After a reconnect too what is read next tells."""
        batch = tuple(event for event in self.shard.log.journal if event.place.id > self.place.id)[:most]
        if batch or "ahead-waits-for-events" not in self.faults:
            self.steps += 1
        if self._astray(batch):
            self._return_to_end()
        elif batch:
            self._take(batch)

    def _astray(self, batch: Sequence[Event]) -> bool:
        """Whether the next entry isn't the one after this place, or this place isn't one of the log any more.

        The count alone isn't enough: after FLUSHALL the new log may have reached `s + 1`.
        """
        if batch and batch[0].place.id[1] != self.place.id[1] + 1 and "tail-uncounted" not in self.faults:
            return True
        if not batch and self.place != self.shard.end() and "tail-end-unchecked" not in self.faults:
            return True
        doubtful = not batch or (batch[0].place.epoch != self.place.epoch and "tail-epoch-unchecked" not in self.faults)
        return doubtful and not self.shard.log.valid(self.place) and "tail-place-unchecked" not in self.faults

    def _return_to_end(self) -> None:
        self.numbers = {}
        if "return-keeps-live" not in self.faults:
            for stream in self.process.live(self.shard.number):
                stream.live = False
        if self.place.epoch not in self.left or within(self.left[self.place.epoch].id, self.place.id):
            self.left[self.place.epoch] = self.place
        self.place = self.shard.end()
        if self.place.epoch in self.left:
            self.shard.end_rewound(self.left[self.place.epoch])
            self.place = self.shard.end()
        if "return-keeps-ring" not in self.faults:
            self.base, self.ring = self.place, ()

    def _take(self, batch: tuple[Event, ...]) -> None:
        chunks: dict[Ask, list[Frame]] = {}
        for stream in self.process.live(self.shard.number):
            audience = stream.ask._replace(k=0, only=None if "audience-unfiltered" in self.faults else stream.ask.only)
            if audience not in chunks:  # made once: all who are live have the same places, in the other shards too
                ordered = sorted(batch, key=lambda e: e.topic) if "topic-by-topic" in self.faults else batch
                chunks[audience] = stream.frames(self.shard.number, ordered)
            stream.push(self.shard.number, chunks[audience], batch)
        self.place = self.shard.log.end() if "tail-from-newest" in self.faults else batch[-1].place
        self.numbers |= {event.topic: event.n for event in batch}
        self._keep(batch)

    def _keep(self, batch: tuple[Event, ...]) -> None:
        self.ring += batch
        surplus = len(self.ring) - self.process.env.shape.ring_events_max
        if surplus > 0:
            self.base, self.ring = self.ring[surplus - 1].place, self.ring[surplus:]

    def after(self, place: Place) -> tuple[Event, ...]:
        """What the ring has after a place that is an entry of it or the one just before; else nothing."""
        if "ring-unchecked" in self.faults:
            return tuple(e for e in self.ring if e.place.id > place.id) if place.id >= self.base.id else ()
        places = [self.base, *(event.place for event in self.ring)]
        if place not in places:
            return ()
        at = places.index(place)
        return self.ring[at - 1 if at and "ring-repeats" in self.faults else at :]


class Fetch(NamedTuple):
    """A read of the log under way, for one or several streams."""

    key: object
    reads: Mapping[int, Read | None]
    steps: Mapping[int, int]  # the hubs', when it began


class Process:
    """A relay process: a hub for each shard, its streams, and the reads that they share."""

    def __init__(self, env: Env, shards: Sequence[Shard]) -> None:
        self.env, self.shards = env, shards
        self.streams: list[Stream] = []
        self.fetches: dict[object, Fetch] = {}
        self.hubs = {shard.number: Hub(self, shard) for shard in shards}

    def live(self, shard: int) -> list[Stream]:
        return [stream for stream in self.streams if stream.live and shard in stream.places]

    def heartbeat(self) -> None:
        for stream in self.streams:
            stream.sync()

    def drain(self) -> None:
        for stream in self.streams.copy():
            stream.close("drain")


# Live, Fan-out: one stream


class Stream:
    """A reader's stream: first what the log holds, then what comes. `wire` is what was sent and its client hasn't taken."""

    def __init__(self, process: Process, ask: Ask, cursor: Cursor | None, wire: list[Frame]) -> None:
        self.process, self.ask, self.wire = process, ask, wire
        self.env, self.faults = process.env, process.env.faults
        self.hubs = {shard: process.hubs[shard] for shard in self.env.shape.shards_of(ask.topics)}
        self.live, self.greeted = False, False
        self.starts_over: Resume | None = None  # what the next read of the log is to be greeted as, if not as a resume
        self.fetch: Fetch | None = None
        self.looked: dict[int, int] = {}  # where a read met the journal's end: the hub's steps when it began
        self.told: dict[str, int] = {}  # by topic, the first retained number that a gap told
        self.n: int | None = None
        self.places = {shard: hub.place for shard, hub in self.hubs.items()}
        process.streams.append(self)
        self._join(cursor)

    def _join(self, cursor: Cursor | None) -> None:
        if cursor:
            self.places, self.n = resumed(cursor, self.ask, self.places, self.faults)
            if "joins-live" in self.faults:
                self.live = True
                self._hello("exact")
        elif self.ask.k:
            self.starts_over = "new"
            self._begin(self.ask.k, share=True)
        else:
            self.n = self._numbers.get(self.ask.topics)
            self._hello("new")

    @property
    def _numbers(self) -> dict[str, int]:
        return self.hubs[min(self.hubs)].numbers

    def cursor(self) -> Cursor:
        return self._cursor(self.places, self.n)

    def _cursor(self, places: Mapping[int, Place], n: int | None) -> Cursor:
        return cursor_of(self.env.shape, self.ask, places, n)

    def _at_tail(self) -> Cursor:
        return self._cursor({shard: hub.place for shard, hub in self.hubs.items()}, None)

    def _hello(self, resume: Resume) -> None:
        """Its id is the place resumed from, so that a client which is cut before its first event loses nothing."""
        self.greeted = True
        cursor = self._at_tail() if "hello-at-tail" in self.faults else self.cursor()
        self.wire.append(Frame(None if "hello-without-id" in self.faults else cursor, Hello(resume, cursor)))

    def frames(self, shard: int, events: Iterable[Event]) -> list[Frame]:
        """Events of the shard as this reader's audience gets them, each with the cursor after it."""
        return [Frame(self._cursor({**self.places, shard: event.place}, event.n), event) for event in events if self.ask.wants(event)]

    def _move(self, shard: int, events: Sequence[Event], end: Place) -> None:
        """The filter hides events, but they count."""
        numbers = [event.n for event in events if event.topic == self.ask.topics]
        self.n = numbers[-1] if numbers else self.n
        self.places[shard] = end

    def push(self, shard: int, chunk: Sequence[Frame], batch: Sequence[Event]) -> None:
        """A batch, to one who is live. Its chunk is under way even if the one before is: only what follows isn't sent."""
        unfinished = bool(self.wire)
        if unfinished and "slow-skipped" in self.faults:
            chunk, unfinished = (), False
        self.wire.extend(chunk)
        self._move(shard, batch, batch[-1].place)
        self.live = not unfinished

    def step(self, most: int, share: bool) -> None:
        """What one who is behind does next. Between two steps anything may happen."""
        if self.fetch:
            self._land(self.fetch)
            return
        if self.live or self.wire:
            return
        if self.starts_over or not (self._meet() or self._from_ring()):
            self._begin(most, share)

    def _meet(self) -> bool:
        """Live, if it is where the hub is. No await lies between the look and what follows from it."""
        self.live = all(self._met(place, self.hubs[shard].place) for shard, place in self.places.items())
        if self.live and not self.greeted:
            self._hello("exact")
        if self.live and self.n is not None and "claims-are-shared" in self.faults:
            self._numbers.setdefault(self.ask.topics, self.n)
        return self.live

    def _met(self, place: Place, hub: Place) -> bool:
        if "live-when-ahead" in self.faults:
            return place.id >= hub.id
        return place.id == hub.id if "equal-by-id" in self.faults else place == hub

    def _from_ring(self) -> bool:
        rings = {shard: events for shard, hub in self.hubs.items() if (events := hub.after(self.places[shard]))}
        elsewhere = [i for i, hub in self.hubs.items() if i not in rings and self.places[i] != hub.place]
        # The hello tells the worst of all shards, so the first frames wait for those that the log must answer for.
        if not rings or (elsewhere and not self.greeted):
            return False
        if not self.greeted:
            self._hello("exact")
        for shard, events in rings.items():
            self.wire += self.frames(shard, events)
            self._move(shard, events, self.hubs[shard].place)
        self._meet()
        return True

    def _begin(self, most: int, share: bool) -> None:
        """Read the log, in the shards where that may bring something: one that is ahead of the tail waits for its next step."""
        apart = [i for i, hub in self.hubs.items() if self.places[i] != hub.place and self.looked.get(i) != hub.steps]
        shards = list(self.hubs) if self.starts_over else apart
        if not shards:
            return
        key = (self.ask.topics, self.ask.k, self.starts_over, self.n, tuple((i, self.places[i]) for i in shards))
        if not share or key not in self.process.fetches:
            reads = {i: self._read(self.hubs[i].shard, most) for i in shards}
            self.process.fetches[key] = Fetch(key, reads, {i: self.hubs[i].steps for i in shards})
        self.fetch = self.process.fetches[key]

    def _read(self, shard: Shard, most: int) -> Read | None:
        if self.starts_over and self.ask.k:
            return shard.newest(self.ask.topics, self.ask.k)
        anew = bool(self.starts_over) and "reset-untold" not in self.faults
        return shard.read(self.places[shard.number], self.n, self.ask.topics, most, anew)

    def _land(self, fetch: Fetch) -> None:
        """A read is back. It may have been another's, and the hub may have moved since it began."""
        self.fetch = None
        if self.process.fetches.get(fetch.key) is fetch:
            del self.process.fetches[fetch.key]
        reads = {shard: read for shard, read in fetch.reads.items() if read}
        if len(reads) < len(fetch.reads):
            self._reset([shard for shard in fetch.reads if shard not in reads])
        else:
            self._tell(reads)
            self._send(reads, fetch.steps)
            self._meet()

    def _send(self, reads: Mapping[int, Read], steps: Mapping[int, int]) -> None:
        for shard, read in reads.items():
            hub = self.hubs[shard]
            self.wire += self.frames(shard, read.events)
            self._move(shard, read.events, hub.place if "shared-read-jumps" in self.faults else read.end)
            self.n = read.n if len(self.ask.topics) == 1 else None
            if not read.more:
                self.looked[shard] = hub.steps if "steps-from-landing" in self.faults else steps[shard]

    def _tell(self, reads: Mapping[int, Read]) -> None:
        """Hello, unless it was said, and what is missing, before anything else of the read."""
        starts_over, self.starts_over = self.starts_over, None
        gaps = [] if starts_over == "new" else [(shard, gap) for shard, read in reads.items() for gap in read.gaps]
        if starts_over and self.ask.k:
            self.places = {i: read.end if "hello-after-k" in self.faults else read.start for i, read in reads.items()}
            oldest = [read.events[0].n for read in reads.values() if read.events]
            self.n = oldest[0] - 1 if oldest else None
            self._hello(starts_over)
        elif not self.greeted:
            self._hello("gap" if gaps else "exact")
        for shard, gap in gaps:
            # On several topics the next read begins before the oldest retained event of this one, if another's has more to read.
            if gap.first_n is None or self.told.get(gap.topic) != gap.first_n or "gap-repeated" in self.faults:
                self._tell_gap(shard, gap, reads[shard].last)

    def _tell_gap(self, shard: int, gap: Gap, last: Place) -> None:
        """On one topic its id is the place it leads to; on several it has none, and is told again after a cut."""
        if gap.first_n is not None:
            self.told[gap.topic] = gap.first_n
        if len(self.ask.topics) > 1:
            self.wire.append(Frame(None, gap))
            return
        self.places[shard] = gap.oldest.before() if gap.oldest else last
        self.n = gap.first_n - 1 if gap.first_n else None
        if gap.oldest and "gap-at-oldest" in self.faults:
            self.wire.append(Frame(self._cursor({shard: gap.oldest}, gap.first_n), gap))
        else:
            self.wire.append(Frame(self.cursor(), gap))

    def _reset(self, shards: Iterable[int]) -> None:
        """All shards start over, since the client drops all that it has."""
        self.live, self.n = False, 0
        self.places |= dict.fromkeys(shards if "one-shard-resets" in self.faults else self.hubs, EARLIEST)
        self.looked, self.told = {}, {}
        self.starts_over = "reset"
        if self.ask.k:  # not before it is known where the newest k begin; a bye until then has no place to tell
            self.greeted = "bye-in-reset" in self.faults
        else:
            self._hello("reset")

    def sync(self) -> None:
        """At a heartbeat: where a live reader is whose filter hid what came."""
        if self.live and not self.wire:
            self.wire.append(Frame(self.cursor(), Sync(self.cursor())))

    def close(self, reason: str) -> None:
        """A planned end. Without a hello before it is a refusal, and has no place to tell."""
        cursor = self._at_tail() if "bye-at-tail" in self.faults else self.cursor()
        self.wire.append(Frame(cursor if self.greeted else None, Bye(reason)))
        self.leave()

    def leave(self) -> None:
        self.process.streams.remove(self)


def resumed(cursor: Cursor, ask: Ask, now: Mapping[int, Place], faults: frozenset[str]) -> tuple[dict[int, Place], int | None]:
    """The places and the number which a cursor means for what is asked."""
    places = {shard: cursor.places[shard] or place for shard, place in now.items()}
    theirs = cursor.topic == ask.topics or "number-of-another-topic" in faults
    return places, cursor.n if theirs and len(ask.topics) == 1 else None


def cursor_of(shape: Shape, ask: Ask, places: Mapping[int, Place], n: int | None) -> Cursor:
    named = tuple(places.get(shard) for shard in range(shape.shards))
    return Cursor(named, ask.topics, n) if len(ask.topics) == 1 and n is not None else Cursor(named)


def earliest(shape: Shape, ask: Ask) -> Cursor:
    return cursor_of(shape, ask, dict.fromkeys(shape.shards_of(ask.topics), EARLIEST), 0)


# Pages


def page(env: Env, shards: Sequence[Shard], ask: Ask, cursor: Cursor | None, limit: int) -> Page:
    """By the same scripts and with the same cursor as a stream."""
    resume, reads = _page_reads(env, shards, ask, cursor, limit)
    places, events, n, more = {}, list[Event](), None, False
    for shard, read in reads.items():
        wanted, room = [event for event in read.events if ask.wants(event)], limit - len(events)
        if len(wanted) < room:
            places[shard], n = read.end, read.n
        elif room:
            places[shard], n = wanted[room - 1].place, wanted[room - 1].n
        else:
            places[shard] = read.start
        events += wanted[:room]
        more = more or read.more or len(wanted) >= room
    gaps = tuple(gap for read in reads.values() for gap in read.gaps) if resume != "new" else ()
    if gaps and resume == "exact":
        resume = "gap"
    return Page(tuple(events), cursor_of(env.shape, ask, places, n), more, resume, gaps)


def _page_reads(env: Env, shards: Sequence[Shard], ask: Ask, cursor: Cursor | None, limit: int) -> tuple[Resume, dict[int, Read]]:
    mine = {shard: shards[shard] for shard in env.shape.shards_of(ask.topics)}
    if not cursor and ask.k:
        return "new", {i: shard.newest(ask.topics, ask.k) for i, shard in mine.items()}
    now = {i: shard.end() for i, shard in mine.items()}
    places, n = resumed(cursor, ask, now, env.faults) if cursor else (now, None)
    found = {i: shard.read(places[i], n, ask.topics, limit) for i, shard in mine.items()}
    reads = {i: read for i, read in found.items() if read}
    if len(reads) == len(found):
        return "exact" if cursor else "new", reads
    if ask.k:
        return "reset", {i: shard.newest(ask.topics, ask.k) for i, shard in mine.items()}
    over = {i: shard.read(EARLIEST, 0, ask.topics, limit, anew=True) for i, shard in mine.items()}
    return "reset", {i: read for i, read in over.items() if read}

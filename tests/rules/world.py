"""A world to try the rules in: shards, processes and clients, and all that may happen to them, one operation after the other.

    world = World.of(seed)              # or World(Shape(...), frozenset({"p-unread"})), broken on purpose
    world.do(Publish("A", "x"))         # Appended: the answer that its publisher gets
    world.do(Connect(0, 0))
    world.do(Step(0))
    world.do(Take(0))                   # the frames that client 0 takes from its stream
    world.do(Poll(0, 100))              # the page that it gets
    world.settle()                      # all come to rest, and nobody may miss anything

`do` raises `Violation` where the promise is broken. Nothing but `operations` is random, so a sequence always ends the same way:
`play` tells how, and `shrink` takes away what that doesn't need.

As an oracle of a real relay, do the same operations to both. `Tail`, `Step` and `Heartbeat` have no counterpart there, since a relay
decides itself when it reads on: so let it come to rest, `settle` the world, and compare what each client has `heard`, which leaves
out ids, since they hold real times and random epochs. Or build `Frame`s and `Page`s from what the real relay sent and give them to a
`Client`, which judges them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from .model import IDEMPOTENCY_MS, Appended, Ask, Cursor, Draft, Env, Frame, Gap, Page, Process, Shape, Shard, Stream, cursor_of, page
from .promise import Client, Violation

T = TypeVar("T")

CLOCKS_OFF_MS = (0, 0, -2, -9)
"""How far a server's clock may be off: less than half a retention."""

KEYS = (None,) * 8 + ("k", "l")


class Publish(NamedTuple):
    topic: str
    name: str
    data: int = 0
    key: str | None = None


class Tail(NamedTuple):
    """The process's read at the end of a shard returns: with entries, or with none after its time."""

    process: int
    shard: int
    most: int = 100


class Step(NamedTuple):
    """The relay does the next thing for a client's stream, if it is behind. `share`: it may wait for an equal read under way."""

    client: int
    most: int = 100
    share: bool = True


class Take(NamedTuple):
    """The client takes frames off its connection."""

    client: int
    most: int = 100


class Connect(NamedTuple):
    client: int
    process: int
    earliest: bool = False


class Cut(NamedTuple):
    """The connection is gone, with all that was on it."""

    client: int


class Poll(NamedTuple):
    client: int
    limit: int = 100
    answer_lost: bool = False


class Choose(NamedTuple):
    """The client goes on with other topics and the same cursor."""

    client: int
    topics: str


class Claim(NamedTuple):
    """A stranger comes with a place of this log and a number of its own making, and leaves again."""

    process: int
    topic: str
    n: int
    first: bool = False  # its place is the journal's first, else the hub's


class Heartbeat(NamedTuple):
    process: int


class Close(NamedTuple):
    """The relay ends one stream: it was open too long, or its send hangs, or its token expired."""

    client: int


class Drain(NamedTuple):
    """The process says bye to all its streams, and another takes its place."""

    process: int


class Kill(NamedTuple):
    process: int


class Wait(NamedTuple):
    ms: int


class Replicate(NamedTuple):
    """The shard's replica catches up."""

    shard: int


class Restart(NamedTuple):
    shard: int
    clock_off_ms: int = 0


class Failover(NamedTuple):
    shard: int
    clock_off_ms: int = 0


class Flush(NamedTuple):
    shard: int


class Rewind(NamedTuple):
    """An older copy of the log comes into a server that goes on. The tails had read all, and look before anything is appended."""

    shard: int


class Lose(NamedTuple):
    """The server comes back with an empty disk."""

    shard: int
    clock_off_ms: int = 0


Operation = (
    Publish | Tail | Step | Take | Connect | Cut | Poll | Choose | Claim | Heartbeat | Close | Drain | Kill
    | Wait | Replicate | Restart | Failover | Flush | Rewind | Lose
)  # fmt: skip
Answer = Appended | Page | Sequence[Frame] | None


class World:
    """All there is. `of` gives it the shape that belongs to a seed."""

    def __init__(self, shape: Shape, faults: frozenset[str] = frozenset()) -> None:
        self.shape, self.env = shape, Env(shape, faults)
        self.shards = [Shard(self.env, number) for number in range(shape.shards)]
        self.processes = [Process(self.env, self.shards) for _ in range(shape.processes)]
        self.clients = [Client(self.env, self.shards, ask) for ask in shape.clients]
        self.answers: dict[tuple[str, str], tuple[Draft, Appended, int]] = {}  # by key, the first that a publisher got

    @classmethod
    def of(cls, seed: int, faults: frozenset[str] = frozenset()) -> World:
        return cls(shape_of(Dice(seed)), faults)

    def do(self, operation: Operation) -> Answer:
        answer = self._do(operation)
        if isinstance(operation, Wait | Restart | Failover | Flush | Rewind | Lose):
            self._expire()
        return answer

    def _expire(self) -> None:
        for shard in self.shards:
            for topic in shard.log.expire(shard.now()):
                for client in self.clients:
                    client.promise.life_over(shard.number, topic)

    def _do(self, operation: Operation) -> Answer:
        match operation:
            case Publish(topic, name, data, key):
                return self._publish(Draft(topic, name, data, key))
            case Take(client, most):
                return self.clients[client].take(most)
            case Poll(client, limit, answer_lost):
                return self.clients[client].poll(limit, answer_lost)
            case Tail(process, shard, most):
                self.processes[process].hubs[shard].step(most)
            case Step(client, most, share):
                if stream := self.clients[client].stream:
                    stream.step(most, share)
            case Connect(client, process, earliest):
                self.clients[client].connect(self.processes[process], earliest)
            case Cut(client):
                self.clients[client].cut()
            case Choose(client, topics):
                self.clients[client].choose(topics)
            case Claim():
                self._claim(operation)
            case Wait(ms):
                self.env.now += ms
            case Heartbeat() | Close() | Drain() | Kill():
                self._do_to_process(operation)
            case _:
                self._do_to_shard(operation)
        return None

    def _claim(self, claim: Claim) -> None:
        """Whatever it says, the world goes on, and it is told of no less than nothing."""
        process, ask, wire = self.processes[claim.process], Ask(claim.topic), list[Frame]()
        number = self.shape.shard_of(claim.topic)
        hub, journal = process.hubs[number], self.shards[number].log.journal
        place = journal[0].place if claim.first and journal else hub.place
        cursor: Cursor = cursor_of(self.shape, ask, {number: place}, claim.n)
        stream = Stream(process, ask, cursor, wire)
        told: list[Gap] = []
        for _ in range(4):
            stream.step(100, share=True)
            told += [frame.data for frame in wire if isinstance(frame.data, Gap)]
            wire.clear()
        stream.leave()
        told += page(self.env, self.shards, ask, cursor, 100).gaps
        if negative := [gap for gap in told if gap.lost is not None and gap.lost < 1]:
            raise Violation(f"less than nothing lost: {negative[0]} to who came with {cursor}")

    def _do_to_process(self, operation: Heartbeat | Close | Drain | Kill) -> None:
        match operation:
            case Heartbeat(process):
                self.processes[process].heartbeat()
            case Close(client):
                if stream := self.clients[client].stream:
                    stream.close("max_age")
                    self.clients[client].ended()
            case Drain(process):
                self.processes[process].drain()
                self._replace(process, Client.ended)
            case Kill(process):
                self._replace(process, Client.cut)

    def _replace(self, process: int, leave: Callable[[Client], None]) -> None:
        for client in self.clients:
            if client.stream and client.stream.process is self.processes[process]:
                leave(client)
        self.processes[process] = Process(self.env, self.shards)

    def _do_to_shard(self, operation: Replicate | Restart | Failover | Flush | Rewind | Lose) -> None:
        shard = self.shards[operation.shard]
        match operation:
            case Replicate():
                shard.replicate()
            case Restart(_, clock_off_ms):
                shard.restart(clock_off_ms)
            case Failover(_, clock_off_ms):
                shard.failover(clock_off_ms)
            case Flush():
                shard.flush()
            case Rewind(number):
                self._tails_look(number)
                shard.rewind()
                self._tails_look(number)
            case Lose(_, clock_off_ms):
                shard.lose(clock_off_ms)

    def _tails_look(self, shard: int) -> None:
        for process in self.processes:
            process.hubs[shard].step(1000)

    def _publish(self, draft: Draft) -> Appended:
        shard = self.shards[self.shape.shard_of(draft.topic)]
        appended = shard.append(draft)
        if draft.key:
            self._check_key(shard, draft, appended)
        return appended

    def _check_key(self, shard: Shard, draft: Draft, appended: Appended) -> None:
        """While its event is in the log and the key's time isn't over, whatever clock measures it, a key has one answer."""
        first, answer, at = self.answers.get((draft.topic, draft.key or ""), (draft, appended, self.env.now))
        young = self.env.now - at < IDEMPOTENCY_MS + min(CLOCKS_OFF_MS)
        if young and answer is not appended and any(event.place == answer.place for event in shard.log.ever):
            expected = answer._replace(outcome="duplicate" if first == draft else "reused")
            if appended != expected:
                raise Violation(f"appended twice: {draft} got {appended}, not {expected}")
        if appended.outcome == "new":
            self.answers[draft.topic, draft.key or ""] = (draft, appended, self.env.now)

    def settle(self) -> None:
        """Nothing more is published: everyone comes to rest, and must then have all that it is owed."""
        for _ in range(9):
            for process in self.processes:
                for hub in process.hubs.values():
                    hub.step(1000)
        for client in self.clients:
            if client.stream:
                self._settle_stream(client, client.stream)
            if not any(not client.poll(3, answer_lost=False).more for _ in range(200)):
                raise Violation("endless pages")
            client.promise.settled("resumed")

    def _settle_stream(self, client: Client, stream: Stream) -> None:
        for _ in range(50):
            client.take(1000)
            stream.step(1000, share=False)
        if not stream.live or client.wire:
            hubs = [hub.place for hub in stream.hubs.values()]
            raise Violation(f"never live: {stream.places}, hubs at {hubs}")
        client.promise.settled("open stream")


class Dice:
    """Chance that is the same in every version of Python, which promises that of `random()` alone."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed).random

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.random() * len(options))]

    def below(self, end: int) -> int:
        return int(self.random() * end)

    def chance(self, part: float) -> bool:
        return self.random() < part

    def some(self, letters: str) -> str:
        """At least one of them."""
        few = self.below(len(letters)) + 1
        return "".join(sorted(sorted(letters, key=lambda _: self.random())[:few]))


def shape_of(dice: Dice) -> Shape:
    topics = "ABCD"[: dice.below(4) + 1]
    asked = (dice.some(topics), dice.some(topics))  # few, so that clients share audiences and reads
    return Shape(
        topics=topics,
        shards=dice.pick((1, 1, 2, 3)),
        processes=dice.pick((1, 1, 2, 3)),
        journal_events_max=dice.pick((3, 8, 30, 200)),
        stream_events_max=dice.pick((2, 4, 50)),
        ring_events_max=dice.pick((1, 3, 8, 50)),
        node_events=dice.below(3) + 1,
        clients=tuple(Ask(dice.pick(asked), dice.pick((None, None, "x")), dice.pick((0, 0, 0, 1, 3))) for _ in range(dice.below(4) + 1)),
    )


Make = Callable[[Shape, Dice], tuple[Operation, ...]]


def a_client(shape: Shape, dice: Dice) -> int:
    return dice.below(len(shape.clients))


def a_process(shape: Shape, dice: Dice) -> int:
    return dice.below(shape.processes)


def a_shard(shape: Shape, dice: Dice) -> int:
    return dice.below(shape.shards)


def some(dice: Dice) -> int:
    return dice.pick((1, 2, 100))


def draft(shape: Shape, dice: Dice) -> Publish:
    return Publish(dice.pick(shape.topics), dice.pick("xy"), dice.below(2), dice.pick(KEYS))


def arrival(shape: Shape, dice: Dice) -> tuple[Operation, ...]:
    """A client comes and may soon be live, which takes several steps that chance alone seldom puts in a row."""
    client, process = a_client(shape, dice), a_process(shape, dice)
    return Connect(client, process), Step(client), Take(client), Step(client)


def delivery(shape: Shape, dice: Dice) -> tuple[Operation, ...]:
    published = draft(shape, dice), draft(shape, dice)
    return *published, Tail(a_process(shape, dice), shape.shard_of(published[0].topic))


LIFE: dict[Make, int] = {
    arrival: 6,
    delivery: 6,
    lambda s, d: (draft(s, d),): 40,
    lambda s, d: (Tail(a_process(s, d), a_shard(s, d), some(d)),): 30,
    lambda s, d: (Step(a_client(s, d), some(d), d.chance(0.7)),): 40,
    lambda s, d: (Take(a_client(s, d), some(d)),): 24,
    lambda s, d: (Connect(a_client(s, d), a_process(s, d), d.chance(0.1)),): 12,
    lambda s, d: (Cut(a_client(s, d)),): 6,
    lambda s, d: (Poll(a_client(s, d), some(d), d.chance(0.2)),): 10,
    lambda s, d: (Choose(a_client(s, d), d.pick(s.topics) if d.chance(0.5) else d.some(s.topics)),): 4,
    lambda s, d: (Heartbeat(a_process(s, d)),): 2,
    lambda s, d: (Close(a_client(s, d)),): 3,
    lambda s, d: (Drain(a_process(s, d)),): 1,
    lambda s, d: (Kill(a_process(s, d)),): 1,
    lambda s, d: (Wait(d.pick((1, 3, 8, 15, 25, 80))),): 8,
    lambda s, d: (Replicate(a_shard(s, d)),): 6,
}
DISASTERS: dict[Make, int] = {
    lambda s, d: (Failover(a_shard(s, d), d.pick(CLOCKS_OFF_MS)),): 4,
    lambda s, d: (Restart(a_shard(s, d), d.pick(CLOCKS_OFF_MS)),): 2,
    lambda s, d: (Flush(a_shard(s, d)),): 2,
    lambda s, d: (Rewind(a_shard(s, d)),): 2,
    lambda s, d: (Lose(a_shard(s, d), d.pick(CLOCKS_OFF_MS)),): 2,
}
"""What may happen, each as often as its weight says."""

QUIET = tuple(make for make, weight in LIFE.items() for _ in range(weight))
ROUGH = QUIET + tuple(make for make, weight in DISASTERS.items() for _ in range(weight))


def operations(seed: int) -> tuple[Operation, ...]:
    """What happens in the world of a seed."""
    shape, dice = shape_of(Dice(seed)), Dice(seed + (1 << 32))
    makes, length = ROUGH if dice.chance(0.6) else QUIET, dice.pick((20, 50, 90, 130))
    # What others do is drawn apart, so that all else stays as it would be without them.
    others = Dice(seed + (2 << 32))
    return tuple(each for _ in range(length) for each in (*dice.pick(makes)(shape, dice), *claims(shape, others)))


def claims(shape: Shape, dice: Dice) -> tuple[Claim, ...]:
    if not dice.chance(0.05):
        return ()
    return (Claim(a_process(shape, dice), dice.pick(shape.topics), dice.pick((0, 1, 2, 5, 1000)), dice.chance(0.5)),)


def play(shape: Shape, sequence: Sequence[Operation], faults: frozenset[str] = frozenset()) -> str:
    """The violation that a sequence ends with, or nothing."""
    world = World(shape, faults)
    try:
        for each in sequence:
            world.do(each)
        world.settle()
    except Violation as violation:
        return str(violation)
    return ""


def run(seed: int, faults: frozenset[str] = frozenset()) -> str:
    return play(shape_of(Dice(seed)), operations(seed), faults)


def shrink(seed: int, faults: frozenset[str] = frozenset()) -> tuple[Operation, ...]:
    """The operations of a seed, less those without which it still ends with the same kind of violation."""
    shape = shape_of(Dice(seed))
    kind = run(seed, faults).split(":")[0]
    return shortened(operations(seed), lambda sequence: play(shape, sequence, faults).split(":")[0] == kind)


def shortened(sequence: tuple[T, ...], is_enough: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    """Less all that isn't needed, as far as taking parts away one after the other can tell."""
    size = len(sequence)
    while size:
        shorter = sequence
        for at in range(len(sequence) // size * size, -1, -size):
            without = shorter[:at] + shorter[at + size :]
            if is_enough(without):
                shorter = without
        # What could not go before may go now, so a size is tried until it helps no more.
        size, sequence = size if len(shorter) < len(sequence) else size // 2, shorter
    return sequence


def shown(seed: int, faults: frozenset[str] = frozenset()) -> str:
    """The shortest sequence of a failing seed, to read or to put into a test."""
    shape, sequence = shape_of(Dice(seed)), shrink(seed, faults)
    lines = [f"seed {seed}, {shape}", *(str(each) for each in sequence), f"-> {play(shape, sequence, faults)}"]
    return "\n    ".join(lines)

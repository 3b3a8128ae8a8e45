"""The promise, kept by real servers: two relays and the polling function on one Valkey, and whatever may happen to log and clients.

Each example is a life: some clients, and operations one after the other, of which some come while others are under way
(`tests.rules.reality`). In the end all clients catch up, by streams and by pages.
"""

import asyncio
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, example, given, settings
from hypothesis import strategies as st

from tests.protocol.world import World
from tests.rules.model import Ask, Draft
from tests.rules.promise import Violation
from tests.rules.reality import (
    DEBUG,
    DOORS,
    Choose,
    Connect,
    Cut,
    Expire,
    Flush,
    Forget,
    Life,
    LongPoll,
    Miss,
    Operation,
    Poll,
    Publish,
    Read,
    Renew,
    Rush,
    Servers,
    Trim,
    TrimJournal,
    open_servers,
    play,
)
from tests.rules.world import shortened

LIVES = 60
CLIENTS = 3
JOURNAL_EVENTS = 5  # of a shard, which the second relay keeps
LARGE_BYTES = 60_000  # a few of them are more than a reader is sent at once
SHORTEN_S = 40.0  # to find what of a life that failed was needed for that
SHORTEN_LIMIT_S = 2.0  # meanwhile nothing is waited for longer

TOPICS = st.sampled_from("AAABBCD")
ASKED = st.sampled_from(["A", "A", "B", "B", "AB", "AD", "ABC", "ABCD"])
CLIENT = st.integers(0, CLIENTS - 1)
PROCESS = st.integers(0, 1)
DOOR = st.integers(0, DOORS - 1)
START = st.sampled_from(["kept"] * 8 + ["older", "older", "now", "earliest", "ancient"])
BLOCKS = st.sampled_from([0, 1, 2, 1000])
LIMIT = st.sampled_from([1, 2, 5, 100])
PLAIN = st.builds(Draft, TOPICS, st.sampled_from("xxy"), st.integers(0, 1), st.none())
KEYED = st.builds(Draft, st.sampled_from("AAB"), st.just("x"), st.sampled_from([0, 0, 0, 0, 1]), st.sampled_from("kl"))
PUBLISH = st.builds(Publish, st.lists(st.one_of(PLAIN, PLAIN, PLAIN, KEYED), min_size=1, max_size=8).map(tuple), PROCESS)
DURING = st.one_of(st.none(), st.none(), PUBLISH)

Part = tuple[Operation, ...]  # what comes in a row


def alone(operation: st.SearchStrategy[Operation]) -> st.SearchStrategy[Part]:
    return st.tuples(operation)


def missed(draw: st.DrawFn, topic: str) -> Publish:
    return Publish((Draft(topic, "x"),) * draw(st.integers(2, 8)) + draw(PUBLISH).drafts, draw(PROCESS))


@st.composite
def company(draw: st.DrawFn) -> Part:
    """All clients are live in one process, and share what it sends."""
    published = draw(st.lists(PUBLISH, min_size=1, max_size=3))
    return Rush((draw(PROCESS),) * CLIENTS, ()), *map(Read, range(CLIENTS)), *published, *map(Read, range(CLIENTS))


@st.composite
def absence(draw: st.DrawFn) -> Part:
    """A client misses more than is retained when it comes back, perhaps of another topic, or of another life of it."""
    client, topic = draw(CLIENT), draw(TOPICS)
    before: list[Part] = [(), (), (Choose(client, topic),), (Forget(topic),), (Expire(topic),)]
    back = Connect(client, draw(PROCESS), most=draw(BLOCKS)) if draw(st.booleans()) else Poll(client, draw(DOOR), limit=draw(LIMIT))
    return Cut(client), *draw(st.sampled_from(before)), missed(draw, topic), Trim(topic, draw(st.integers(0, 2)), unseen=True), back


@st.composite
def arrival(draw: st.DrawFn) -> Part:
    """A client begins at now while more is published than the journal keeps."""
    client, topic = draw(CLIENT), draw(TOPICS)
    during = Publish((Draft(topic, "x"),) * (JOURNAL_EVENTS + 1), 1)
    return Choose(client, topic), Connect(client, draw(PROCESS), "now", 1, during), Cut(client), missed(draw, topic), Connect(client)


@st.composite
def rush(draw: st.DrawFn) -> Part:
    """Clients read the log while their tails do."""
    during = tuple(Publish((draft,), draw(PROCESS)) for draft in draw(st.lists(PLAIN, min_size=1, max_size=8)))
    return Miss(missed(draw, draw(TOPICS))), Rush(tuple(draw(PROCESS) for _ in range(CLIENTS)), during)


@st.composite
def loss(draw: st.DrawFn) -> Part:
    """The log is lost, and when it is lost again it comes at once as far as it was: by their count, the next entries follow."""
    client, topic, first = draw(CLIENT), draw(TOPICS), draw(st.integers(1, 3))
    once = Publish((Draft(topic, "x"),) * first)
    again = Publish((Draft(topic, "x"),) * (first + JOURNAL_EVENTS), 1)
    return Choose(client, topic), Connect(client, draw(PROCESS)), Flush(quiet=True), once, Read(client), Flush(quiet=True), again


@st.composite
def silence(draw: st.DrawFn) -> Part:
    """The log is lost, and nothing comes after it."""
    client = draw(CLIENT)
    return Connect(client, draw(PROCESS), most=1000), Flush(quiet=True), Read(client, 1)


@st.composite
def flood(draw: st.DrawFn) -> Part:
    """One topic has more than a read takes, with others before and behind, of which something is gone."""
    client, topic, other = draw(CLIENT), draw(TOPICS), draw(TOPICS)
    some, large = Publish((Draft(other, "x"),) * 2 + draw(PUBLISH).drafts), Publish((Draft(topic, "x", LARGE_BYTES),) * 6)
    read = Choose(client, draw(st.sampled_from(["AB", "AD", "ABC", "ABCD"]))), Connect(client, draw(PROCESS), "earliest", 1000)
    return some, large, some, Trim(other, draw(st.integers(1, 4)), unseen=True), *read


# Each as often as it stands here.
QUIET: list[st.SearchStrategy[Part]] = [
    *[alone(PUBLISH)] * 6,
    *[alone(st.builds(Connect, CLIENT, PROCESS, START, BLOCKS, DURING))] * 6,
    *[alone(st.builds(Read, CLIENT, BLOCKS))] * 3,
    alone(st.builds(Cut, CLIENT)),
    *[alone(st.builds(Poll, CLIENT, DOOR, START, LIMIT, st.sampled_from([1, 50]), DURING))] * 4,
    *[alone(st.builds(LongPoll, CLIENT, DOOR, DURING))] * 2,
    alone(st.builds(Choose, CLIENT, ASKED)),
    *[company()] * 3,
    *[absence()] * 4,
    *[arrival()] * 2,
    *[rush()] * 3,
    *[alone(st.builds(Trim, TOPICS, st.integers(0, 3), st.booleans()))] * 2,
    alone(st.builds(TrimJournal, st.integers(0, 2), st.integers(0, 2))),
    *[alone(st.builds(Expire, TOPICS))] * 2,
    alone(st.builds(Forget, TOPICS)),
]
ROUGH = [*QUIET, *QUIET, *[alone(st.just(Renew()))] * 3, *[alone(st.just(Flush()))] * 2, loss(), silence()]
LARGE = [*QUIET, *[flood()] * 2]


@st.composite
def asks(draw: st.DrawFn) -> tuple[Ask, ...]:
    """Few different ones, so that clients share what they are sent."""
    asked = st.sampled_from([draw(ASKED), draw(ASKED)])
    return tuple(draw(st.builds(Ask, asked, st.sampled_from([None, None, "x"]), st.sampled_from([0, 0, 0, 1, 3]))) for _ in range(CLIENTS))


def in_a_row(parts: list[Part]) -> Part:
    return tuple(operation for part in parts for operation in part)


def lives() -> st.SearchStrategy[Life]:
    quiet, rough = (st.lists(st.one_of(kinds), min_size=8, max_size=30) for kinds in (QUIET, ROUGH))
    large = st.lists(st.one_of(LARGE), min_size=3, max_size=15)
    return st.builds(Life, asks(), st.one_of(quiet, quiet, rough, rough, large).map(in_a_row))


class Judge:
    """Plays lives in one world. Of the first that breaks the promise it keeps how that went, as short as it can be made."""

    def __init__(self, world: World, runner: asyncio.Runner, servers: Servers) -> None:
        self.world, self.runner, self.servers = world, runner, servers
        self.played = 0
        self.failed: dict[Life, str] = {}

    def outcome(self, life: Life) -> str:
        """Nothing, or how the promise was broken."""
        if life not in self.failed:
            self.played += 1
            told = self.play(life)
            if not told:
                return ""
            self.failed[life] = f"life {self.played}, {self.world.shards} shards\n    {self.shorten(life, told)}"
        return self.failed[life]

    def play(self, life: Life) -> str:
        trace = [f"client {number}: {ask}" for number, ask in enumerate(life.asks)]
        try:
            self.runner.run(play(self.servers, life, trace))
        except Violation as violation:
            return "\n    ".join([*trace, f"-> {violation}"])
        except Exception:
            return "\n    ".join([*trace, f"-> {traceback.format_exc()}"])
        return ""

    def shorten(self, life: Life, told: str) -> str:
        """Takes operations away while it still fails, for as long as there is time. No two runs are quite the same."""
        until = time.monotonic() + SHORTEN_S
        self.servers.limit_s = SHORTEN_LIMIT_S

        def fails(operations: tuple[Operation, ...]) -> bool:
            nonlocal told
            again = self.play(life._replace(operations=operations)) if time.monotonic() < until else ""
            told = again or told
            return again != ""

        shortened(life.operations, fails)
        return told


def judges(directory: Path, shards: int) -> Iterator[Judge]:
    world = World(directory, shards)
    world.valkey.arguments += DEBUG
    # What is published by it may be gone from the journal before a tail comes to it.
    world.second.env = {**world.second.env, "RELAY_JOURNAL_EVENTS": str(JOURNAL_EVENTS)}
    try:
        world.start()
        with asyncio.Runner() as runner:
            opened = open_servers(world)
            servers = runner.run(opened.__aenter__())
            yield Judge(world, runner, servers)
            runner.run(opened.__aexit__(None, None, None))
    finally:
        world.kill()


@pytest.fixture(scope="module", params=[1, 3], ids=["1 shard", "3 shards"])
def judge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    yield from judges(tmp_path_factory.mktemp("promise"), request.param)


# A number that belonged to one topic was counted on another, where a shard had only that one of a stream's topics.
SEVERAL = Life((Ask("AB"),) * CLIENTS, (Flush(), Connect(0), Publish((Draft("A", "x"),) * 9), Publish((Draft("B", "x"),) * 9, 1)))


@example(life=SEVERAL)
@settings(
    derandomize=True,
    max_examples=LIVES,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
    verbosity=Verbosity.quiet,  # a life that fails is told with what its clients heard
)
@given(life=lives())
def test_whatever_happens_a_client_gets_each_retained_event_once_and_in_order_and_is_told_of_the_others(judge: Judge, life: Life) -> None:
    assert not (told := judge.outcome(life)), told

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
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
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
    Servers,
    Trim,
    TrimJournal,
    open_servers,
    play,
)
from tests.rules.world import shortened

LIVES = 50
CLIENTS = 3
SHORTEN_S = 40.0  # to find what of a life that failed was needed for that
SHORTEN_LIMIT_S = 2.0  # meanwhile nothing is waited for longer

TOPICS = st.sampled_from("AAABBCD")
ASKED = st.sampled_from(["A", "A", "B", "AB", "AD", "ABC", "ABCD"])
CLIENT = st.integers(0, CLIENTS - 1)
PROCESS = st.integers(0, 1)
DOOR = st.integers(0, DOORS - 1)
START = st.sampled_from(["kept"] * 8 + ["older", "older", "now", "earliest", "ancient"])
ASK = st.builds(Ask, ASKED, st.sampled_from([None, None, "x"]), st.sampled_from([0, 0, 0, 1, 3]))
DRAFT = st.builds(Draft, TOPICS, st.sampled_from("xxy"), st.integers(0, 1), st.sampled_from([None] * 8 + ["k", "l"]))
PUBLISH = st.builds(Publish, st.lists(DRAFT, min_size=1, max_size=8).map(tuple), PROCESS)
BLOCKS = st.sampled_from([0, 1, 2, 1000])
LIMIT = st.sampled_from([1, 2, 5, 100])
DURING = st.one_of(st.none(), st.none(), PUBLISH)


def alone(operation: st.SearchStrategy[Operation]) -> st.SearchStrategy[tuple[Operation, ...]]:
    return st.tuples(operation)


@st.composite
def absence(draw: st.DrawFn) -> tuple[Operation, ...]:
    """A client misses more than is retained when it comes back, which chance alone seldom puts in a row."""
    client, topic = draw(CLIENT), draw(TOPICS)
    back = Connect(client, draw(PROCESS), most=draw(BLOCKS)) if draw(st.booleans()) else Poll(client, draw(DOOR), limit=draw(LIMIT))
    missed = Publish((Draft(topic, "x"),) * draw(st.integers(2, 6)), draw(PROCESS))
    return Cut(client), missed, Trim(topic, draw(st.integers(0, 2)), unseen=True), back


# Each as often as it stands here.
QUIET = [
    *[alone(PUBLISH)] * 6,
    *[alone(st.builds(Connect, CLIENT, PROCESS, START, BLOCKS, DURING))] * 6,
    *[alone(st.builds(Read, CLIENT, st.sampled_from([1, 2, 1000])))] * 3,
    alone(st.builds(Cut, CLIENT)),
    *[alone(st.builds(Poll, CLIENT, DOOR, START, LIMIT, st.sampled_from([1, 50]), DURING))] * 4,
    *[alone(st.builds(LongPoll, CLIENT, DOOR, PUBLISH))] * 2,
    alone(st.builds(Choose, CLIENT, ASKED)),
    *[absence()] * 3,
    *[alone(st.builds(Trim, TOPICS, st.integers(0, 3), st.booleans()))] * 2,
    alone(st.builds(TrimJournal, st.integers(0, 2), st.integers(0, 2))),
    *[alone(st.builds(Expire, TOPICS))] * 2,
    alone(st.builds(Forget, TOPICS)),
    *[alone(st.builds(Miss, st.integers(0, 2)))] * 2,
]
ROUGH = [*QUIET, alone(st.just(Renew())), alone(st.builds(Flush, st.sampled_from([False] * 7 + [True])))]


def in_a_row(parts: list[tuple[Operation, ...]]) -> tuple[Operation, ...]:
    return tuple(operation for part in parts for operation in part)


def lives() -> st.SearchStrategy[Life]:
    operations = st.one_of(*(st.lists(st.one_of(kinds), min_size=10, max_size=40).map(in_a_row) for kinds in (QUIET, ROUGH)))
    return st.builds(Life, st.tuples(*[ASK] * CLIENTS), operations)


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


@settings(
    derandomize=True,
    max_examples=LIVES,
    deadline=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
    verbosity=Verbosity.quiet,  # a life that fails is told with what its clients heard
)
@given(life=lives())
def test_whatever_happens_a_client_gets_each_retained_event_once_and_in_order_and_is_told_of_the_others(judge: Judge, life: Life) -> None:
    assert not (told := judge.outcome(life)), told

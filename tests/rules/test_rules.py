"""The rules keep the promise in thousands of random runs, and break it in each of the ways in which they can be broken on purpose."""

from __future__ import annotations

import pytest

from .model import FAULTS, Ask, Cursor, Shape
from .world import (
    Connect,
    Dice,
    Flush,
    Operation,
    Poll,
    Publish,
    Step,
    Tail,
    Take,
    Wait,
    World,
    operations,
    play,
    run,
    shape_of,
    shown,
    shrink,
)

CHUNKS, RUNS = 10, 300

SHOWN_BY: dict[str, tuple[int, ...]] = {
    "numbers-restart": (12, 15, 17),
    "ids-follow-the-clock": (11, 57, 68),
    "key-unread": (1, 2, 7),
    "key-reused": (1, 2, 7),
    "equal-by-id": (426, 459, 567),
    "empty-ends-at-earliest": (0, 1, 4),
    "number-of-another-topic": (71, 434, 662),
    "any-epoch": (9, 11, 19),
    "present-epoch-only": (10, 22, 29),
    "rewound-epoch-goes-on": (198, 238, 335),
    "one-shard-resets": (5, 131, 136),
    "p-unread": (2, 7, 12),
    "lost-across-lives": (18, 71, 344),
    "lost-below-nothing": (1, 2, 7),
    "short-heads": (18, 34, 53),
    "quiet-cursors-doubted": (11, 15, 18),
    "old-cursors-trusted": (2, 12, 15),
    "tail-from-newest": (34, 59, 85),
    "tail-uncounted": (49, 59, 77),
    "tail-place-unchecked": (781, 950, 999),
    "tail-epoch-unchecked": (781, 950, 999),
    "tail-end-unchecked": (102, 1596, 2484),
    "return-keeps-live": (11, 59, 62),
    "return-keeps-ring": (2, 17, 49),
    "topic-by-topic": (155, 158, 161),
    "audience-unfiltered": (970, 1164, 1875),
    "joins-live": (2, 7, 13),
    "claims-are-shared": (811, 1852, 4075),
    "live-when-ahead": (1, 7, 10),
    "ahead-waits-for-events": (32, 197, 247),
    "steps-from-landing": (10, 19, 32),
    "ring-unchecked": (495, 557, 684),
    "ring-repeats": (11, 14, 25),
    "shared-read-jumps": (7, 10, 15),
    "slow-skipped": (13, 14, 52),
    "page-at-last": (18, 21, 51),
    "page-past-cursor": (63, 98, 112),
    "hello-without-id": (2, 4, 15),
    "hello-at-tail": (1, 2, 4),
    "hello-after-k": (1, 11, 15),
    "gap-at-oldest": (12, 393, 623),
    "gap-repeated": (699, 843, 2456),
    "reset-untold": (1, 5, 8),
    "bye-in-reset": (205, 211, 737),
    "bye-at-tail": (82, 93, 98),
}
"""Seeds that show a fault. When the rules or the operations change, `python -m tests.rules` finds others."""


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_the_rules_keep_the_promise(chunk: int) -> None:
    for seed in range(chunk * RUNS, (chunk + 1) * RUNS):
        assert not run(seed), shown(seed)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_rule_is_noticed(fault: str) -> None:
    for seed in SHOWN_BY[fault]:
        assert run(seed, frozenset({fault})), f"seed {seed} doesn't show {fault} ({FAULTS[fault]}): python -m tests.rules 5000 {fault}"
        assert not run(seed), shown(seed)


@pytest.mark.parametrize("fault", ["p-unread", "slow-skipped", "page-at-last"])
def test_a_shrunk_sequence_needs_each_of_its_operations(fault: str) -> None:
    seed, faults = SHOWN_BY[fault][0], frozenset({fault})
    shape, sequence = shape_of(Dice(seed)), shrink(seed, faults)
    kind = play(shape, sequence, faults).split(":")[0]
    assert kind == run(seed, faults).split(":")[0]
    assert len(sequence) < len(operations(seed))
    for at in range(len(sequence)):
        assert play(shape, sequence[:at] + sequence[at + 1 :], faults).split(":")[0] != kind


def test_a_seed_always_ends_the_same_way() -> None:
    worlds = [World.of(7), World.of(7)]
    for world in worlds:
        for operation in operations(7):
            world.do(operation)
        world.settle()
    assert [client.heard for client in worlds[0].clients] == [client.heard for client in worlds[1].clients]


# What single rules say, as sequences that can be read


def after(shape: Shape, *sequence: Operation) -> World:
    world = World(shape)
    for operation in sequence:
        world.do(operation)
    return world


RESUME = (Connect(0, 0), Step(0), Step(0))


def test_who_comes_back_is_told_how_many_it_missed() -> None:
    shape = Shape(topics="A", stream_events_max=2)
    published = [Publish("A", "x", data) for data in range(5)]
    # The page is at now, which is after the first. Of the others two are retained.
    world = after(shape, published[0], Poll(0), *published[1:], *RESUME, Take(0))
    told = [("hello", "gap"), ("gap", "A", 2, 4), ("event", "A", 4, "x", 3), ("event", "A", 5, "x", 4)]
    assert world.clients[0].heard == [("page", "new"), *told]


def test_a_client_of_a_log_that_is_lost_starts_over() -> None:
    world = after(Shape(topics="A"), Publish("A", "x"), Poll(0), Flush(0), Publish("A", "y"), Poll(0))
    assert world.clients[0].heard == [("page", "new"), ("page", "reset"), ("gap", "A", None, 1), ("event", "A", 1, "y", 0)]


def test_a_topic_that_begins_another_life_goes_on_with_higher_numbers() -> None:
    a, b = Publish("A", "x"), Publish("B", "x")
    world = after(Shape(topics="AB"), a, b, b, Wait(200), a)
    assert [(event.topic, event.n) for event in world.shards[0].log.ever] == [("A", 1), ("B", 2), ("B", 3), ("A", 4)]


def test_a_key_has_one_answer() -> None:
    world = World(Shape(topics="A"))
    answers = [world.do(Publish("A", "x", data, "k")) for data in (1, 1, 2)]
    place = world.shards[0].log.end()
    assert answers == [(place, 1, "new"), (place, 1, "duplicate"), (place, 1, "reused")]
    assert len(world.shards[0].log.ever) == 1


def test_a_first_connect_with_k_begins_before_the_oldest_of_the_newest_k() -> None:
    shape = Shape(topics="AB", clients=(Ask("AB", k=1),))
    published = (Publish("A", "x", 1), Publish("A", "x", 2), Publish("B", "x", 3), Publish("B", "x", 4))
    world = after(shape, *published, *RESUME, Take(0, 1))
    client, log = world.clients[0], world.shards[0].log
    assert client.cursor == Cursor((log.journal[1].place.before(),))
    world.do(Take(0))
    assert client.heard == [("hello", "new"), ("event", "A", 2, "x", 2), ("event", "B", 4, "x", 4)]
    assert client.cursor == Cursor((log.end(),))


def test_a_cut_before_the_gap_tells_it_again_and_one_after_it_does_not() -> None:
    shape = Shape(topics="A", stream_events_max=1, ring_events_max=1)
    missed = (Poll(0), Publish("A", "x"), Publish("A", "x"), Publish("A", "x"), Tail(0, 0))
    world = after(shape, *missed, *RESUME, Take(0, 1), *RESUME, Take(0, 2), *RESUME, Take(0))
    hello, gap, event = ("hello", "gap"), ("gap", "A", None, 3), ("event", "A", 3, "x", 0)
    assert world.clients[0].heard == [("page", "new"), hello, hello, gap, ("hello", "exact"), event]

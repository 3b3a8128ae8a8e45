"""Every case over every way to read."""

from collections.abc import Callable, Iterable

import pytest

from relay.cursor import Place, parse_cursor, write_cursor
from tests.protocol import cases
from tests.protocol.cases import CASES, Case, Read, Step
from tests.protocol.doors import Client, Door, Got, LongPolling, Mixed, Polling, Streaming
from tests.protocol.world import RETENTION_MS, Scene, World, with_number

pytestmark = pytest.mark.anyio

# Several doors are a client that changes the way at every read.
WAYS: dict[str, Callable[[World], list[Door]]] = {
    "stream": lambda world: [Streaming(world.first.url)],
    "poll": lambda world: [Polling(world.first.url)],
    "long poll": lambda world: [LongPolling(world.first.url, told_of_resets=True)],
    "function": lambda world: [LongPolling(world.function.url, told_of_resets=False)],
    "mix": lambda world: [
        Streaming(world.first.url),
        Polling(world.function.url),
        LongPolling(world.second.url, told_of_resets=True),
        Streaming(world.second.url),
        Polling(world.first.url),
        LongPolling(world.function.url, told_of_resets=False),
    ],
}


def ways_of(case: Case, shards: int) -> Iterable[str]:
    """All of them; over several shards, if the case isn't about those, only the mix."""
    if case.ways:
        return case.ways
    return WAYS if shards == case.shards[0] else ["mix"]


RUNS = [
    pytest.param(shards, case, way, turn, id=f"{case.name}-{shards}-{way}")
    for shards in (1, 3)
    for turn, case in enumerate(CASES)
    if shards in case.shards
    for way in ways_of(case, shards)
]


@pytest.mark.parametrize(("shards", "case", "way", "turn"), RUNS)
async def test_a_client_gets_each_retained_event_once_and_in_order_and_is_told_of_the_others(
    scenes: Callable[[int], Scene], shards: int, case: Case, way: str, turn: int
) -> None:
    scene = scenes(shards)
    doors = WAYS[way](scene.world)
    door = Mixed(doors, turn) if len(doors) > 1 else doors[0]
    try:
        await play(case, Client(scene), door)
    finally:
        await door.cut()
        await scene.strangers.aclose()


async def play(case: Case, client: Client, door: Door) -> None:
    stored = client.cursor, dict(client.numbers)
    for number, step in enumerate([*case.steps, None]):
        try:
            if step is None:
                await finish(client, door)
            elif isinstance(step, cases.Mark):
                stored = client.cursor, dict(client.numbers)
            elif isinstance(step, cases.Back):
                await door.cut()
                client.cursor, client.numbers = stored[0], dict(stored[1])
            else:
                await act(step, client, door)
        except BaseException as error:
            error.add_note(f"at step {number}: {step or 'the end'}")
            raise


async def act(step: Step, client: Client, door: Door) -> None:
    scene = client.scene
    match step:
        case cases.Publish(events, key, duplicate, by):
            relay = scene.world.first if by == "first" else scene.world.second
            await scene.publish(relay, events, key, duplicate)
        case cases.PublishUnread(events):
            await scene.publish_unread(events)
        case Read():
            got = await door.read(client, step)
            got.labels[:0], client.glimpsed = client.glimpsed, []
            compare(got, step, scene)
        case cases.ReadSome(labels, resume, gaps):
            expected = Read(labels, resume, gaps)
            compare(await door.read_some(client, expected), expected, scene)
        case cases.Glimpse(resume, gaps, events):
            await door.cut()
            stream = Streaming(scene.world.first.url)
            expected = Read("", resume, gaps)
            try:
                got = await stream.take(client, expected, events)
            finally:
                await stream.cut()
            client.glimpsed += got.labels
            got.labels = []
            compare(got, expected, scene)
        case cases.LoseAnswer():
            await door.lose_answer(client)
        case cases.Cut():
            await door.cut()
        case cases.Ask():
            await door.cut()
            client.ask = step
        case cases.Claim(n):
            await door.cut()
            client.cursor = with_number(client.cursor, n)
        case cases.Strangers(topic, n):
            await scene.let_in_strangers(topic, n)
        case cases.Sync():
            await door.sync(client)
        case cases.Trim(topic, keep):
            await scene.trim(topic, keep)
        case cases.Quiet(topics):
            await scene.forget(topics)
            client.cursor = older(client.cursor)
            client.numbers.clear()  # another life of a topic has other numbers
        case cases.DropRings():
            await scene.drop_rings()
        case cases.Flush(topic, quiet):
            await scene.flush(topic, quiet)
        case cases.Copy():
            await scene.copy()
        case cases.Restore(emptied):
            await scene.restore(emptied)
        case cases.Restart(meanwhile):
            scene.world.first.kill()
            if meanwhile:
                await scene.publish(scene.world.second, meanwhile)
            scene.world.first.start()
            if isinstance(door, Streaming):  # its connection is dead
                await door.cut()
        case _:
            raise AssertionError(step)


def older(text: str) -> str:
    """The same cursor, kept for three times the retention."""
    cursor = parse_cursor(text)
    places = {shard: Place(place.epoch, place.ms - 3 * RETENTION_MS, place.s) for shard, place in cursor.places.items()}
    return write_cursor(places)


async def finish(client: Client, door: Door) -> None:
    """One more event to each topic is all that comes."""
    letters = client.ask.topics
    name = client.ask.names.partition(",")[0] or "update"
    labels = [f"{letter}{len(client.scene.records.get(letter, [])) + 1}" for letter in letters]
    await client.scene.publish(client.scene.world.first, " ".join(f"{letter}:{name}" for letter in letters))
    got = await door.read(client, Read(" ".join(labels)))
    compare(got, Read(" ".join(labels)), client.scene)


def compare(got: Got, expected: Read, scene: Scene) -> None:
    labels = expected.events.split()
    gaps: dict[str, tuple[int | None, int | None]] = {}
    for gap in expected.gaps:
        record = scene.find(gap.topic, gap.first) if gap.first else None
        first_n = record.n if record else scene.records[gap.topic][-1].n + 1 if gap.first else None
        gaps[gap.topic] = gap.lost, first_n
    if scene.world.shards > 1:  # each shard has an order of its own
        got.labels.sort(key=lambda label: label[0])
        labels.sort(key=lambda label: label[0])
    assert got == Got(expected.resume, gaps, labels)

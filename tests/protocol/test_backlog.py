"""More than fits one page or one read, and readers that come and go while it is written."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.protocol.cases import Ask, Read
from tests.protocol.doors import Client, Got, Polling, Streaming
from tests.protocol.world import Scene
from tests.servers import topic
from tests.streams import Block, open_stream
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.anyio

LOOKED_AT = 5000  # the most entries that one page looks at
HIDDEN = LOOKED_AT + 500


async def publish(client: httpx.AsyncClient, items: list[dict[str, Any]]) -> None:
    for begin in range(0, len(items), 1000):
        (await client.post("/stream/publish", json=items[begin : begin + 1000])).raise_for_status()


async def test_a_backlog_of_several_reads_comes_whole_and_a_page_says_when_it_stopped_looking(client: httpx.AsyncClient) -> None:
    here, there = topic(), topic()
    items = [{"topic": name, "data": number} for number in range(HIDDEN // 2) for name in (here, there)]
    await publish(client, [*items, {"topic": here, "event": "wanted", "data": "last"}])

    url = f"/stream/v1/poll?topic={here}&topic={there}&events=wanted&cursor="
    first = (await client.get(f"{url}earliest")).json()
    assert (first["events"], first["more"], first["poll_after_ms"]) == ([], True, 0)
    second = (await client.get(url + first["cursor"])).json()
    assert ([event["data"] for event in second["events"]], second["more"]) == (["last"], False)

    async with open_stream(client, f"/stream/v1/live?topic={here}&topic={there}&cursor=earliest") as stream:
        assert (await stream.next()).json()["resume"] == "exact"
        blocks = [block for block in await stream.until("wanted") if block.name == "update"]
    got = [block.json() for block in blocks]
    assert [(event["topic"], event["data"]) for event in got] == [(item["topic"], item["data"]) for item in items]


async def test_a_page_ends_at_its_size(client: httpx.AsyncClient) -> None:
    here = topic()
    texts = [str(number) * 60_000 for number in range(1, 10)] * 3
    await publish(client, [{"topic": here, "data": text} for text in texts])
    got: list[str] = []
    pages = 0
    page = {"cursor": "earliest", "more": True}
    while page["more"]:
        answer = await client.get(f"/stream/{here}/v1/poll?limit=500&cursor={page['cursor']}")
        assert len(answer.content) < (1 << 20) + 1000
        page, pages = answer.json(), pages + 1
        got += [event["data"] for event in page["events"]]
    assert (got, pages) == (texts, 2)


async def test_the_newest_k_of_more_than_one_read_are_no_more_than_k(client: httpx.AsyncClient) -> None:
    """The large events of one topic end the first read; the other topic still begins only with its newest."""
    large, small, k = topic(), topic(), 40
    await publish(client, [{"topic": large, "data": [number, "x" * 17_000]} for number in range(k)])
    await publish(client, [{"topic": small, "data": [number]} for number in range(k + 10)])
    async with open_stream(client, f"/stream/v1/live?topic={large}&topic={small}&k={k}") as stream:
        assert (await stream.next()).json()["resume"] == "new"
        got = [block.json() for block in await stream.take(2 * k)]
        await publish(client, [{"topic": small, "data": ["live"]}])
        assert (await stream.next()).json()["data"] == ["live"]
    assert [event["data"][0] for event in got] == [*range(k), *range(10, k + 10)]


@pytest.mark.parametrize("letters", ["A", "AB"])
@pytest.mark.parametrize("shards", [1, 3])
async def test_what_a_process_has_in_memory_comes_whole_though_in_parts(scenes: Callable[[int], Scene], shards: int, letters: str) -> None:
    scene, count = scenes(shards), 14
    server, topics = scene.world.first.url, [scene.topic(letter) for letter in letters]
    url = f"{server}/stream/v1/live?{httpx.QueryParams(topic=topics)}"
    items = [{"topic": topics[number % len(topics)], "data": [number, "x" * 45_000]} for number in range(count)]

    def numbers(blocks: list[Block]) -> list[int]:
        data = [block.json() for block in blocks]
        got = [one[0] if len(topics) == 1 else one["data"][0] for one in data]
        return got if shards == 1 else sorted(got, key=lambda number: number % len(topics))

    async with open_stream(scene.http, url) as stream:
        hello = await stream.next()
        (await scene.http.post(f"{server}/stream/publish", json=items)).raise_for_status()
        live = numbers(await stream.take(count))
    async with open_stream(scene.http, url, headers={"last-event-id": hello.last_event_id}) as stream:
        assert (await stream.next()).json()["resume"] == "exact"
        assert numbers(await stream.take(count)) == live
        (await scene.http.post(f"{server}/stream/{topics[0]}", json={"data": [count, ""]})).raise_for_status()
        assert numbers([await stream.next()]) == [count]
    assert sorted(live) == list(range(count))


class Gleaner(Client):
    """Events may reach it before their publisher knows their ids, so it only collects, to be compared at the end."""

    def takes(self, id: str, name: str, data: Any, got: Got) -> None:
        got.labels.append(f"{data['label']} {id}")

    def _check_wrapper(self, item: dict[str, Any]) -> None: ...


@pytest.mark.parametrize("shards", [1, 3])
async def test_readers_that_come_and_go_while_it_is_written_miss_nothing(scenes: Callable[[int], Scene], shards: int) -> None:
    scene, letters, batches, size = scenes(shards), "ABC", 25, 8
    world = scene.world

    async def write() -> None:
        drawn = random.Random(shards)
        for _ in range(batches):
            await scene.publish(world.first, " ".join(drawn.choices(letters, k=size)))

    async def read(seed: int) -> list[str]:
        """Some events by one way, some by another."""
        drawn, got = random.Random(seed), list[str]()
        client = Gleaner(scene, Ask(letters, limit=10, start="earliest"))
        while len(got) < batches * size:
            relay = drawn.choice(world.relays()).url
            if drawn.random() < 0.5:
                stream = Streaming(relay)
                try:
                    told = await stream.take(client, Read(), min(drawn.choice([0, 1, 10, 30]), batches * size - len(got)))
                finally:
                    await stream.cut()
            else:
                told = await Polling(drawn.choice([relay, world.function.url])).page(client, wait=drawn.choice(["0", "10"]))
            assert not told.gaps
            got += told.labels
        return got

    for letter in letters:
        scene.topic(letter)
    async with asyncio.timeout(LIMIT_S):
        writing = asyncio.create_task(write())
        read_by = await asyncio.gather(*(read(seed) for seed in range(3)))
        await writing
    for labels in read_by:
        for letter in letters:
            written = [f"{record.label} {record.id}" for record in scene.records[letter]]
            assert [label for label in labels if label[0] == letter] == written
    if shards == 1:
        assert all(labels == read_by[0] for labels in read_by)


async def test_a_stream_may_get_from_memory_what_the_log_has_let_go(scenes: Callable[[int], Scene]) -> None:
    """A process keeps its newest events: whoever comes back soon misses nothing, although a page would tell a gap."""
    scene = scenes(1)
    client, door = Client(scene), Streaming(scene.world.first.url)
    try:
        await door.take(client, Read(resume="new"), 0)
        await scene.publish(scene.world.first, "A A A")
        await door.take(client, Read(), 3)  # from a process that has read the journal up to there
        await door.cut()
        await scene.valkey.xtrim(f"{{relay:0}}:topic:{scene.topic('A')}", maxlen=0, approximate=False)
        client = Client(scene, cursor=scene.records["A"][0].id)
        told = await door.take(client, Read(), 2)
    finally:
        await door.cut()
    assert (told.resume, told.labels) == ("exact", ["A2", "A3"])

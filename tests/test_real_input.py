"""Real events, in by every way and out by every door, byte for byte what was published.

`tests/data/quakes.geojson` is a real answer of the USGS earthquake feed: see the README beside it.
"""

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx
import msgspec
import pytest

from relay import Publisher
from relay.settings import read_settings
from tests.protocol.world import Function
from tests.servers import Relay, topic
from tests.streams import Stream, open_stream
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.anyio

FEED = Path(__file__).parent / "data" / "quakes.geojson"
# As they happened: the feed has the newest first.
QUAKES = [line.rstrip(b",") for line in reversed(FEED.read_bytes().splitlines()) if line.startswith(b'{"type":"Feature",')]
NETS = [msgspec.json.decode(quake)["properties"]["net"] for quake in QUAKES]


class Item(msgspec.Struct, frozen=True):
    """An event of a page, or of a stream of several topics; its data as it is on the wire."""

    topic: str
    n: int
    data: msgspec.Raw


class Page(msgspec.Struct, frozen=True):
    events: list[Item]
    cursor: str
    more: bool


@pytest.fixture(scope="module")
def published(relay: Relay) -> str:
    """A topic that has all quakes: each line of standard input was one."""
    name = topic()
    run(relay, "publish", name, "-", "--event", "quake", given=b"\n".join(QUAKES) + b"\n")
    return name


@pytest.fixture(scope="module")
async def spread(relay: Relay) -> list[str]:
    """A topic for each seismic network, all of them written from Python in the order in which it happened."""
    names = {net: topic() for net in NETS}
    async with Publisher(read_settings(relay.environ())) as publisher:
        for begin in range(0, len(QUAKES), 150):
            part = zip(NETS[begin : begin + 150], QUAKES[begin : begin + 150], strict=True)
            await publisher.publish_many([(names[net], msgspec.Raw(quake), "quake", None) for net, quake in part])
    return list(names.values())


def run(relay: Relay, *arguments: str, given: bytes = b"") -> list[bytes]:
    """What a command prints."""
    command = [sys.executable, "-m", "relay", *arguments]
    done = subprocess.run(command, input=given, env=relay.environ(), capture_output=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_feed_is_all_there() -> None:
    assert len(QUAKES) == 400
    assert len(set(QUAKES)) == 400


async def take(stream: Stream, count: int) -> tuple[list[bytes], str]:
    """The data of so many events, and the id that the client then has."""
    blocks = await stream.take(count, LIMIT_S)
    assert {block.name for block in blocks} == {"quake"}
    return [block.data.encode() for block in blocks], blocks[-1].last_event_id


async def read_pages(client: httpx.AsyncClient, url: str) -> list[Item]:
    items: list[Item] = []
    page = Page([], "earliest", True)
    while page.more:
        answer = await client.get(f"{url}&cursor={page.cursor}")
        page = msgspec.json.decode(answer.raise_for_status().content, type=Page)
        items += page.events
    return items


async def test_a_stream_from_the_earliest(client: httpx.AsyncClient, published: str) -> None:
    async with open_stream(client, f"/stream/{published}/v1/live?cursor=earliest") as stream:
        assert (await stream.next()).name == "hello"
        assert (await take(stream, len(QUAKES)))[0] == QUAKES


async def test_a_stream_that_is_cut_every_few_events(client: httpx.AsyncClient, published: str) -> None:
    got: list[bytes] = []
    position = ""
    while len(got) < len(QUAKES):
        headers = {"last-event-id": position}
        async with open_stream(client, f"/stream/{published}/v1/live?cursor=earliest", headers=headers) as stream:
            assert (await stream.next()).json()["resume"] == "exact"
            part, position = await take(stream, min(37, len(QUAKES) - len(got)))
            got += part
    assert got == QUAKES


async def test_pages(client: httpx.AsyncClient, published: str) -> None:
    items = await read_pages(client, f"/stream/{published}/v1/poll?limit=100")
    assert [bytes(item.data) for item in items] == QUAKES
    assert [item.n - items[0].n for item in items] == list(range(len(QUAKES)))


async def test_pages_of_the_polling_function(client: httpx.AsyncClient, function: Function, published: str) -> None:
    items = await read_pages(client, f"{function.url}/stream/{published}/v1/poll?limit=93")
    assert [bytes(item.data) for item in items] == QUAKES


async def test_a_stream_of_several_topics(client: httpx.AsyncClient, spread: list[str]) -> None:
    query = httpx.QueryParams(topic=spread)
    async with open_stream(client, f"/stream/v1/live?cursor=earliest&{query}") as stream:
        assert (await stream.next()).name == "hello"
        items = [msgspec.json.decode(data, type=Item) for data in (await take(stream, len(QUAKES)))[0]]
    assert [bytes(item.data) for item in items] == QUAKES
    assert {item.topic for item in items} == set(spread)


async def test_pages_of_several_topics(client: httpx.AsyncClient, function: Function, spread: list[str]) -> None:
    for server in ("", function.url):
        items = await read_pages(client, f"{server}/stream/v1/poll?{httpx.QueryParams(topic=spread, limit=60)}")
        assert [bytes(item.data) for item in items] == QUAKES


async def test_readers_that_are_there_while_it_is_published(client: httpx.AsyncClient, relay: Relay, function: Function) -> None:
    name = topic()

    async def poll(server: str, begin: Page) -> list[bytes]:
        got: list[bytes] = []
        page = begin
        while len(got) < len(QUAKES):
            answer = await client.get(f"{server}/stream/{name}/v1/poll", params={"cursor": page.cursor, "wait": "25"}, timeout=LIMIT_S)
            page = msgspec.json.decode(answer.raise_for_status().content, type=Page)
            got += [bytes(item.data) for item in page.events]
        return got

    begin = msgspec.json.decode((await client.get(f"/stream/{name}/v1/poll")).content, type=Page)
    async with open_stream(client, f"/stream/{name}/v1/live") as stream:
        assert (await stream.next()).name == "hello"
        streaming, polling = asyncio.create_task(take(stream, len(QUAKES))), asyncio.create_task(poll("", begin))
        function_polling = asyncio.create_task(poll(function.url, begin))
        await asyncio.to_thread(run, relay, "publish", name, "-", "--event", "quake", given=b"\r\n".join(QUAKES))
        assert (await streaming)[0] == QUAKES
        assert await polling == QUAKES
        assert await function_polling == QUAKES


async def test_a_batch_over_http(client: httpx.AsyncClient) -> None:
    name = topic().encode()
    items = b",".join(b'{"topic":"%b","event":"quake","data":%b}' % (name, quake) for quake in QUAKES)
    (await client.post("/stream/publish", content=b"[%b]" % items)).raise_for_status()
    assert [bytes(item.data) for item in await read_pages(client, f"/stream/{name.decode()}/v1/poll?limit=500")] == QUAKES


def test_tail_prints_each_event_on_a_line(relay: Relay, published: str) -> None:
    count = str(len(QUAKES))
    assert run(relay, "tail", published, "--cursor", "earliest", "--count", count) == QUAKES
    lines = run(relay, "tail", published, "--cursor", "earliest", "--count", count, "--json")
    assert [bytes(msgspec.json.decode(line, type=Item).data) for line in lines] == QUAKES

"""Clients that aren't ours, and that know nothing of a relay: what they do by themselves when their server dies is enough."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import aconnect_sse

from tests.conftest import need
from tests.servers import Relay, Valkey, token, topic

pytestmark = pytest.mark.anyio

LIMIT_S = 30
INSTALL_S = 90
# npm's `eventsource`, as it is now, on fetch, and as it was for ten years, on node's http.
PACKAGES = {"eventsource": "eventsource@4.1.1", "eventsource-2": "eventsource-2@npm:eventsource@2.0.2"}
SCRIPT = """
const [name, url] = process.argv.slice(2)
const imported = await import(name)
const EventSource = imported.EventSource ?? imported.default
const source = new EventSource(url)
for (const name of ["hello", "update", "gap", "bye"])
  source.addEventListener(name, event => console.log(JSON.stringify([name, event.lastEventId, JSON.parse(event.data)])))
"""

Told = tuple[str, str, Any]  # an event's name, its id and its data


class Client:
    """What a client was told, in order."""

    def __init__(self) -> None:
        self.updates: list[Told] = []
        self.resumes: list[str] = []
        self._told: asyncio.Queue[Told] = asyncio.Queue()

    def tell(self, told: Told) -> None:
        self._told.put_nowait(told)

    async def greeted(self, times: int) -> None:
        """Returns when it has connected so often."""
        while len(self.resumes) < times:
            await self._next()

    async def has(self, updates: int) -> None:
        while len(self.updates) < updates:
            await self._next()

    async def _next(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            name, id, data = await self._told.get()
        if name == "update":
            self.updates.append((name, id, data))
        elif name == "hello":
            self.resumes.append(data["resume"])
        else:  # it came back before the relay had found the log's end
            assert (name, data["reason"]) == ("bye", "unavailable"), (name, data)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the packages and a script that prints what they get."""
    need("node", shutil.which("node"))
    npm = need("npm", shutil.which("npm"))
    directory = tmp_path_factory.mktemp("node")
    (directory / "package.json").write_text('{"private":true}')
    (directory / "follow.mjs").write_text(SCRIPT)
    command = [npm, "install", "--no-audit", "--no-fund", "--loglevel=error", "--prefix", str(directory), *PACKAGES.values()]
    installed = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=INSTALL_S, check=False)
    need(f"npm's eventsource ({installed.stderr[-300:].decode()})", "here" if installed.returncode == 0 else None)
    return directory


@pytest.fixture
def mortal(tmp_path: Path, valkey: Valkey) -> Iterator[Relay]:
    """A relay that a test may kill."""
    process = Relay(tmp_path, valkey.url).start()
    yield process
    process.kill()


@asynccontextmanager
async def event_source(directory: Path, package: str, url: str) -> AsyncIterator[Client]:
    client = Client()
    process = await asyncio.create_subprocess_exec("node", "follow.mjs", package, url, cwd=directory, stdout=subprocess.PIPE)
    assert process.stdout
    lines = process.stdout

    async def listen() -> None:
        async for line in lines:
            name, id, data = json.loads(line)
            client.tell((name, id, data))

    listening = asyncio.create_task(listen())
    try:
        yield client
    finally:
        process.kill()
        await process.wait()
        await listening


@asynccontextmanager
async def httpx_sse(url: str) -> AsyncIterator[Client]:
    """It leaves it to its user to connect again, with the last id."""
    client = Client()

    async def follow() -> None:
        last_id = ""
        async with httpx.AsyncClient(timeout=httpx.Timeout(LIMIT_S, read=60)) as http:
            while True:
                headers = {"last-event-id": last_id} if last_id else {}
                try:
                    async with aconnect_sse(http, "GET", url, headers=headers) as source:
                        async for event in source.aiter_sse():
                            if event.data:
                                client.tell((event.event, event.id, event.json()))
                            last_id = event.id
                except httpx.TransportError:
                    continue

    following = asyncio.create_task(follow())
    try:
        yield client
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def live_through_a_kill(clients: list[Client], here: str, mortal: Relay, other: httpx.AsyncClient) -> None:
    """Publishes before, while and after the relay is dead, and looks at what its clients got of it."""
    ids: list[str] = []

    async def publish(count: int) -> None:
        items = [{"topic": here, "data": {"number": number}} for number in range(len(ids), len(ids) + count)]
        answer = (await other.post("/stream/publish", json=items)).raise_for_status()
        ids.extend(item["id"] for item in answer.json()["results"])

    for client in clients:
        await client.greeted(1)
    await publish(3)
    for client in clients:
        await client.has(3)
    mortal.kill()
    await publish(3)
    mortal.start()
    for client in clients:
        await client.greeted(2)
    await publish(2)
    for client in clients:
        await client.has(8)
        assert client.updates == [("update", id, {"number": number}) for number, id in enumerate(ids)]
        assert client.resumes == ["new", "exact"]


async def test_an_event_source_of_npm_misses_nothing_when_its_server_is_killed(
    node: Path, mortal: Relay, client: httpx.AsyncClient
) -> None:
    here = topic()
    url = f"{mortal.url}/stream/{here}/v1/live?token={token()}"
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(event_source(node, package, url)) for package in PACKAGES]
        await live_through_a_kill(clients, here, mortal, client)


async def test_httpx_sse_misses_nothing_when_its_server_is_killed(mortal: Relay, client: httpx.AsyncClient) -> None:
    here = topic()
    async with httpx_sse(f"{mortal.url}/stream/{here}/v1/live?token={token()}") as follower:
        await live_through_a_kill([follower], here, mortal, client)

"""Clients that aren't ours, and that know nothing of a relay: what they do by themselves when their server dies is enough.

They are the recipes in `infra/recipes`, and npm's `eventsource` as it was for ten years, on node's http.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.asking import Asker
from tests.needs import need, need_package
from tests.servers import Relay, Valkey, token, topic
from tests.streams import Parser
from tests.waiting import LIMIT_S, wait_for

pytestmark = pytest.mark.anyio

RECIPES = Path(__file__).parent.parent / "infra/recipes"
MODULES = Path(__file__).parent / "node_modules"
OLD_EVENT_SOURCE = """
import EventSource from "eventsource-2";
const source = new EventSource(process.argv[2], { headers: { Authorization: `Bearer ${process.env.RELAY_TOKEN}` } });
for (const name of ["hello", "update", "gap", "bye"])
  source.addEventListener(name, event => console.log(JSON.stringify({ name, id: event.lastEventId, data: JSON.parse(event.data) })));
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


@pytest.fixture
def mortal(tmp_path: Path, valkey: Valkey) -> Iterator[Relay]:
    """A relay that a test may kill."""
    process = Relay(tmp_path, valkey.url)
    try:
        yield process.start()
    finally:
        process.kill()


Read = Callable[[bytes], list[Told]]  # takes what a program prints, line by line


def json_line(line: bytes) -> list[Told]:
    told = json.loads(line)
    return [(told["name"], told["id"], told["data"])]


def stream_line() -> Read:
    parser = Parser()
    return lambda line: [(block.name, block.last_event_id, block.json()) for block in parser.feed(line)]


@asynccontextmanager
async def running(command: list[str], read: Read, directory: Path) -> AsyncIterator[Client]:
    client = Client()
    environ = {**os.environ, "RELAY_TOKEN": token()}
    process = await asyncio.create_subprocess_exec(*command, cwd=directory, env=environ, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout
    lines = process.stdout

    async def listen() -> None:
        async for line in lines:
            for told in read(line):
                client.tell(told)

    listening = asyncio.create_task(listen())
    try:
        yield client
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # at which curl's recipe takes its files away
        await process.wait()
        await listening


CLIENTS = ("old.mjs", "node.mjs", "follow.py", "curl.sh")


def command(name: str, directory: Path, url: str) -> tuple[list[str], Read]:
    """What to run, and how to read what it prints."""
    match name:
        case "old.mjs":
            (directory / name).write_text(OLD_EVENT_SOURCE)
            return [*node(directory), name, url], json_line
        case "node.mjs":
            shutil.copy(RECIPES / name, directory)
            return [*node(directory), name, url, "update"], json_line
        case "follow.py":
            return [sys.executable, str(RECIPES / name), url], json_line
        case _:
            need("curl")
            return ["sh", str(RECIPES / name), url, "last-id.txt"], stream_line()


def node(directory: Path) -> list[str]:
    """It looks for packages beside its script."""
    need_package("eventsource")
    if not (directory / "node_modules").exists():
        (directory / "node_modules").symlink_to(MODULES)
    return [need("Node")]


def data(number: int) -> dict[str, Any]:
    """Large enough to be compressed, for those who ask for that."""
    return {"number": number, "colours": ["red", "black"] * 50}


async def live_through_a_kill(clients: list[Client], here: str, mortal: Relay, other: httpx.AsyncClient) -> None:
    """Publishes before, while and after the relay is dead, and looks at what its clients got of it."""
    ids: list[str] = []

    async def publish(count: int) -> None:
        items = [{"topic": here, "data": data(number)} for number in range(len(ids), len(ids) + count)]
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
        assert client.updates == [("update", id, data(number)) for number, id in enumerate(ids)]
        assert client.resumes[0] == "new"
        assert set(client.resumes[1:]) == {"exact"}


async def test_clients_of_others_miss_nothing_when_their_server_is_killed(tmp_path: Path, mortal: Relay, client: httpx.AsyncClient) -> None:
    here = topic()
    async with AsyncExitStack() as stack:
        url = f"{mortal.url}/stream/{here}/v1/live"
        runs = [running(*command(name, tmp_path, url), tmp_path) for name in CLIENTS]
        await live_through_a_kill([await stack.enter_async_context(run) for run in runs], here, mortal, client)
        *_, last = await asyncio.to_thread(log_ids, mortal, here)
        kept = tmp_path / "last-id.txt"
        await asyncio.to_thread(wait_for, "curl's id is kept", lambda: kept.exists() and kept.read_text() == last)


def log_ids(relay: Relay, here: str) -> list[str]:
    with Asker(relay.url) as asker:
        answer = asker.get(f"/stream/{here}/v1/poll?cursor=earliest")
    return [event["id"] for event in answer.json()["events"]]


@pytest.mark.parametrize("name", ["node.mjs", "follow.py", "curl.sh"])
async def test_a_recipe_ends_when_it_is_refused_for_good(relay: Relay, tmp_path: Path, name: str) -> None:
    url = f"{relay.url}/stream/{topic()}/v1/live"
    arguments, _ = command(name, tmp_path, url)
    process = await asyncio.create_subprocess_exec(
        *arguments, cwd=tmp_path, env={**os.environ, "RELAY_TOKEN": "none"}, stderr=subprocess.PIPE
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            _, told = await process.communicate()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 1
    assert b"401" in told

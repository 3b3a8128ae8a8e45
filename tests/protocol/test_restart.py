"""A relay with a Valkey of its own that is killed, and comes back with every event and cursor."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import valkey.asyncio

from relay.embedded import find_url
from tests.protocol.cases import Ask, Read
from tests.protocol.doors import Client, Door, LongPolling, Polling, Streaming
from tests.protocol.world import ENV, Scene, World, open_http
from tests.servers import Relay
from tests.waiting import LIMIT_S, wait_for

pytestmark = pytest.mark.anyio


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    world = World(tmp_path, 1)
    world.first = Relay(tmp_path / "embedded", "", ENV)
    try:
        world.first.start()
        async with open_http() as http:
            yield Scene(world, http, valkey.asyncio.Valkey())
    finally:
        if world.first.process:
            world.first.kill()


async def test_a_relay_that_is_killed_comes_back_with_every_event_and_cursor(scene: Scene) -> None:
    relay = scene.world.first
    doors: list[Door] = [Streaming(relay.url), Polling(relay.url), LongPolling(relay.url, told_of_resets=True)]
    clients = [(Client(scene, Ask(start="earliest")), door) for door in doors]
    try:
        for life in range(2):
            first = 3 * life + 1
            await scene.publish(relay, "A", key=f"key-{life}")
            await scene.publish(relay, "A B A")
            expected = Read(f"A{first} A{first + 1} A{first + 2}")
            for client, door in clients:
                told = await door.read(client, expected)
                assert (told.resume, told.labels, told.gaps) == ("exact", expected.events.split(), {})
            relay.kill()
            for _, door in clients:
                await door.cut()
            relay.start()
            await scene.publish(relay, "A", key=f"key-{life}", duplicate=True)
        for _, door in clients:  # whoever comes with nothing gets all of it
            client = Client(scene, Ask(start="earliest", limit=4))
            labels = [f"A{number}" for number in range(1, 7)]
            told = await door.read(client, Read(" ".join(labels)))
            assert (told.resume, told.labels) == ("exact", labels)
    finally:
        for door in doors:
            await door.cut()


async def test_a_relay_waits_for_the_valkey_of_the_one_that_was_killed(scene: Scene) -> None:
    """Its last act is to remove the socket, which would then be that of the next one."""
    relay = scene.world.first
    data_dir = relay.directory / "data"
    await scene.publish(relay, "A A")
    old = server_process(data_dir)
    os.kill(old, signal.SIGSTOP)
    try:
        relay.kill()
        with ThreadPoolExecutor() as pool:
            started = pool.submit(relay.start)
            told = "waiting for the valkey-server of a relay that was killed"
            await asyncio.to_thread(wait_for, "it waits", lambda: told in relay.log() or started.done())
            assert not started.done()
            os.kill(old, signal.SIGCONT)
            await asyncio.wrap_future(started)
    finally:
        try:
            os.kill(old, signal.SIGCONT)
        except ProcessLookupError:
            pass
    assert find_url(data_dir)
    command = [sys.executable, "-m", "relay", "publish", scene.topic("A"), "--data", "3"]
    done = await asyncio.to_thread(subprocess.run, command, env=relay.environ(), capture_output=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    page = (await scene.http.get(f"{relay.url}/stream/{scene.topic('A')}/v1/poll?cursor={scene.records['A'][0].id}")).json()
    assert (page["resume"], [event["data"] for event in page["events"]]) == ("exact", [scene.records["A"][1].data, 3])


def server_process(data_dir: Path) -> int:
    """The process that listens on this directory's socket, as it has written it into its own log."""
    lines = (data_dir / "valkey.log").read_text().splitlines()
    return int(next(line for line in reversed(lines) if "just started" in line).rpartition("pid=")[2].partition(",")[0])

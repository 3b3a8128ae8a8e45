"""The worlds that the tests of the protocol share."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack

import pytest
import valkey.asyncio

from tests.protocol.world import Scene, World, open_http


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], World]]:
    """Worlds by their number of shards, started when they are first asked for."""
    started: dict[int, World] = {}

    def get(shards: int) -> World:
        if shards not in started:
            started[shards] = World(tmp_path_factory.mktemp(f"world-{shards}"), shards)
            started[shards].start()
        return started[shards]

    yield get
    for world in started.values():
        world.kill()


@pytest.fixture(scope="module")
async def scenes(worlds: Callable[[int], World]) -> AsyncIterator[Callable[[int], Scene]]:
    """A new scene, by the number of shards. Connections are shared: opening them would be most of a test's time."""
    async with open_http() as http, AsyncExitStack() as stack:
        logs: dict[int, valkey.asyncio.Valkey] = {}

        def get(shards: int) -> Scene:
            world = worlds(shards)
            if shards not in logs:
                logs[shards] = valkey.asyncio.Valkey.from_url(world.valkey.url)
                stack.push_async_callback(logs[shards].aclose)
            return Scene(world, http, logs[shards])

        yield get

"""Servers that the tests share: one Valkey and one relay for the whole run (of each worker)."""

import os
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import hypothesis
import pytest

from tests.asking import Asker
from tests.protocol.world import Function
from tests.servers import SEAL_KEY, Relay, Valkey, token

# So that the shared relay's own limits don't get into the way of tests that open many streams at once.
SHARED_ENV = {
    "RELAY_MAX_STREAMS_PER_SUB": "5000",
    "RELAY_PUBLIC_TOPICS": "public/**",
    "RELAY_HEARTBEAT_SECONDS": "1",
    "SSE_ENCRYPTION_KEY": SEAL_KEY,
}

# Whoever has Python write no bytecode has each process that a test starts compile all it imports: more than half of a relay's start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# How long an example takes is the machine's business.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


# Where tests wait most. They are begun first, so that at the end no worker is left alone with a long file.
LONG = ("updates", "infra", "faults", "browser", "protocol")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers take files in this order (`--no-loadscope-reorder`)."""
    items.sort(key=lambda item: LONG.index(item.path.parent.name) if item.path.parent.name in LONG else len(LONG))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A server for all tests: each uses topics of its own."""
    server = Valkey(tmp_path_factory.mktemp("valkey")).start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def relay(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[Relay]:
    process = Relay(tmp_path_factory.mktemp("relay"), valkey.url, SHARED_ENV).start()
    yield process
    process.kill()


@pytest.fixture(scope="session")
def asker(relay: Relay) -> Iterator[Asker]:
    """Asks the shared relay, one request after the other."""
    with Asker(relay.url) as asker:
        yield asker


@pytest.fixture(scope="session")
def function(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[Function]:
    """The polling function, beside the shared relay."""
    process = Function(Relay(tmp_path_factory.mktemp("function"), valkey.url, SHARED_ENV)).start()
    yield process
    process.kill()


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[list[Asker]]:
    """Two relays and the polling function."""
    folder = tmp_path_factory.mktemp("fleet")
    env = {"RELAY_PUBLIC_TOPICS": "public/**", "RELAY_HEARTBEAT_SECONDS": "1"}
    relays = [Relay(folder / name, valkey.url, env) for name in ("first", "second")]
    servers: list[Relay | Function] = [*relays, Function(Relay(folder / "function", valkey.url, env))]
    try:
        with ThreadPoolExecutor() as pool:
            for started in [pool.submit(server.start) for server in servers]:
                started.result()
        with ExitStack() as opened:
            yield [opened.enter_context(Asker(server.url)) for server in servers]
    finally:
        for server in servers:
            if server.process:
                server.kill()


@pytest.fixture
async def client(relay: Relay) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the shared relay with a token for everything."""
    async with httpx.AsyncClient(base_url=relay.url, headers={"authorization": f"Bearer {token()}"}, timeout=10) as opened:
        yield opened


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


def need(tool: str, path: str | None) -> str:
    """The path of a tool that a laptop may lack: then the test is skipped; in CI it fails."""
    if path:
        return path
    if os.environ.get("CI") == "true":
        pytest.fail(f"{tool} is missing, and CI must have it")
    pytest.skip(f"{tool} is not installed")

"""Servers of a module's own: whatever is killed here is nobody else's."""

import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.faults.clients import open_http
from tests.servers import Relay

FULL_SIZE = os.environ.get("FULL_SIZE") == "1"  # crowds and outages as large as `.github/FAULTS.md` names them
ENV = {"RELAY_HEARTBEAT_SECONDS": "1", "RELAY_MAX_STREAMS_PER_SUB": "5000"}

StartRelay = Callable[..., Relay]
StartRelays = Callable[..., list[Relay]]


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with open_http() as client:
        yield client


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def start_relays(start_relay: StartRelay) -> StartRelays:
    """The same, of several at once."""

    def start(count: int, valkey_url: str, env: Mapping[str, str] = {}) -> list[Relay]:
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(lambda _: start_relay(valkey_url, env), range(count)))

    return start


@pytest.fixture(scope="module")
def start_relay(folder: Path) -> Iterator[StartRelay]:
    """Starts relays that end with the module. By then no log may have a traceback."""
    started: list[Relay] = []
    with ExitStack() as stack:

        def start(valkey_url: str, env: Mapping[str, str] = {}) -> Relay:
            process = Relay(folder, valkey_url, {**ENV, **env})
            stack.callback(process.kill)
            started.append(process)
            return process.start()

        yield start
    for relay in started:
        assert "Traceback" not in relay.log(), relay.log()

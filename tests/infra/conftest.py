"""Two relays and nginx in front of them, for all tests of a module."""

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest

from tests.faults.clients import open_http
from tests.infra.nginx import Nginx, run_nginx
from tests.servers import Relay, Valkey

ENV = {
    "RELAY_HEARTBEAT_SECONDS": "1",
    "RELAY_MAX_STREAMS_PER_SUB": "5000",
    "RELAY_PUBLIC_TOPICS": "public/**",
    "RELAY_TRUSTED_PROXIES": "127.0.0.1",
    "RELAY_DRAIN_SECONDS": "5",  # and as long again until it is killed, which a busy machine may need
}


@pytest.fixture(scope="module")
def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("own"))
    try:
        yield server.start()
    finally:
        server.kill()


@pytest.fixture(scope="module")
def relays(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[list[Relay]]:
    folder = tmp_path_factory.mktemp("relays")
    processes = [Relay(folder, valkey.url, ENV) for _ in range(2)]
    with ExitStack() as stack, ThreadPoolExecutor(len(processes)) as pool:
        for process in processes:
            stack.callback(process.kill)
        list(pool.map(Relay.start, processes))
        yield processes
    for process in processes:
        assert "Traceback" not in process.log(), process.log()


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory, relays: list[Relay]) -> Iterator[Nginx]:
    with run_nginx(tmp_path_factory.mktemp("nginx"), [relay.port for relay in relays]) as running:
        yield running


@pytest.fixture
async def http(nginx: Nginx) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a token for everything, over TLS with HTTP/2."""
    async with open_http(tls=nginx.tls, http2=True) as client:
        yield client


@pytest.fixture
async def http1(nginx: Nginx) -> AsyncIterator[httpx.AsyncClient]:
    async with open_http(tls=nginx.tls) as client:
        yield client

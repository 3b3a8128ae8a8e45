"""Servers that the tests share: one Valkey and one relay for the whole run (of each worker)."""

import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import hypothesis
import pytest

from tests import leftovers
from tests.asking import Asker
from tests.protocol.world import Function
from tests.servers import SEAL_KEY, Relay, Valkey, token
from tests.waiting import LIMIT_S

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
hypothesis.settings.register_profile("tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("tests")


# Where tests wait most. They are begun first, so that at the end no worker is left alone with a long file.
LONG = ("updates", "infra", "faults", "browser", "protocol")
# What can only be shown with load, long waits or a real browser.
SLOW = ("faults", "browser", "infra")
# What starts servers of its own, or waits: not before each commit.
MODULES_LONG = {
    *("promise", "checks", "cli", "clients", "demo", "entitlement", "http_live", "http_refusals", "http_status", "jwks", "rates"),
    *("embedded", "openapi", "real_input", "revocation", "serve", "tickets"),
}
FOLDERS_LONG = ("bench", "hostile", "updates")
FOLDER, LEFT = pytest.StashKey[Path](), pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the slow tests too")


def is_worker(config: pytest.Config) -> bool:
    """Whether this is one of xdist's processes, which have the arguments of the first one."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if leaves_slow_out(config):
        config.option.markexpr = "not slow"
    if is_worker(config):
        return
    config.stash[FOLDER] = leftovers.make_folder()
    if not config.option.basetemp:
        config.option.basetemp = str(config.stash[FOLDER] / leftovers.BASE)


def leaves_slow_out(config: pytest.Config) -> bool:
    """Who names files or a marker, gets what is named."""
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    return not (config.option.all or named or config.option.markexpr)


@pytest.hookimpl(tryfirst=True)  # before marks are looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers take files in this order (`--no-loadscope-reorder`)."""
    for item in items:
        if item.path.parent.name in SLOW:
            item.add_marker(pytest.mark.slow)
        if item.path.parent.name in FOLDERS_LONG or item.path.stem.removeprefix("test_") in MODULES_LONG:
            item.add_marker(pytest.mark.long)
    items.sort(key=lambda item: LONG.index(item.path.parent.name) if item.path.parent.name in LONG else len(LONG))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """However the tests have ended: nothing of theirs may be left."""
    config = session.config
    if is_worker(config):
        return
    config.stash[LEFT] = leftovers.take_away(config.stash[FOLDER], keep=exitstatus != 0)
    if config.stash[LEFT]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lacking = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in terminalreporter.getreports("skipped"))
    if lacking:
        terminalreporter.section("skipped, and how to get it")
        for reason, count in sorted(lacking.items()):
            terminalreporter.line(f"{count:5} {reason}")
    if config.stash[LEFT]:
        terminalreporter.section("left behind by the tests", red=True)
        for line in config.stash[LEFT]:
            terminalreporter.line(line)
    if config.stash[FOLDER].exists():
        terminalreporter.line(f"kept for a look into what failed: {config.stash[FOLDER]}")
    if config.option.markexpr == "not slow":
        terminalreporter.line("left out: what takes load, long waits or a browser to show. All of it: python3 -m pytest --all")


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
    async with httpx.AsyncClient(base_url=relay.url, headers={"authorization": f"Bearer {token()}"}, timeout=LIMIT_S) as opened:
        yield opened


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path

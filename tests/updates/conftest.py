"""One job for the tests of a module: each test has it watch an upstream of its own."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Valkey, token, topic
from tests.updates.jobs import NOBODY, SECRET, JobProcess, data, entries, leader, status, toml
from tests.updates.upstreams import Upstream, upstream
from tests.waiting import wait_for

NAMES = count()


@dataclass
class Watched:
    """A source that the job watches, and what the log has of it."""

    name: str
    topic: str
    job: JobProcess
    valkey: Valkey

    def entries(self) -> list[tuple[str, Any]]:
        return entries(self.valkey, self.topic)

    def data(self) -> list[Any]:
        return data(self.valkey, self.topic)

    def status(self) -> dict[str, Any]:
        return status(self.valkey, self.name)

    def leader(self) -> str:
        return leader(self.valkey, self.name)

    def lines(self) -> list[str]:
        """The job's log of it."""
        return [line for line in self.job.log().splitlines() if f"source {self.name} " in line or f"source {self.name}:" in line]

    def tells(self, text: str) -> str:
        """Waits for a line of the log."""
        wait_for(f"the log says {text!r}", lambda: any(text in line for line in self.lines()))
        return next(line for line in self.lines() if text in line)


Watch = Callable[..., Watched]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[JobProcess]:
    proxy = "http://127.0.0.1:1"
    process = JobProcess(
        tmp_path_factory.mktemp("job"),
        valkey.url,
        NOBODY,
        {
            "SECRET": SECRET,
            "TOKEN": token(),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "HTTP_PROXY": proxy,
            "http_proxy": proxy,
            "ALL_PROXY": proxy,
            "RELAY_LEASE_SECONDS": "60",  # so that it looks on, however long it stands still
        },
    )
    try:
        process.start()
        wait_for("it has started", lambda: "1 sources" in process.log())
        yield process
    finally:
        process.kill()
    assert "Traceback" not in process.log(), process.log()


@pytest.fixture
def up() -> Iterator[Upstream]:
    with upstream() as server:
        yield server


@pytest.fixture
def watch(job: JobProcess, valkey: Valkey, up: Upstream) -> Iterator[Watch]:
    """Has the job watch `up`, or what the keys say, until the test ends."""
    sources: dict[str, str] = {}

    def start(**keys: Any) -> Watched:
        given = {"name": f"source-{next(NAMES)}", "url": up.url, "topic": topic(), **keys}
        sources[given["name"]] = toml(**given)
        job.reload("".join(sources.values()))
        return Watched(given["name"], given["topic"], job, valkey)

    yield start
    job.reload(NOBODY)


def leave_alone(watched: Watched) -> None:
    """Has the job watch nothing, so that the source may be defined anew: else that waits for the lease of the old one."""
    watched.job.reload(NOBODY)
    wait_for("nobody looks", lambda: not watched.leader())

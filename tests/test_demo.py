"""`relay demo`: from a made-up provider by the update job into the log, and out of it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.servers import free_port
from tests.waiting import LIMIT_S, wait_for

TOPIC = "rounds/ROULETTE/123"


class Demo:
    """The command as a process, and what it prints."""

    def __init__(self, folder: Path) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.path = folder / "demo.log"
        with self.path.open("wb") as log:
            environ = {**clean, "RELAY_PORT": str(port), "RELAY_DRAIN_SECONDS": "0"}
            self.process = subprocess.Popen(
                [sys.executable, "-m", "relay", "demo"], env=environ, stdout=log, stderr=log, start_new_session=True
            )
        wait_for("it says what to try", lambda: "Ctrl-C" in self.printed())

    def printed(self) -> str:
        return self.path.read_text()

    def found(self, pattern: str) -> str:
        match = re.search(pattern, self.printed())
        assert match, self.printed()
        return match[1]

    @property
    def upstream(self) -> str:
        return self.found(r"(http://127\.0\.0\.1:\d+/)\s")

    def events(self) -> list[Any]:
        headers = {"authorization": "Bearer " + self.found(r"TOKEN=(\S+)")}
        try:
            answer = httpx.get(f"{self.url}/stream/{TOPIC}/v1/poll?cursor=earliest", headers=headers, timeout=LIMIT_S)
        except httpx.TransportError:
            return []
        return list(answer.json().get("events", []))

    def upstream_is_here(self) -> bool:
        try:
            return httpx.get(self.upstream, timeout=LIMIT_S).is_success
        except httpx.TransportError:
            return False


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    process = Demo(tmp_path)
    yield process
    try:
        os.killpg(process.process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.process.wait(LIMIT_S)


def test_numbers_of_the_made_up_provider_come_by_the_job_into_the_log_and_all_ends_together(demo: Demo) -> None:
    wait_for("two numbers are in the log", lambda: len(demo.events()) >= 2)
    shown = httpx.get(demo.upstream, timeout=LIMIT_S).json()
    assert shown["provider"] == "made up"
    events = demo.events()
    assert [event["data"] for event in events[:2]] == [spin["update"] for spin in shown["spins"][:2]]
    assert [event["n"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["data"]["update_type"] == "new_number"
    assert "[STREAM JOB] INFO source made-up-roulette" in demo.printed()
    demo.process.send_signal(signal.SIGTERM)
    assert demo.process.wait(LIMIT_S) == 0
    assert not demo.upstream_is_here()
    assert "Traceback" not in demo.printed()


def test_the_provider_ends_with_a_demo_that_is_killed(demo: Demo) -> None:
    assert demo.upstream_is_here()
    demo.process.kill()
    demo.process.wait(LIMIT_S)
    wait_for("it is gone", lambda: not demo.upstream_is_here())

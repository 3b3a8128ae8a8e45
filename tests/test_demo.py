"""`relay demo`: from a made-up provider by the update job into the log, and out of it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.needs import need
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
            # Where no stream is open, draining takes no time; but it's the time after which a busy machine is killed.
            patience = {"RELAY_DRAIN_SECONDS": "60", "RELAY_VALKEY_SECONDS": f"{LIMIT_S:g}"}
            environ = {**clean, "RELAY_PORT": str(port), **patience}
            self.process = subprocess.Popen(
                [sys.executable, "-m", "relay", "demo"], env=environ, stdout=log, stderr=log, start_new_session=True
            )

    def says_what_to_try(self) -> bool:
        assert self.process.poll() is None, self.printed()
        return "Ctrl-C" in self.printed()

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(LIMIT_S)

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
    demo = Demo(tmp_path)
    try:
        wait_for("it says what to try", demo.says_what_to_try)
        yield demo
    finally:
        demo.kill()


def test_numbers_of_the_made_up_provider_come_by_the_job_into_the_log_and_all_ends_together(demo: Demo) -> None:

    def are_there_in_order() -> bool:
        """It shows the newest fifty: not always the log's first."""
        shown = httpx.get(demo.upstream, timeout=LIMIT_S).json()
        assert shown["provider"] == "made up"
        in_log = list(pairwise(event["data"] for event in demo.events()))
        return any(pair in in_log for pair in pairwise(spin["update"] for spin in shown["spins"]))

    wait_for("two numbers are in the log as they are shown", are_there_in_order)
    events = demo.events()
    assert [event["n"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["data"]["update_type"] == "new_number"
    assert "[STREAM JOB] INFO source made-up-roulette" in demo.printed()
    demo.process.send_signal(signal.SIGTERM)
    assert demo.process.wait(LIMIT_S) == 0
    assert not demo.upstream_is_here()
    assert "Traceback" not in demo.printed()


def test_the_provider_ends_with_a_demo_that_is_killed(demo: Demo) -> None:
    need("Linux")  # whose kernel ends a child with its parent
    assert demo.upstream_is_here()
    demo.process.kill()
    demo.process.wait(LIMIT_S)
    wait_for("it is gone", lambda: not demo.upstream_is_here())

"""Relays of this folder's own, whose clients misbehave: one that is patient with them, and one that soon hangs up.

On the patient one nothing ends because time has passed: what ends there was ended for what it said.
"""

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.asking import Asker
from tests.servers import Relay, Valkey

HASTY_S = 1
PATIENT_S = 3600
ENV = {
    "RELAY_HEARTBEAT_SECONDS": "1",
    "RELAY_MAX_STREAMS_PER_SUB": "5000",
    "RELAY_PUBLIC_TOPICS": "public/**",
}

# The same examples at each run: who has just changed something else should not be the one to find out.
hypothesis.settings.register_profile("hostile", deadline=None, derandomize=True, max_examples=200)
BOUNDED = hypothesis.settings.get_profile("hostile")


def run(folder: Path, valkey: Valkey, request_s: int) -> Iterator[Relay]:
    """By the end its log may have no traceback, and its process must be the one that was started."""
    process = Relay(folder, valkey.url, {**ENV, "RELAY_REQUEST_SECONDS": str(request_s)})
    try:
        yield process.start()
        assert process.stop() == 0
        assert "Traceback" not in process.log(), process.log()[-5000:]
        assert "panicked" not in process.log(), process.log()[-5000:]
    finally:
        process.kill()


@pytest.fixture(scope="package")
def target(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[Relay]:
    yield from run(tmp_path_factory.mktemp("hostile"), valkey, PATIENT_S)


@pytest.fixture(scope="package")
def hasty(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[Relay]:
    """Gives clients so little time that it may hang up on any of them, if the machine is slow."""
    yield from run(tmp_path_factory.mktemp("hasty"), valkey, HASTY_S)


@pytest.fixture
def other(target: Relay) -> Iterator[Asker]:
    """Somebody who behaves, and must be served all the while."""
    with Asker(target.url) as asker:
        yield asker

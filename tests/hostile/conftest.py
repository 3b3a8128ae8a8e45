"""A relay of this folder's own: its clients misbehave, and are given little time."""

from collections.abc import Iterator

import hypothesis
import pytest

from tests.asking import Asker
from tests.servers import Relay, Valkey

REQUEST_S = 1
ENV = {
    "RELAY_REQUEST_SECONDS": str(REQUEST_S),
    "RELAY_HEARTBEAT_SECONDS": "1",
    "RELAY_MAX_STREAMS_PER_SUB": "5000",
    "RELAY_PUBLIC_TOPICS": "public/**",
}

# The same examples at each run: who has just changed something else should not be the one to find out.
hypothesis.settings.register_profile("hostile", deadline=None, derandomize=True, max_examples=200)
BOUNDED = hypothesis.settings.get_profile("hostile")


@pytest.fixture(scope="package")
def target(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[Relay]:
    """By the end its log may have no traceback, and its process must be the one that was started."""
    process = Relay(tmp_path_factory.mktemp("hostile"), valkey.url, ENV).start()
    yield process
    try:
        assert process.stop() == 0
        assert "Traceback" not in process.log(), process.log()[-5000:]
        assert "panicked" not in process.log(), process.log()[-5000:]
    finally:
        process.kill()


@pytest.fixture
def other(target: Relay) -> Iterator[Asker]:
    """Somebody who behaves, and must be served all the while."""
    with Asker(target.url) as asker:
        yield asker

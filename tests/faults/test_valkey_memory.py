"""Publishers at full speed fill the log no further than its bounds: Valkey's memory stays where it was once they are reached."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.event import Retention
from relay.log import Log, NewEvent, open_log
from tests.faults.conftest import FULL_SIZE
from tests.servers import Valkey, topic
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.anyio

ROUNDS = 500 if FULL_SIZE else 10  # of as many events as it took to reach the bounds
TOPICS, BATCH = 4, 400
BOUNDS = Retention(3_600_000, 500, 2000, 1000)
FILLING = 3 * BOUNDS.journal_events // BATCH  # batches that reach the bounds


@pytest.fixture
async def log(valkey_of_its_own: Valkey) -> AsyncIterator[Log]:
    async with open_log(valkey_of_its_own.url, 1, BOUNDS, LIMIT_S) as opened:
        yield opened


@pytest.fixture
def valkey_of_its_own(tmp_path: Path) -> object:
    server = Valkey(tmp_path / "valkey").start()
    yield server
    server.kill()


async def test_memory_stays_bounded_under_a_publisher_at_full_speed(log: Log, valkey_of_its_own: Valkey) -> None:
    names = [topic() for _ in range(TOPICS)]
    batch = [NewEvent(names[number % TOPICS], "update", b'"' + b"x" * 500 + b'"') for number in range(BATCH)]
    empty = int(valkey_of_its_own.info("used_memory"))
    for _ in range(FILLING):
        await log.append(batch)
    full = most = int(valkey_of_its_own.info("used_memory"))
    for _ in range(ROUNDS):
        for _ in range(FILLING):
            await log.append(batch)
        most = max(most, int(valkey_of_its_own.info("used_memory")))
    published = ROUNDS * FILLING * BATCH
    print(f"{published} events: {full} bytes when its bounds were reached, {most} at most from then on")
    # The server's buffers, and the last nodes, of which some are partly filled, come and go.
    assert most - full < (full - empty) / 4
    for one in await log.retained(names):
        assert BOUNDS.topic_events <= one.events < BOUNDS.topic_events + 200  # whole nodes are trimmed

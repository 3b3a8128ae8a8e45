"""Publishers at full speed fill the log no further than its bounds: Valkey's memory stays where it was once they are reached."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.event import Retention
from relay.log import Log, NewEvent, open_log
from tests.servers import Valkey, topic

pytestmark = pytest.mark.anyio

# RELAY_TEST_SECONDS makes a long run of it.
RUN_S = float(os.environ.get("RELAY_TEST_SECONDS", "3"))
LIMIT_S = RUN_S + 60
TOPICS, BATCH = 4, 400
BOUNDS = Retention(3_600_000, 500, 2000, 1000)
SLACK_BYTES = 2 << 20  # what the server's buffers and the last, partly filled nodes come to


@pytest.fixture
async def log(valkey_of_its_own: Valkey) -> AsyncIterator[Log]:
    async with open_log(valkey_of_its_own.url, 1, BOUNDS) as opened:
        yield opened


@pytest.fixture
def valkey_of_its_own(tmp_path: Path) -> object:
    server = Valkey(tmp_path / "valkey").start()
    yield server
    server.kill()


async def test_memory_stays_bounded_under_a_publisher_at_full_speed(log: Log, valkey_of_its_own: Valkey) -> None:
    names = [topic() for _ in range(TOPICS)]
    batch = [NewEvent(names[number % TOPICS], "update", b'"' + b"x" * 500 + b'"') for number in range(BATCH)]
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(LIMIT_S):
        for _ in range(3 * BOUNDS.journal_events // BATCH):
            await log.append(batch)
        full = int(valkey_of_its_own.info("used_memory"))
        published, most, ends = 0, full, loop.time() + RUN_S
        while loop.time() < ends:
            for _ in range(5):
                await log.append(batch)
                published += BATCH
            most = max(most, int(valkey_of_its_own.info("used_memory")))
    print(f"{published} events in {RUN_S:g} s: {full} bytes when its bounds were reached, {most} at most from then on")
    assert published > 2 * BOUNDS.journal_events
    assert most < full + SLACK_BYTES
    for one in await log.retained(names):
        assert BOUNDS.topic_events <= one.events < BOUNDS.topic_events + 200  # whole nodes are trimmed

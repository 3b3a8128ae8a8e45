"""The scripts of the log on a real server, where what they decide can't be seen through a door in little time."""

import time
from collections.abc import AsyncIterator, Iterator

import pytest

from relay.cursor import EARLIEST, Place
from relay.event import Retention
from relay.log import Log, open_log
from tests.servers import Valkey

pytestmark = pytest.mark.anyio

RETENTION_MS = 3_600_000
OLD_MS, YOUNG_MS = 3 * RETENTION_MS, RETENTION_MS
KEPT = Retention(RETENTION_MS, 1000, 1000, RETENTION_MS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """Of its own: what is in it is made by hand."""
    server = Valkey(tmp_path_factory.mktemp("log")).start()
    yield server
    server.kill()


@pytest.fixture
async def log(server: Valkey) -> AsyncIterator[Log]:
    server.ask("FLUSHALL")
    async with open_log(server.url, 1, KEPT) as log:
        yield log


# At which count the place is and how old it is, the journal's entries by count and age, and its last count.
UNTRACED: dict[str, tuple[tuple[int, int], list[tuple[int, int]], int, bool]] = {
    "a young place": ((5, YOUNG_MS), [(9, 0)], 9, False),
    "nothing came": ((5, OLD_MS), [], 5, False),
    "the next entry is kept": ((5, OLD_MS), [(6, YOUNG_MS), (7, 0)], 7, False),
    "more than the next entry is kept": ((5, OLD_MS), [(4, OLD_MS + 1), (6, YOUNG_MS)], 6, False),
    "the next entry is gone": ((5, OLD_MS), [(7, YOUNG_MS)], 7, True),
    "all that came is gone": ((5, OLD_MS), [], 7, True),
    "the next entry is kept, and older than heads live": ((5, OLD_MS), [(6, OLD_MS - 1), (7, 0)], 7, True),
}


@pytest.mark.parametrize(("at", "entries", "last", "untraced"), UNTRACED.values(), ids=UNTRACED)
async def test_a_place_is_older_than_any_trace_only_if_something_came_after_it_that_the_journal_has_lost(
    server: Valkey, log: Log, at: tuple[int, int], entries: list[tuple[int, int]], last: int, untraced: bool
) -> None:
    end = (await log.look(0, EARLIEST)).end
    now_ms = int(time.time() * 1000)
    server.ask("HSET", "{relay:0}:shard", "s", last, "last", f"{now_ms}-{last}")
    for s, age_ms in entries:
        server.ask("XADD", "{relay:0}:journal", f"{now_ms - age_ms}-{s}", "t", "a/b/c")
    s, age_ms = at
    assert (await log.look(0, Place(end.epoch, now_ms - age_ms, s))).untraced is untraced


async def test_the_earliest_is_never_older_than_any_trace(server: Valkey, log: Log) -> None:
    await log.look(0, EARLIEST)
    server.ask("HSET", "{relay:0}:shard", "s", 9)
    assert not (await log.look(0, EARLIEST)).untraced


async def test_a_shard_that_nobody_has_met_has_an_epoch_from_then_on(server: Valkey, log: Log) -> None:
    end = (await log.look(0, EARLIEST)).end
    assert end.epoch != EARLIEST.epoch
    assert (await log.look(0, end)).reset is False
    assert (await log.look(0, EARLIEST)).end == end
    server.ask("FLUSHALL")
    assert (await log.look(0, end)).reset is True


async def test_a_server_without_memory_for_events_is_met_too(server: Valkey, log: Log) -> None:
    server.ask("CONFIG", "SET", "maxmemory", 1)
    try:
        assert (await log.look(0, EARLIEST)).end.epoch != EARLIEST.epoch
    finally:
        server.ask("CONFIG", "SET", "maxmemory", 0)


# An older copy in one life of the server: where a tail had been, where the copy ends, and how far it has gone on since, by count,
# all in one epoch.
BEGAN_MS = 1_800_000_000_000
SINCE_MS = BEGAN_MS + 60_000
REWOUND = {
    "nothing came since": (8, 3, 3),
    "less came since than was lost": (8, 3, 5),
    "more came since than was lost": (8, 3, 12),
    "all was lost": (8, 0, 9),
}


@pytest.mark.parametrize(("known", "copied", "last"), REWOUND.values(), ids=REWOUND)
async def test_places_that_an_older_copy_has_lost_are_told_from_its_own(
    server: Valkey, log: Log, known: int, copied: int, last: int
) -> None:
    epoch = (await log.look(0, EARLIEST)).end.epoch
    ids = [(BEGAN_MS + s, s) for s in range(1, copied + 1)] + [(SINCE_MS + s, s) for s in range(copied + 1, last + 1)]
    server.ask("HSET", "{relay:0}:shard", "s", last, "last", f"{ids[-1][0]}-{last}")
    for ms, s in ids:
        server.ask("XADD", "{relay:0}:journal", f"{ms}-{s}", "t", "a/b/c")
    assert await log.end_rewound(0, Place(epoch, BEGAN_MS + known, known))
    assert not await log.end_rewound(0, Place(epoch, BEGAN_MS + known, known)), "it has ended already"

    async def good(began_ms: int) -> list[int]:
        reads = {s: await log.look(0, Place(epoch, began_ms + s, s)) for s in range(1, 15)}
        return [s for s, read in reads.items() if not read.reset]

    assert await good(BEGAN_MS) == list(range(1, copied + 1))
    assert await good(SINCE_MS) == list(range(copied + 1, last + 1))
    end = (await log.look(0, EARLIEST)).end
    assert (end.epoch != epoch, end.at()) == (True, ids[-1])
    assert not (await log.look(0, end)).reset


async def test_an_epoch_goes_on_whose_log_is_what_was_known(server: Valkey, log: Log) -> None:
    end = (await log.look(0, EARLIEST)).end
    server.ask("HSET", "{relay:0}:shard", "s", 5, "last", f"{end.ms + 5}-5")
    server.ask("XADD", "{relay:0}:journal", f"{end.ms + 5}-5", "t", "a/b/c")
    for s in range(6):  # what was between was trimmed
        assert not await log.end_rewound(0, Place(end.epoch, end.ms + s, s))
    assert not await log.end_rewound(0, Place("another", end.ms + 9, 9))
    assert (await log.look(0, EARLIEST)).end.epoch == end.epoch

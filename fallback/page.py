"""A page: what is in it, how long it may be kept, and when to ask for the next.

Reads and verdicts are those of streams (`relay.span`), and so is the cursor. A page never goes beyond the smallest place up
to which all its topics were read, and its cursor is what was read, not what was delivered.
"""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence

import msgspec

from relay import framing
from relay.cursor import EARLIEST, Place, write_cursor
from relay.event import Event
from relay.framing import Seal
from relay.log import Bounds, Log
from relay.query import SEALED, ReadQuery, places_of
from relay.span import Gap, ShardRead, Span, judge, lost_all

ENTRIES_MAX = 5000  # looked at for one page
PAGE_BYTES_MAX = 1 << 20
PACE_MS = (1000, 15_000)
PACE_UNKNOWN_MS = 5000  # where nothing is known of the topic's rate


class Page(msgspec.Struct, frozen=True):
    items: list[bytes]  # events as JSON
    places: dict[int, Place]
    n: int | None
    more: bool
    resume: str
    gaps: list[Gap]
    last_ms: int  # when the newest event of its topics was appended; 0 if that isn't known
    now_ms: int

    def cursor(self, topics: Sequence[str]) -> str:
        single = topics[0] if len(topics) == 1 else ""
        return write_cursor(self.places, self.n if single else None, single)

    def silent(self) -> bool:
        """Whether there is nothing in it that a client would want to know at once."""
        return not self.items and not self.more and self.resume in ("new", "exact")


async def read_page(log: Log, seal: Seal | None, query: ReadQuery) -> Page:
    """One look at the log. Raises LogUnavailable."""
    by_shard = log.by_shard(query.topics)
    cursor = query.position.cursor
    reads: list[ShardRead] = []
    places: dict[int, Place] = {}
    resume, newest, n = "new", query.newest, None
    if cursor is not None:
        # A shard that the cursor doesn't name starts at its journal's end, as it would on a stream.
        known = places_of(cursor, set(by_shard))
        places = {**await ends(log, set(by_shard) - set(known)), **known}
        n = cursor.number_on(query.topics[0]) if len(query.topics) == 1 else None
        reads = await read_shards(log, query, by_shard, places, None)
        resume = "reset" if any(read.reset for read in reads) else "exact"
    if query.position.reset or resume == "reset":
        resume, n = "reset", 0
    if resume != "exact":
        places = dict.fromkeys(by_shard, EARLIEST)
        count = newest if resume == "new" else newest or None
        reads = await read_shards(log, query, by_shard, places, count)
    return assemble(query, log, reads, places, n, resume, seal)


async def ends(log: Log, shards: set[int]) -> dict[int, Place]:
    reads = await asyncio.gather(*(log.read(shard, EARLIEST, [], Bounds(1, 1)) for shard in shards))
    return {read.shard: read.end for read in reads}


async def read_shards(
    log: Log, query: ReadQuery, by_shard: Mapping[int, list[str]], places: Mapping[int, Place], newest: int | None
) -> list[ShardRead]:
    topics = len(query.topics)
    most = ENTRIES_MAX if query.names else min(ENTRIES_MAX, query.limit * topics)

    def read(shard: int, own: list[str]) -> "asyncio.Future[ShardRead]":
        bounds = Bounds(max(1, most * len(own) // topics), PAGE_BYTES_MAX * len(own) // topics)
        return asyncio.ensure_future(log.read(shard, places[shard], own, bounds, newest=newest))

    return list(await asyncio.gather(*(read(shard, own) for shard, own in by_shard.items())))


def assemble(
    query: ReadQuery,
    log: Log,
    reads: list[ShardRead],
    places: Mapping[int, Place],
    n: int | None,
    resume: str,
    seal: Seal | None,
) -> Page:
    """Puts the shards' spans together, up to the page's bounds."""
    single = len(query.topics) == 1
    spans = [judge(read, n) for read in reads]
    gaps = [gap for span in spans for gap in span.gaps]
    if resume == "reset":
        gaps = [lost_all(topic, read.end) for read in reads for topic in read.topics]
    elif gaps:
        resume = "gap"
    items: list[bytes] = []
    ends: dict[int, Place] = {}
    more, room = False, PAGE_BYTES_MAX
    for span in spans:
        wanted = [event for event in span.events if query.names is None or event.name in query.names]
        taken, room = take(wanted, query.limit - len(items), room, span.shard, items, seal)
        if taken == len(wanted):
            ends[span.shard], more = span.end, more or span.more
            n = span.n
        else:
            ends[span.shard], more = cut(span, wanted, taken, places[span.shard], query.newest), True
            n = wanted[taken - 1].n if taken else n
    heads = [topic.head.last[0] for read in reads for topic in read.topics if topic.head]
    return Page(items, ends, n if single else None, more, resume, gaps, max(heads, default=0), max(r.now_ms for r in reads))


def take(wanted: Sequence[Event], most: int, room: int, shard: int, items: list[bytes], seal: Seal | None) -> tuple[int, int]:
    """Adds events to the page while there is room. Returns how many, and the bytes left."""
    taken = 0
    for event in wanted[: max(0, most)]:
        item = framing.page_item(event, shard, seal)
        if items and len(item) > room:
            break
        items.append(item)
        room -= len(item)
        taken += 1
    return taken, room


def cut(span: Span, wanted: Sequence[Event], taken: int, place: Place, newest: int) -> Place:
    """Where a span ends of which only some events found room."""
    if taken:
        return wanted[taken - 1].place
    # None did. A first page of the newest k goes on just before them, not at the earliest place it was read from.
    return wanted[0].place.before() if newest else place


def body(query: ReadQuery, log: Log, page: Page, pace_ms: int) -> bytes:
    gaps = [gap.body(log.shard(gap.topic)) for gap in page.gaps]
    rest = {
        "cursor": page.cursor(query.topics),
        "more": page.more,
        "poll_after_ms": pace_ms,
        "resume": page.resume,
        "gap": (gaps[0] if len(query.topics) == 1 else gaps) if gaps else None,
    }
    return b'{"events":[%b],%b' % (b",".join(page.items), msgspec.json.encode(rest)[1:])


def pace_ms(query: ReadQuery, page: Page, load: float) -> int:
    """When to ask again: at once for the rest; else the sooner, the younger the newest event is; later under load (0 to 1).

    Whoever lets the poll wait is paced by that.
    """
    if page.more or query.wait_s:
        return 0
    least, most = PACE_MS
    pace = min(most, max(least, (page.now_ms - page.last_ms) // 4)) if page.last_ms else PACE_UNKNOWN_MS
    return int(pace * (1 + load))


def etag(query: ReadQuery, page: Page, coding: str) -> str:
    """Holds what was asked, and what was found. (RFC 9110, section 8.8.3)"""
    asked = (query.topics, query.version, sorted(query.names or ()), query.limit, query.newest, coding)
    gaps = [(gap.topic, gap.lost, gap.first_n) for gap in page.gaps]
    found = (page.cursor(query.topics), page.resume, gaps, page.more, len(page.items), page.items[0] if page.items else b"")
    return f'"{hashlib.blake2s(repr((asked, found)).encode(), digest_size=12).hexdigest()}"'


def cache_headers(query: ReadQuery, page: Page, *, anonymous: bool) -> dict[str, str]:
    """How long a page may be kept, and by whom.

    A shared cache keeps only what the URL alone says: `anonymous` means public topics, and a request without a credential.
    A page is true for as long as it is kept, since a short answer is still a true one; but seals expire, and an ETag would have a
    client keep what it can't open any more.
    """
    if query.position.in_header or query.version == SEALED:
        return {"cache-control": "no-store"}
    if not (anonymous and query.position.in_cursor and page.resume == "exact"):
        return {"cache-control": "private, no-cache"}
    if page.items:
        return {"cache-control": "public, max-age=60" if page.more else "public, max-age=1"}
    if not query.wait_s:
        return {"cache-control": "no-cache"}
    # nginx alone heeds the first, and removes it. It has equal polls wait for the answer to one of them; if that may not be kept
    # at all, the next one is sent on, to wait anew, and the others go on waiting for that. Before 1.23 the order matters.
    return {"x-accel-expires": "1", "cache-control": "no-cache"}

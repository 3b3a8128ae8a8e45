"""Events as bytes: a block of a stream, an item of a page.

`v1` carries the publisher's JSON text as it is. On a single topic a block's data is that text alone; on several it is
wrapped, so that a reader knows which topic it is of. Topics, names and cursors hold no character that JSON escapes.
"""

from collections.abc import Iterable, Mapping, MutableMapping

from relay import sse
from relay.cursor import Place, write_cursor
from relay.event import Event


def page_item(event: Event, shard: int) -> bytes:
    head = f'{{"id":"{event.cursor(shard)}","topic":"{event.topic}","n":{event.n},"event":"{event.name}","ts":{event.ts},"data":'
    return b"%b%b}" % (head.encode(), event.data)


def single_block(event: Event, shard: int) -> bytes:
    """On a single topic: the id is the event's own."""
    return sse.block(event.name, event.data, id=event.cursor(shard))


def wrapped_block(event: Event, shard: int, cursor: str) -> bytes:
    """On several topics: the id is the stream's cursor, the event's own is inside."""
    head = f'{{"id":"{event.cursor(shard)}","topic":"{event.topic}","n":{event.n},"ts":{event.ts},"data":'
    return sse.block(event.name, b"%b%b}" % (head.encode(), event.data), id=cursor)


def blocks(events: Iterable[Event], shard: int, single: bool, places: Mapping[int, Place]) -> bytes:
    """Blocks of one shard's events for a stream that is at these places in its shards."""
    if single:
        return b"".join([single_block(event, shard) for event in events])
    if len(places) == 1:
        prefix = f"{shard}-" if shard else ""
        return b"".join([wrapped_block(event, shard, f"{prefix}{event.place}") for event in events])
    at: MutableMapping[int, Place] = dict(places)
    parts = []
    for event in events:
        at[shard] = event.place
        parts.append(wrapped_block(event, shard, write_cursor(at)))
    return b"".join(parts)

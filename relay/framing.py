"""Events as bytes: a block of a stream, an item of a page.

`v1` carries the publisher's JSON text as it is, `v2` what seals it, which as JSON is a string. On a single topic a block's data is
that alone; on several it is wrapped, so that a reader knows which topic it is of. Topics, names, cursors and seals hold no
character that JSON escapes.
"""

from collections.abc import Callable, Iterable, Mapping, MutableMapping

from relay import sse
from relay.cursor import Place, write_cursor
from relay.event import Event

Seal = Callable[[Event, int], bytes]  # of an event and its shard


def as_json(event: Event, shard: int, seal: Seal | None) -> bytes:
    return b'"%b"' % seal(event, shard) if seal else event.data


def page_item(event: Event, shard: int, seal: Seal | None = None) -> bytes:
    head = f'{{"id":"{event.cursor(shard)}","topic":"{event.topic}","n":{event.n},"event":"{event.name}","ts":{event.ts},"data":'
    return b"%b%b}" % (head.encode(), as_json(event, shard, seal))


def single_block(event: Event, shard: int, seal: Seal | None = None) -> bytes:
    """On a single topic: the id is the event's own."""
    return sse.block(event.name, seal(event, shard) if seal else event.data, id=event.cursor(shard))


def wrapped_block(event: Event, shard: int, cursor: str, seal: Seal | None = None) -> bytes:
    """On several topics: the id is the stream's cursor, the event's own is inside."""
    head = f'{{"id":"{event.cursor(shard)}","topic":"{event.topic}","n":{event.n},"ts":{event.ts},"data":'
    return sse.block(event.name, b"%b%b}" % (head.encode(), as_json(event, shard, seal)), id=cursor)


def blocks(events: Iterable[Event], shard: int, single: bool, places: Mapping[int, Place], seal: Seal | None = None) -> bytes:
    """Blocks of one shard's events for a stream that is at these places in its shards."""
    if single:
        return b"".join([single_block(event, shard, seal) for event in events])
    if len(places) == 1:
        prefix = f"{shard}-" if shard else ""
        return b"".join([wrapped_block(event, shard, f"{prefix}{event.place}", seal) for event in events])
    at: MutableMapping[int, Place] = dict(places)
    parts = []
    for event in events:
        at[shard] = event.place
        parts.append(wrapped_block(event, shard, write_cursor(at), seal))
    return b"".join(parts)

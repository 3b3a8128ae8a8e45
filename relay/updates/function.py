"""Sources of the kind `python`: an async iterator of items, for whatever no other kind reads.

    from relay import Update

    async def readings(options, place):         # call = "plant.sensors:readings"
        async for reading in connect(options["host"], since=place):
            yield Update({"id": reading.id, "celsius": reading.value}, place=reading.id)

It is called with the source's `options` and with the place of the last update that is in the log, None at first; when it ends, it is
called again after the interval. A place only saves work: updates that come again are known by their key and version.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from importlib import import_module
from typing import Any

import msgspec

from relay.updates.feed import Batch, FeedError, Look
from relay.updates.sources import Source


class Update(msgspec.Struct, frozen=True):
    """An item, which JSON can hold, and where to go on behind it."""

    item: Any
    place: str | None = None


@asynccontextmanager
async def open_function(source: Source) -> AsyncIterator[Look]:
    module, _, name = source.call.partition(":")
    function = getattr(import_module(module), name)
    options = msgspec.json.decode(source.options)

    async def look(place: str | None) -> AsyncGenerator[Batch, None]:
        async with aclosing(function(options, place)) as updates:
            async for update in updates:
                if not isinstance(update, Update):
                    raise FeedError(f"yields a {type(update).__name__}, which is no Update")
                yield Batch([msgspec.Raw(msgspec.json.encode(update.item))], update.place)

    yield look

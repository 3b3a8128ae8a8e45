"""What the relay asks of others: subscriptions, and the sources of the update job, each looked at once."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing

import msgspec

from relay.checks import faults
from relay.errors import SettingsError, Unavailable
from relay.finding import Finding, good
from relay.log import NewEvent
from relay.service import Service
from relay.settings import Settings
from relay.updates.database import reach
from relay.updates.feed import FeedError
from relay.updates.item import UNFIT
from relay.updates.outbound import open_client
from relay.updates.sources import HTTP, PYTHON, SQL, SSE, Source, read_sources
from relay.updates.stream import begun
from relay.updates.web import open_web

SOURCES_AT_ONCE = 8


async def look_at_subscriptions(settings: Settings) -> list[Finding]:
    """Asks the service for a subject that there is not."""
    if settings.subscription != "http":
        return []
    service = Service(settings.subscription_url, 0)
    began_s = time.monotonic()
    try:
        subscription = await service.ask(f"relay-check-{secrets.token_hex(8)}")
    except Unavailable as error:
        return [faults.NO_SUBSCRIPTIONS.found(cause=error.cause)]
    finally:
        await service.close()
    if subscription.active(time.time()):
        return [faults.ANYBODY_SUBSCRIBED.found()]
    return [good("subscriptions", f"RELAY_SUBSCRIPTION_URL answers, in {(time.monotonic() - began_s) * 1000:.0f} ms")]


async def look_at_sources(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    if settings.sources is None:
        return []
    try:
        sources = read_sources(settings.sources, settings.poll_interval, environ)
    except SettingsError as error:
        return [faults.BAD_SOURCES.found(mistake=mistake) for mistake in error.mistakes]
    places = asyncio.Semaphore(SOURCES_AT_ONCE)

    async def look(source: Source) -> Finding:
        async with places:
            try:
                return await LOOKS[source.kind](source, settings.max_event_bytes)
            except FeedError as error:
                reason = str(error)
            except Exception as error:  # of a driver
                reason = f"fails: {type(error).__name__}: {error}"
        return faults.SOURCE_FAILS.found(name=source.name, reason=reason)

    return await asyncio.gather(*map(look, sources))


async def look_at_web(source: Source, max_event_bytes: int) -> Finding:
    """Asks it as the job does, and says what the job would make of the answer."""
    async with open_web(source) as look, aclosing(look(None)) as batches:
        items = (await anext(batches)).items
    first: NewEvent | None = None
    unfit, why = 0, ""
    for number, raw in enumerate(items, 1):
        try:
            value = msgspec.json.decode(raw)
            event = source.shape.event_of(raw, value, source.shape.identify(value), max_event_bytes)
        except UNFIT as error:
            unfit += 1
            why = why or f"item {number}: {error}"
        else:
            first = first or event
    if unfit:
        fault = faults.SOME_UNFIT if first else faults.ALL_UNFIT
        return fault.found(name=source.name, unfit=unfit, items=len(items), why=why)
    example = f"; the first would be {first.name} on {first.topic}" if first else ""
    return good(f"source {source.name}", f"it shows {len(items)} items{example}")


async def look_at_database(source: Source, _: int) -> Finding:
    """Its query isn't asked: that may be costly, or change something."""
    await reach(source)
    return good(f"source {source.name}", "the database takes us; the query isn't asked here")


async def look_at_stream(source: Source, _: int) -> Finding:
    async with open_client(source) as client, begun(client, source, None):
        return good(f"source {source.name}", "a stream begins; what it sends isn't read here")


async def look_at_function(source: Source, _: int) -> Finding:
    """That it can be imported was seen when the file was read."""
    return good(f"source {source.name}", f"{source.call} is there; it isn't called here")


LOOKS: dict[str, Callable[[Source, int], Awaitable[Finding]]] = {
    HTTP: look_at_web,
    SQL: look_at_database,
    SSE: look_at_stream,
    PYTHON: look_at_function,
}

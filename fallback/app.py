"""The polling API alone, for a function that deploys by itself: `fallback.app:create_app`.

No tail, no hub, no server and nothing in the background: between two requests an instance may be frozen or thrown away. A
`wait` here is one bounded blocking read of the topics' streams.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from litestar import Litestar

import relay
from fallback.keys import key_handlers
from fallback.poll import Wait, poll_handlers
from relay.admission import Admission
from relay.answers import answer_error
from relay.coding import coding_chooser
from relay.cursor import Place
from relay.edge import Edge
from relay.entitlement import entitlement_of
from relay.errors import SettingsError
from relay.guard import Permit, guard_of, key_set_of
from relay.log import Log
from relay.openapi import openapi_config
from relay.rates import Rates
from relay.records import Records
from relay.refusals import Refusals
from relay.settings import read_settings, retention_of, versions_of
from relay.span import Gap


class Uncounted:
    """An instance has no metrics of its own: its platform counts requests."""

    def paged(self, verdict: str, status: int) -> None: ...

    def gap(self, gap: Gap) -> None: ...


def create_app() -> Edge:
    """The ASGI application. Raises SettingsError, which names every mistake."""
    settings = read_settings()
    if not settings.valkey_url:
        raise SettingsError(["RELAY_VALKEY_URL is not set: the polling function reads the relay's log"])
    log = Log(settings.valkey_url, settings.shards, retention_of(settings), settings.valkey_seconds)
    records = Records(log, settings.jwt_max_seconds)
    key_set = key_set_of(settings)
    entitlement = entitlement_of(settings, records)
    guard = guard_of(settings, records.denials_for, entitlement.at_first, records.find_ticket, key_set)
    rates = Rates(log, 0, settings.requests_per_second)
    versions = versions_of(settings)
    admission = Admission(settings.max_streams, settings.max_streams_per_sub)

    @asynccontextmanager
    async def waiting(topics: Iterable[str], permit: Permit, who: str) -> AsyncIterator[Wait]:
        """The log itself is waited on, from the place where the last read ended: nothing has to be entered before."""
        names = list(topics)

        async def wait(places: dict[int, Place], wait_s: float) -> bool:
            await log.wait(places, names, wait_s)
            return True

        with admission.hold(who):
            yield wait

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        yield
        await entitlement.close()
        if key_set:
            await key_set.close()
        await log.close()

    app = Litestar(
        [
            *poll_handlers(guard, log, rates, versions, coding_chooser(settings.compression), waiting, Uncounted(), load=lambda: 0.0),
            *key_handlers(guard, rates, versions),
        ],
        lifespan=[lifespan],
        exception_handlers={Exception: answer_error},
        openapi_config=openapi_config(relay.__version__),
        logging_config=None,
    )
    return Edge(app, guard, Refusals(lambda code: None).refused)

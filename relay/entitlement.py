"""Is the subscription active: as the token claims, as Valkey says, or as a service of the operator's answers.

Where it is looked up, that is done at each connect and poll, and on open streams now and then. Who can't be asked says nothing:
`Unavailable` or `LogUnavailable`, never that there is no subscription.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec

from relay.auth import Identity, Subscription
from relay.records import Records
from relay.settings import Settings

if TYPE_CHECKING:
    from relay.service import Service

Look = Callable[[str], Awaitable[Subscription]]  # by the subject
Check = Callable[[Identity], Awaitable[Subscription]]


async def claimed(identity: Identity) -> Subscription:
    return identity.subscription


class Entitlement(msgspec.Struct, frozen=True):
    """One of the forms: what is asked at a connect or a poll (None: nothing), and what of open streams (None: nothing)."""

    at_first: Check | None
    again: Look | None
    service: "Service | None" = None

    async def close(self) -> None:
        if self.service:
            await self.service.close()


def entitlement_of(settings: Settings, records: Records) -> Entitlement:
    match settings.subscription:
        case "claim":
            return Entitlement(claimed, None)
        case "valkey":
            return Entitlement(lambda identity: records.subscription(identity.sub), records.subscription)
        case "http":
            from relay.service import Service  # brings an HTTP client, which a function's cold start is spared otherwise

            service = Service(settings.subscription_url, settings.subscription_recheck_seconds)
            return Entitlement(lambda identity: service.known(identity.sub), service.ask, service)
        case _:
            return Entitlement(None, None)

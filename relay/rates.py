"""How much a publisher, and an address that reads, may ask of the fleet in a second.

The count is in the log's Valkey, so that it holds for all processes together; whoever was refused is remembered here until its
time has come, so that a flood costs Valkey nothing. A limit guards the service, it is no promise: while Valkey can't say (away,
or out of memory), nobody is limited by it.
"""

import hashlib
import ipaddress
import random
import time
from collections.abc import Callable

from relay.errors import LogUnavailable, TooMany
from relay.log import Log

BURST_S = 10  # what a limit gives in so many seconds may come at once
REFUSED_MAX = 10_000  # who is remembered; who isn't costs a call
IPV6_PREFIX = 64  # what one customer has at least: it could use an address for each request


class Rates:
    """Limits of zero are none, and cost nothing."""

    def __init__(self, log: Log, publish_per_s: int, requests_per_s: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.log, self.publish_per_s, self.requests_per_s = log, publish_per_s, requests_per_s
        self._clock = clock
        self._refused: dict[str, float] = {}  # by when each may come back

    async def publish(self, sub: str, events: int) -> None:
        """Raises TooMany if this publisher's events come too fast."""
        if self.publish_per_s and events:
            await self._take("publish", sub, self.publish_per_s, events, "RELAY_PUBLISH_PER_SECOND", "events")

    async def request(self, address: str) -> None:
        """Raises TooMany if too many streams begin, and pages are asked for, from this address."""
        if self.requests_per_s:
            await self._take("request", network(address), self.requests_per_s, 1, "RELAY_REQUESTS_PER_SECOND", "requests")

    async def _take(self, kind: str, who: str, per_s: int, number: int, setting: str, what: str) -> None:
        name = f"{kind}:{hashlib.blake2s(who.encode(), digest_size=12).hexdigest()}"
        now_s = self._clock()
        back_s = self._refused.get(name, now_s)
        if back_s <= now_s:
            self._refused.pop(name, None)
            try:
                back_s = now_s + await self.log.take(name, per_s, number, BURST_S)
            except LogUnavailable:
                return
            if back_s <= now_s:
                return
            if len(self._refused) >= REFUSED_MAX:
                del self._refused[next(iter(self._refused))]
            self._refused[name] = back_s
        raise TooMany(
            f"more than {per_s} {what} a second: come back when it says",
            code="rate_limited",
            retry_after_s=(back_s - now_s) * random.uniform(1, 2),  # many clients may share an address
            cause=f"{setting}={per_s} is reached",
        )


def network(address: str) -> str:
    """Who an address stands for."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, IPV6_PREFIX), strict=False))

"""Asks a service of the operator's whether a subscription is active.

It is spared: what it said of a subject counts for as long as streams aren't looked at again, but only that a subscription is active,
so that whoever has just paid is let in. A service that can't be asked says nothing: `Unavailable`, never that there is no
subscription.
"""

import asyncio
import time

import httpx
import msgspec

from relay.auth import Subscription
from relay.errors import Unavailable
from relay.fetch import FetchError, fetch, tls

ANSWER_S = 2.0  # with the time that it takes to be asked
ANSWER_BYTES_MAX = 64 << 10
ASKING_MAX = 32  # questions at once
KNOWN_MAX = 10_000  # subjects


class Answer(msgspec.Struct, frozen=True):
    """What the service answers. Other members are its own business."""

    status: str | None
    until: float | None = None


ANSWERS = msgspec.json.Decoder(Answer)


class Service:
    """Asks `GET URL?sub=…`, for which it answers `{"status","until"}`."""

    def __init__(self, url: str, fresh_s: float) -> None:
        self.url, self.fresh_s = httpx.URL(url), fresh_s
        # Opened at the first question: a client reads the roots of all certificates, which takes a while.
        self._client: httpx.AsyncClient | None = None
        self._places = asyncio.Semaphore(ASKING_MAX)
        self._asking: dict[str, asyncio.Task[Subscription]] = {}
        self._active: dict[str, tuple[float, Subscription]] = {}  # by subject, and when it was asked

    async def known(self, sub: str) -> Subscription:
        """What it says, or said a moment ago. Raises Unavailable."""
        asked_s, subscription = self._active.get(sub, (0.0, Subscription()))
        return subscription if asked_s + self.fresh_s > time.monotonic() else await self.ask(sub)

    async def ask(self, sub: str) -> Subscription:
        """What it says now; asked once for all who want to know it of one subject. Raises Unavailable."""
        asking = self._asking.get(sub)
        if asking is None:
            asking = self._asking[sub] = asyncio.create_task(self._ask(sub))
            asking.add_done_callback(lambda task: self._done(sub, task))
        return await asyncio.shield(asking)

    async def _ask(self, sub: str) -> Subscription:
        asked_s = time.monotonic()
        self._active.pop(sub, None)
        self._client = self._client or httpx.AsyncClient(trust_env=False, verify=tls())
        try:
            async with asyncio.timeout(ANSWER_S), self._places:
                body = await fetch(self._client, self.url.copy_merge_params({"sub": sub}), ANSWER_BYTES_MAX)
            answer = ANSWERS.decode(body)
        except TimeoutError as error:
            raise undecided(f"no answer within {ANSWER_S:g} s") from error
        except (FetchError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise undecided(str(error)) from error
        subscription = Subscription(answer.status or "", answer.until)
        if subscription.active(time.time()):
            while len(self._active) >= KNOWN_MAX:
                del self._active[next(iter(self._active))]
            self._active[sub] = asked_s, subscription
        return subscription

    def _done(self, sub: str, task: asyncio.Task[Subscription]) -> None:
        del self._asking[sub]
        if not task.cancelled():
            task.exception()  # whoever still waits raises it

    async def close(self) -> None:
        if self._client:
            await self._client.aclose()


def undecided(cause: str) -> Unavailable:
    return Unavailable("subscriptions can't be checked now: try again", cause=f"RELAY_SUBSCRIPTION_URL: {cause}")

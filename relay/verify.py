"""`relay verify URL`: a continuous proof that nothing is lost, repeated or reordered.

Publishes numbered canaries to a topic of its own, one after the other, each with an idempotency key so that it can be
repeated until it is acknowledged; and reads them through live, poll and long poll at once, by clients that keep their
cursor and cut their own connections at random. Each client must see 1, 2, 3, … and nothing else.

Where the relay has canaries sealed alone, they are read sealed, and opened with the keys that any reader is given.
"""

import argparse
import asyncio
import random
import secrets
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import msgspec

from relay import sse
from relay.canary import Refusal, canary_token, quantiles, refusal_of
from relay.errors import RelayError, Unopened
from relay.query import PLAIN, SEALED
from relay.seal import Password, read_base64, unseal

DOORS = ("live", "poll", "longpoll")
CUT_AFTER_S = (0.5, 4.0)  # a connection's life is drawn from this
SETTLE_S = 30.0  # the longest that clients may take for what was published last
PAUSE_S = (0.1, 1.0)  # between two tries of something that failed
REQUEST_S = 10.0
TOKEN_MARGIN_S = 300  # by which a token that is made here outlives the run


class Report(msgspec.Struct):
    """What was seen. All of lost, repeated, reordered, gaps and resets must be 0."""

    published: int = 0
    refused: int = 0  # tries to publish that were not acknowledged, and repeated
    delivered: int = 0
    cuts: int = 0
    lost: int = 0
    repeated: int = 0
    reordered: int = 0
    gaps: int = 0
    resets: int = 0
    latency_ms: dict[str, dict[str, float]] = {}

    def holds(self) -> bool:
        return not (self.lost or self.repeated or self.reordered or self.gaps or self.resets)


class Client:
    """A reader that keeps its cursor, and what it has seen."""

    def __init__(self, door: str, cursor: str, report: Report) -> None:
        self.door, self.cursor, self.report = door, cursor, report
        self.last = 0
        self.missing: set[int] = set()
        self.latencies_ms: list[float] = []

    def see(self, number: int, sent_ns: int) -> None:
        self.report.delivered += 1
        self.latencies_ms.append((time.monotonic_ns() - sent_ns) / 1e6)
        if number in self.missing:
            self.missing.discard(number)
            self.report.reordered += 1
        elif number <= self.last:
            self.report.repeated += 1
        else:
            self.missing.update(range(self.last + 1, number))
            self.last = number

    def told(self, name: str) -> None:
        self.report.gaps += name == "gap"
        self.report.resets += name == "reset"


class Verification:
    def __init__(self, client: httpx.AsyncClient, rate: float, clients: int) -> None:
        self.client, self.rate, self.clients = client, rate, clients
        self.topic = f"canary/verify/{secrets.token_hex(8)}"
        self.report = Report()
        self.readers: list[Client] = []
        self.version = PLAIN
        self._passwords: dict[str, Password] = {}  # of the topic's keys, by their ids

    async def run(self, seconds: float, progress: Callable[[Report], None]) -> Report:
        """Raises httpx.HTTPError or VerifyError if the relay can't be used at all."""
        cursor = await self._first_cursor()
        self.readers = [Client(door, cursor, self.report) for door in DOORS for _ in range(self.clients)]
        reading = [asyncio.create_task(self._read(reader)) for reader in self.readers]
        try:
            await self._publish(seconds, progress)
            deadline = time.monotonic() + SETTLE_S
            while self._behind() and time.monotonic() < deadline:  # noqa: ASYNC110  # many readers, each with its own end
                await asyncio.sleep(0.05)
        finally:
            for task in reading:
                task.cancel()
            ended = await asyncio.gather(*reading, return_exceptions=True)
        for failure in ended:
            if isinstance(failure, Exception):
                raise failure
        self._sum_up()
        return self.report

    async def _first_cursor(self) -> str:
        """Finds out, too, in which version canaries are had."""
        try:
            page = await self._page("now", 0)
        except VerifyError as error:
            if error.code != "only_sealed":
                raise
            self.version = SEALED
            try:
                await self._fetch_keys()
            except VerifyError as refused:
                raise VerifyError(f"{refused}; canaries can't be opened: take canary/** out of RELAY_REQUIRE_SEALED") from refused
            page = await self._page("now", 0)
        return str(page["cursor"])

    def _behind(self) -> bool:
        return any(reader.last < self.report.published or reader.missing for reader in self.readers)

    def _sum_up(self) -> None:
        for reader in self.readers:
            self.report.lost += len(reader.missing) + self.report.published - reader.last
        for door in DOORS:
            seen = [ms for reader in self.readers if reader.door == door for ms in reader.latencies_ms]
            if seen:
                self.report.latency_ms[door] = {name: round(ms, 2) for name, ms in quantiles(seen).items()}

    async def _publish(self, seconds: float, progress: Callable[[Report], None]) -> None:
        """One canary after the other, so that their order is the log's."""
        began = time.monotonic()
        told = began
        while (now := time.monotonic()) < began + seconds or not self.report.published:  # without one, nothing is shown
            due = began + self.report.published / self.rate
            if due > now:
                await asyncio.sleep(due - now)
            await self._acknowledged(self.report.published + 1)
            self.report.published += 1
            if time.monotonic() > told + 1:
                told = time.monotonic()
                progress(self.report)

    async def _acknowledged(self, number: int) -> None:
        key = f"{self.topic}-{number}"
        sent_ns = time.monotonic_ns()
        body = {"event": "canary", "data": {"i": number, "t": str(sent_ns)}}

        async def attempt() -> bool:
            answer = await self.client.post(f"/stream/{self.topic}", json=body, headers={"idempotency-key": key})
            check(answer)
            return answer.status_code in (200, 201)

        while not await self._tried(attempt):
            self.report.refused += 1

    async def _tried(self, attempt: Callable[[], Awaitable[bool]]) -> bool:
        """Whether it went well. What is temporary, or broken on the way, is followed by a pause."""
        try:
            if await attempt():
                return True
        except (httpx.TransportError, TimeoutError):
            pass
        await asyncio.sleep(random.uniform(*PAUSE_S))
        return False

    # Readers

    async def _read(self, reader: Client) -> None:
        read = self._stream if reader.door == "live" else self._poll
        while True:
            try:
                async with asyncio.timeout(random.uniform(*CUT_AFTER_S)):
                    await read(reader)
            except TimeoutError:
                self.report.cuts += 1
            except (httpx.TransportError, Unopened):  # what can't be opened is read again, sealed anew
                await asyncio.sleep(random.uniform(*PAUSE_S))

    async def _stream(self, reader: Client) -> None:
        """One connection, until it ends."""
        parser = sse.Parser()
        url = f"/stream/{self.topic}/{self.version}/live"
        async with self.client.stream("GET", url, headers={"last-event-id": reader.cursor}) as answer:
            check(answer)
            async for piece in answer.aiter_bytes():
                for received in parser.feed(piece):
                    await self._take_block(reader, received)
        await asyncio.sleep(random.uniform(*PAUSE_S))  # a bye: it comes back soon

    async def _take_block(self, reader: Client, received: sse.Received) -> None:
        if received.name == "canary":
            sealed = self.version == SEALED
            self._take_data(reader, await self._opened(received.data) if sealed else msgspec.json.decode(received.data))
        elif received.name == "hello":
            reader.told(msgspec.json.decode(received.data)["resume"])
        if received.last_id:
            reader.cursor = received.last_id

    async def _poll(self, reader: Client) -> None:
        wait_s = 2 if reader.door == "longpoll" else 0
        while True:
            page = await self._page(reader.cursor, wait_s)
            if page:
                sent = [event["data"] for event in page["events"]]
                # All of them are opened before the first is taken: whoever is cut off in between asks for the whole page again.
                for data in [await self._opened(sealed) for sealed in sent] if self.version == SEALED else sent:
                    self._take_data(reader, data)
                reader.told(page["resume"])
                reader.cursor = page["cursor"]
            if not wait_s or not page:
                await asyncio.sleep(random.uniform(*PAUSE_S) / 2)

    async def _page(self, cursor: str, wait_s: int) -> Any:
        """A page, or nothing if the relay can't now."""
        answer = await self.client.get(f"/stream/{self.topic}/{self.version}/poll", params={"cursor": cursor, "wait": wait_s})
        check(answer)
        return answer.json() if answer.status_code == 200 else None

    # Sealed canaries

    async def _opened(self, sealed: str) -> Any:
        """What the publisher sent. Raises Unopened. Canaries are too small to be compressed before they are sealed."""
        if sealed.split("*")[1] not in self._passwords:
            await self._fetch_keys()
        return msgspec.json.decode(unseal(sealed, self._passwords, int(time.time() * 1000)))["data"]

    async def _fetch_keys(self) -> None:
        answer = await self.client.get("/stream/keys", params={"topic": self.topic})
        check(answer)
        if answer.status_code == 200:
            self._passwords |= {one["id"]: read_base64(one["key"]) for one in answer.json()["keys"]}

    def _take_data(self, reader: Client, data: Any) -> None:
        reader.see(data["i"], int(data["t"]))


class VerifyError(RelayError):
    """What no waiting mends: a wrong URL, or a token that isn't enough."""

    def __init__(self, detail: str, code: str = "") -> None:
        super().__init__(detail)
        self.code = code


def check(answer: httpx.Response) -> None:
    """Its body has been read, unless it is a stream. Raises VerifyError."""
    if answer.status_code in (429, 502, 503, 504) or answer.is_success:
        return
    refusal = refusal_of(answer) if answer.is_closed else Refusal()
    told = f"{answer.request.method} {answer.request.url.path}: {answer.status_code}"
    raise VerifyError(f"{told}: {refusal.detail}" if refusal.detail else told, refusal.code)


async def verify(url: str, token: str, *, seconds: float, rate: float, clients: int, progress: Callable[[Report], None]) -> Report:
    """Raises VerifyError if the relay at the URL can't be used at all."""
    timeout = httpx.Timeout(REQUEST_S, read=None, pool=None)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=4)
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, limits=limits, trust_env=False) as client:
        try:
            return await Verification(client, rate, clients).run(seconds, progress)
        except httpx.HTTPError as error:
            raise VerifyError(f"{url} can't be reached: {error}") from error


def verify_and_print(options: argparse.Namespace) -> int:
    token = options.token
    if not token:
        token = canary_token("relay-verify", int(options.seconds) + TOKEN_MARGIN_S)

    def progress(report: Report) -> None:
        line = f"published {report.published}, delivered {report.delivered}, cuts {report.cuts}, refused {report.refused}, "
        line += f"repeated {report.repeated}, reordered {report.reordered}, gaps {report.gaps}, resets {report.resets}"
        print(line, file=sys.stderr, flush=True)

    report = asyncio.run(
        verify(
            options.url,
            token,
            seconds=options.seconds,
            rate=options.rate,
            clients=options.clients,
            progress=progress,
        )
    )
    text = msgspec.json.format(msgspec.json.encode(report)).decode()
    print(text)
    if options.export:
        options.export.write_text(text)
    return 0 if report.holds() and report.published else 1

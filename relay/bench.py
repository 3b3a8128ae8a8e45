"""`relay bench URL`: opens many streams of one topic, publishes, and says how soon each event was with each of them.

One program in Python reads all streams, so where it shares a machine with the relay, or has more to read than it can, it measures itself:
it says how busy it was. It reads no more of a stream than lines, over HTTP/1.0, in which a body has no parts. How the relay
compares with others, `tests/bench` measures, with readers in C.
"""

import argparse
import asyncio
import secrets
import time
from urllib.parse import urlsplit

import httpx
import msgspec

from relay.canary import canary_token, quantiles
from relay.errors import RelayError, SettingsError

CONNECTING_MAX = 50  # streams that are being opened at once
CONNECT_S = 30.0
SETTLE_S = 10.0  # the longest that readers may take for what was published last
TOKEN_MARGIN_S = 300  # by which a token that is made here outlives the run
BUSY = 0.5  # of a core, from which on its times say more of this program


class BenchError(RelayError):
    """The relay can't be measured: it isn't there, or refuses what this needs."""


class Figures(msgspec.Struct):
    """What was measured; times in milliseconds."""

    connect_ms: list[float] = []
    answer_ms: list[float] = []  # of a publisher's request
    delivery_ms: list[float] = []  # from that request to a reader
    cpu_share: float = 0.0  # of this program, of a core


class Reader(asyncio.Protocol):
    """One stream."""

    def __init__(self, bench: "Bench", request: bytes) -> None:
        self.bench, self.request = bench, request
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._began_s = time.perf_counter()
        self._rest = b""
        self._name = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data: "):
                self._take(line[6:], now_s)
            elif line.startswith(b"event: "):
                self._name = line[7:].strip()
            elif line.startswith(b"HTTP/") and line.split()[1] != b"200":
                self._fail(f"a stream is answered {line.split()[1].decode('latin-1')}")

    def _take(self, data: bytes, now_s: float) -> None:
        if self._name == b"canary":
            self.bench.delivered(msgspec.json.decode(data)["i"], now_s)
        elif self._name == b"hello" and not self.opened.done():
            self.bench.figures.connect_ms.append((now_s - self._began_s) * 1000)
            self.opened.set_result(None)
        elif self._name == b"bye":
            reason = msgspec.json.decode(data)["reason"]
            self._fail(f"the relay ends a stream: {reason}; it may be RELAY_MAX_STREAMS_PER_SUB or RELAY_MAX_STREAMS")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("a stream ended without a word")

    def _fail(self, why: str) -> None:
        if self.opened.done():
            self.bench.broken = self.bench.broken or why
        else:
            self.opened.set_exception(BenchError(why))


class Bench:
    def __init__(self, url: str, token: str, streams: int, events: int) -> None:
        self.url, self.streams, self.events = urlsplit(url), streams, events
        self.topic = f"canary/bench/{secrets.token_hex(8)}"
        self.headers = {"authorization": f"Bearer {token}"}
        self.figures = Figures()
        self.broken = ""  # why a stream that was open isn't any more
        self._connecting = asyncio.Semaphore(CONNECTING_MAX)
        self._transports: list[asyncio.BaseTransport] = []
        self._sent_s: list[float] = []  # when each event was
        self._all_here = asyncio.Event()

    async def run(self, rate: float, size: int) -> Figures:
        """Raises BenchError."""
        try:
            async with asyncio.timeout(CONNECT_S), asyncio.TaskGroup() as group:
                for _ in range(self.streams):
                    group.create_task(self._open())
            began_s, cpu_s = time.perf_counter(), time.process_time()
            await self._publish(rate, size)
            try:
                async with asyncio.timeout(SETTLE_S):
                    await self._all_here.wait()
            except TimeoutError:
                pass  # what is missing is told
            self.figures.cpu_share = (time.process_time() - cpu_s) / (time.perf_counter() - began_s)
        except* BenchError as errors:
            raise errors.exceptions[0] from None
        except* TimeoutError:  # before OSError, of which it is one
            raise BenchError(f"{len(self.figures.connect_ms)} of {self.streams} streams were open after {CONNECT_S:g} s") from None
        except* OSError as errors:
            raise BenchError(f"{self.url.geturl()} can't be reached: {errors.exceptions[0]}") from None
        finally:
            for transport in self._transports:
                transport.close()
        return self.figures

    async def _open(self) -> None:
        path = f"{self.url.path.rstrip('/')}/stream/{self.topic}/v1/live"
        headers = "".join(f"{name}: {value}\r\n" for name, value in {"host": self.url.netloc, **self.headers}.items())
        request = f"GET {path} HTTP/1.0\r\n{headers}\r\n".encode()
        secure = self.url.scheme == "https"
        async with self._connecting:
            transport, reader = await asyncio.get_running_loop().create_connection(
                lambda: Reader(self, request), self.url.hostname or "", self.url.port or (443 if secure else 80), ssl=secure or None
            )
            self._transports.append(transport)
            await reader.opened

    def delivered(self, number: int, now_s: float) -> None:
        self.figures.delivery_ms.append((now_s - self._sent_s[number]) * 1000)
        if len(self.figures.delivery_ms) == self.events * self.streams:
            self._all_here.set()

    async def _publish(self, rate: float, size: int) -> None:
        headers = {**self.headers, "content-type": "application/json"}
        async with httpx.AsyncClient(base_url=self.url.geturl(), headers=headers, timeout=CONNECT_S, trust_env=False) as client:
            began_s = time.perf_counter()
            for number in range(self.events):
                await asyncio.sleep(max(0.0, began_s + number / rate - time.perf_counter()))
                content = msgspec.json.encode({"event": "canary", "data": {"i": number, "pad": "x" * size}})
                sent_s = time.perf_counter()
                self._sent_s.append(sent_s)
                try:
                    answer = await client.post(f"/stream/{self.topic}", content=content)
                except httpx.HTTPError as error:
                    raise BenchError(f"publishing failed: {error}") from error
                if not answer.is_success:
                    raise BenchError(f"publishing is answered {answer.status_code}: {answer.text[:300]}")
                self.figures.answer_ms.append((time.perf_counter() - sent_s) * 1000)
                if self.broken:
                    raise BenchError(self.broken)


def bench_and_print(options: argparse.Namespace) -> int:
    if urlsplit(options.url).scheme not in ("http", "https") or not urlsplit(options.url).hostname:
        raise SettingsError([f"{options.url!r} is no URL of a relay: http://127.0.0.1:8080"])
    token = options.token or canary_token("relay-bench", int(options.seconds) + TOKEN_MARGIN_S)
    events = max(1, round(options.rate * options.seconds))
    figures = asyncio.run(Bench(options.url, token, options.streams, events).run(options.rate, options.size))
    print(f"{options.streams} streams of one topic, {events} events of {options.size} bytes at {options.rate:g} a second\n")
    for label, times in {
        "to open a stream": figures.connect_ms,
        "to answer a publisher": figures.answer_ms,
        "from publisher to reader": figures.delivery_ms,
    }.items():
        told = ", ".join(f"{name} {ms:.1f}" for name, ms in quantiles(times).items()) if times else "nothing came:"
        print(f"{label:<26}{told} ms")
    expected = events * options.streams
    print(f"\n{len(figures.delivery_ms)} of {expected} deliveries; this program took {figures.cpu_share:.0%} of a core")
    if figures.cpu_share > BUSY:
        print("It was busy itself, so the relay may be quicker than that: try fewer streams, or a lower rate.")
    return 0 if len(figures.delivery_ms) == expected else 1

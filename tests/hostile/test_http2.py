"""HTTP/2 without TLS, as a proxy speaks it to us: streams that are reset, floods, and peers that say nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import pytest

from tests.asking import Asker
from tests.hostile.raw import Raw, connect
from tests.servers import Relay, token, topic
from tests.waiting import LIMIT_S, wait_for

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
HEADERS, CONTINUATION, END_HEADERS = 1, 9, 4


@dataclass
class Client:
    """One connection of HTTP/2, whose every frame we choose."""

    raw: Raw
    h2: h2.connection.H2Connection
    heads: dict[int, int] = field(default_factory=dict)  # statuses by stream
    bodies: dict[int, bytes] = field(default_factory=dict)
    pongs: int = 0
    ended: bool = False  # the peer has said that it goes

    def ask(self, path: str, *headers: tuple[str, str], method: str = "GET", end: bool = True) -> int:
        number = self.h2.get_next_available_stream_id()
        own = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "relay")]
        self.h2.send_headers(number, [*own, ("authorization", f"Bearer {token()}"), *headers], end_stream=end)
        self.flush()
        return number

    def reset(self, number: int) -> None:
        self.h2.reset_stream(number, h2.errors.ErrorCodes.CANCEL)
        self.flush()

    def flush(self) -> None:
        self.raw.say(self.h2.data_to_send())

    async def until(self, is_so: Callable[[], object]) -> None:
        """Reads until it is so, or the connection has ended."""
        async with asyncio.timeout(LIMIT_S):
            while not is_so() and not self.ended:
                await self._read()

    async def _read(self) -> None:
        piece = await self.raw.some()
        if not piece:
            self.ended = True
            return
        for event in self.h2.receive_data(piece):
            match event:
                case h2.events.ResponseReceived(stream_id=number, headers=headers) if number and headers:
                    self.heads[number] = int(dict(headers)[b":status"])
                case h2.events.DataReceived(stream_id=number, data=data, flow_controlled_length=length) if number and length:
                    self.bodies[number] = self.bodies.get(number, b"") + (data or b"")
                    self.h2.acknowledge_received_data(length, number)
                case h2.events.PingAckReceived():
                    self.pongs += 1
                case h2.events.ConnectionTerminated():
                    self.ended = True
        self.flush()


@asynccontextmanager
async def speak(relay: Relay) -> AsyncIterator[Client]:
    async with connect(relay) as raw:
        client = Client(raw, h2.connection.H2Connection(h2.config.H2Configuration(client_side=True)))
        client.h2.initiate_connection()
        client.flush()
        yield client


async def readers(asker: Asker, number: int) -> None:
    """Waits until so many are here."""
    await asyncio.to_thread(wait_for, f"{number} readers", lambda: asker.page("/stream/status")["connections"] == number)


async def test_a_stream_that_is_reset_frees_its_reader_alone(target: Relay, other: Asker) -> None:
    await readers(other, 0)
    name = topic()
    async with speak(target) as client:
        first, second = client.ask(f"/stream/{name}/v1/live"), client.ask(f"/stream/{name}/v1/live")
        await client.until(lambda: all(b"event: hello" in client.bodies.get(number, b"") for number in (first, second)))
        await readers(other, 2)
        client.reset(first)
        await readers(other, 1)
        other.publish(name, {"i": 1})
        await client.until(lambda: b'data: {"i": 1}' in client.bodies[second])
        assert b'data: {"i": 1}' in client.bodies[second]
        assert b'"i"' not in client.bodies[first]
    await readers(other, 0)


async def test_a_flood_of_streams_that_are_reset_at_once_leaves_nothing(target: Relay, other: Asker) -> None:
    """CVE-2023-44487. The server may end such a connection; whether it does or not, no reader stays."""
    await readers(other, 0)
    async with speak(target) as client:
        for _ in range(1000):
            number = client.ask(f"/stream/{topic()}/v1/live")
            client.reset(number)
            await asyncio.sleep(0)  # it is sent
        client.h2.ping(bytes(8))
        client.flush()
        await client.until(lambda: client.pongs)  # what came before has been read
        assert (await asyncio.to_thread(other.get, "/healthz")).status_code == 200
        await readers(other, 0)
    await readers(other, 0)


async def test_one_connection_holds_a_bounded_number_of_streams(target: Relay, other: Asker) -> None:
    await readers(other, 0)
    async with speak(target) as client:
        await client.until(lambda: client.h2.remote_settings.max_concurrent_streams < 1000)
        assert client.h2.remote_settings.max_concurrent_streams == 200
        for _ in range(200):
            client.ask(f"/stream/{topic()}/v1/live")
        with pytest.raises(h2.exceptions.TooManyStreamsError):
            client.ask("/healthz")
        await client.until(lambda: len(client.heads) == 200)
        assert set(client.heads.values()) == {200}
    await readers(other, 0)


async def test_a_waiting_poll_that_is_reset_gives_its_place_back(target: Relay, other: Asker) -> None:
    def waiting() -> int:
        return int(other.page("/stream/status")["waiting_polls"])

    async with speak(target) as client:
        number = client.ask(f"/stream/{topic()}/v1/poll?wait=25")
        await asyncio.to_thread(wait_for, "it waits", lambda: waiting() == 1)
        client.reset(number)
        await asyncio.to_thread(wait_for, "it is gone", lambda: waiting() == 0)


async def test_a_body_that_does_not_come_is_told(hasty: Relay) -> None:
    heads: dict[int, int] = {}
    async with asyncio.timeout(LIMIT_S):
        while not heads:  # this client was too slow to begin
            async with speak(hasty) as client:
                number = client.ask("/stream/publish", ("content-type", "application/json"), method="POST", end=False)
                await client.until(lambda client=client: client.heads)  # type: ignore[misc]
                heads = client.heads
    assert heads == {number: 408}


async def test_an_enormous_head_is_refused_and_the_connection_goes_on(target: Relay) -> None:
    async with speak(target) as client:
        large = client.ask("/healthz", *[(f"x-{number}", "y" * 500) for number in range(40)])
        small = client.ask("/healthz")
        await client.until(lambda: len(client.heads) == 2)
        assert client.heads == {large: 431, small: 200}


async def test_a_head_without_an_end_is_cut_off(target: Relay, other: Asker) -> None:
    """CVE-2024-27316: CONTINUATION frames for ever. One that kept them all would answer, since in the end there is one."""
    headers = b"\0\0\1\1\0\0\0\0\1\x82"
    more = (b"\0\1x\x7f\xff\xff\x00" + b"x" * 16377)[:16384]
    async with connect(target, PREFACE + SETTINGS + headers) as raw:
        for flags in [0] * 200 + [END_HEADERS]:
            raw.say(b"\0\x40\0" + bytes([CONTINUATION, flags]) + b"\0\0\0\1" + more)
        assert HEADERS not in kinds(await raw.rest())
    assert other.get("/healthz").status_code == 200


def kinds(got: bytes) -> list[int]:
    """Of frames."""
    found = []
    while len(got) >= 9:
        found.append(got[3])
        got = got[9 + int.from_bytes(got[:3]) :]
    return found


RUBBISH = {
    "an empty frame of an unknown type": b"\0\0\0\xff\0\0\0\0\0",
    "data of a stream that is not there": b"\0\0\1\0\0\0\0\0\1x",
    "a head of rubbish": b"\0\0\x04\1\5\0\0\0\1\xff\xff\xff\xff",
    "a window of nothing": b"\0\0\4\x08\0\0\0\0\0\0\0\0\0",
    "a frame beyond the largest": b"\xff\xff\xff\0\0\0\0\0\1",
    "a thousand pings": b"\0\0\x08\6\0\0\0\0\0" * 0 + b"".join(b"\0\0\x08\6\0\0\0\0\0" + bytes(8) for _ in range(1000)),
    "a thousand settings": SETTINGS * 1000,
}


@pytest.mark.parametrize("frames", RUBBISH.values(), ids=RUBBISH)
async def test_rubbish_behind_the_preface_hurts_nobody_else(target: Relay, other: Asker, frames: bytes) -> None:
    async with connect(target, PREFACE + SETTINGS + frames) as raw:
        await raw.hears(b"\0\0\0\4\1\0\0\0\0")  # it has taken our settings
        assert other.get("/healthz").status_code == 200

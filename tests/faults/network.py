"""A connection between a relay and its Valkey that can be cut, held back, and led elsewhere."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tests.servers import Valkey, free_port
from tests.waiting import LIMIT_S

PIECE = 1 << 16


class Proxy:
    """Forwards TCP connections to a server, in a thread of its own. Its methods are for other threads."""

    def __init__(self) -> None:
        self.port = free_port()
        self.held = threading.Event()  # set once a reply was held back
        self._target: int | None = None
        self._hold: bytes | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}/0"

    def lead_to(self, server: Valkey | None) -> None:
        """Where new connections end; None: nowhere. Those that are open are cut."""

        def change() -> None:
            self._target = server.port if server else None
            for writer in self._open:
                writer.transport.abort()

        self._do(change)

    def hold_reply(self, command: bytes) -> None:
        """Whatever is answered to the next command that holds this, and after it, is never forwarded."""

        def change() -> None:
            self._hold = command
            self.held.clear()

        self._do(change)

    async def is_holding(self) -> None:
        """Until a reply was held back: the server has done what it was asked."""
        assert await asyncio.to_thread(self.held.wait, LIMIT_S)

    def _do(self, change: Callable[[], None]) -> None:
        async def run() -> None:
            change()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(LIMIT_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target or 0)
        except OSError:
            self._open.discard(writer)
            return writer.transport.abort()
        self._open.add(server_writer)
        holding = threading.Event()
        try:
            await asyncio.gather(
                self._forward(reader, server_writer, holding, to_server=True),
                self._forward(server_reader, writer, holding, to_server=False),
            )
        finally:
            self._open -= {writer, server_writer}

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        holding: threading.Event,
        *,
        to_server: bool,
    ) -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(PIECE):
                if to_server and self._hold and self._hold in piece:
                    self._hold = None
                    holding.set()
                if not to_server and holding.is_set():
                    self.held.set()
                else:
                    writer.write(piece)
                    await writer.drain()
        writer.transport.abort()

    async def _run(self, listening: threading.Event) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        listening.set()
        await self._stopping.wait()
        server.close()
        for writer in self._open:
            writer.transport.abort()
        async with asyncio.timeout(LIMIT_S):
            while self._open:  # noqa: ASYNC110  # until each handler has seen it
                await asyncio.sleep(0)

    def run(self, listening: threading.Event) -> None:
        asyncio.run(self._run(listening))

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)


@contextmanager
def open_proxy() -> Iterator[Proxy]:
    proxy, listening = Proxy(), threading.Event()
    thread = threading.Thread(target=proxy.run, args=(listening,), daemon=True)
    thread.start()
    assert listening.wait(LIMIT_S)
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(LIMIT_S)

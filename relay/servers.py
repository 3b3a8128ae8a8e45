"""Which server holds a shard: the one that a URL names, the primary that Sentinel names, or a cluster's node.

    valkey://user:password@host:6379/0                      valkeys://… with TLS; unix:///path/valkey.sock
    valkey+sentinel://host:26379,host:26379/service         the primary of a service; user:password@ are the primary's
    valkey+cluster://host:6379,host:6379                    any nodes of a cluster; valkeys+cluster://… with TLS

For a cluster the library's own client isn't used: it repeats a command whose connection died, and an append whose answer was
lost would be in the log twice. A shard is one slot, so its node is asked for once, and again after anything went wrong.

Sentinel is asked once a second besides. A primary that hung for a while and was replaced doesn't know it when it goes on: it
answers as before, for ten seconds and more, while the service's events are on another.
"""

import asyncio
import hashlib
import select
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import SplitResult, urlsplit

import msgspec
import valkey.asyncio
from libvalkey import pack_command
from valkey.asyncio.connection import Connection
from valkey.asyncio.retry import Retry
from valkey.backoff import NoBackoff
from valkey.crc import key_slot
from valkey.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
    ValkeyError,
)

from relay.errors import LogFull, LogUnavailable

ANSWER_S = 2.0  # the longest that a command may take before its server is away, of which half may go into connecting
CONFIRM_S = 1.0  # so often Sentinel is asked whether the primary is still the same
CONNECTIONS_MAX = 64  # to one server, for commands; those that block have as many again
BLOCKING_MAX = 256
IDLE_MAX_S = 60.0  # networks forget quiet connections without telling: Azure's after 240 s, Amazon's after 350
SCHEMES = ("valkey", "valkeys", "redis", "rediss", "unix")
MANY = ("+sentinel", "+cluster")
# What a server that is failing over, starting, busy or set up wrongly answers; all else it refuses is our bug. For some answers the
# library has an exception, and has taken the first word from its text; but for those of a cluster only where its own client for
# clusters reads them. MovedError is an AskError, MasterDownError a ClusterDownError.
TEMPORARY = (AskError, BusyLoadingError, ClusterDownError, NoPermissionError, ReadOnlyError, TryAgainError)
TEMPORARY_CODES = ("BUSY", "UNBLOCKED", "MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN")
FULL_CODES = ("MISCONF", "NOREPLICAS")


Argument = str | bytes | int | float


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """The border: no error of the client library gets past it."""
    try:
        yield
    except OutOfMemoryError as error:
        raise LogFull(f"OOM {error}") from error
    except TEMPORARY as error:
        raise LogUnavailable(str(error)) from error
    except ResponseError as error:
        if str(error).startswith(FULL_CODES):
            raise LogFull(str(error)) from error
        if str(error).startswith(TEMPORARY_CODES):
            raise LogUnavailable(str(error)) from error
        raise
    except (ValkeyError, OSError, TimeoutError) as error:
        raise LogUnavailable(str(error) or type(error).__name__) from error


class Server:
    """One server, and the connections to it: opened when they are needed, kept, and used for one call at a time.

    The library's connections, but not its client and pool: those cost 190 µs of Python a call, these 50, and every event
    that is published or read goes through here. Nothing is repeated.
    """

    def __init__(self, url: str, answer_s: float = ANSWER_S) -> None:
        self._answer_s = answer_s
        self._pool = valkey.asyncio.ConnectionPool.from_url(
            url,
            socket_timeout=None,  # `call` has a limit for all of it
            socket_connect_timeout=None,  # the same
            retry=Retry(NoBackoff(), 0),
        )
        self._idle: list[tuple[Connection, float]] = []  # and since when, by the wall clock: others may stop with a frozen machine
        self._commands = asyncio.Semaphore(CONNECTIONS_MAX)
        self._blocking = asyncio.Semaphore(BLOCKING_MAX)

    async def call(self, *command: Argument, block_s: float | None = None) -> Any:
        """The answer to a command. `block_s`: the command itself waits up to so long."""
        (answer,) = await self.call_many([command], block_s)
        return answer

    async def call_many(self, commands: Sequence[Sequence[Argument]], block_s: float | None = None) -> list[Any]:
        """The answers to commands, sent at once. Raises the library's errors, and TimeoutError."""
        places = self._commands if block_s is None else self._blocking
        async with limit(self._answer_s + (block_s or 0)), places:
            connection = await self._connected()
            try:
                await connection.send_packed_command(b"".join([pack_command(tuple(command)) for command in commands]), check_health=False)
                answers = [await read_answer(connection) for _ in commands]
            except BaseException:
                # An answer may be on its way, and would be taken for the next call's.
                await connection.disconnect(nowait=True)
                raise
            self._idle.append((connection, time.time()))
        refused = next((answer for answer in answers if isinstance(answer, ResponseError)), None)
        if refused is not None:
            raise refused
        return answers

    async def _connected(self) -> Connection:
        while self._idle:
            connection, since_s = self._idle.pop()
            if time.time() - since_s < IDLE_MAX_S and is_open(connection):
                return connection
            await connection.disconnect(nowait=True)
        made: Connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        async with limit(self._answer_s / 2):
            await made.connect()  # type: ignore[no-untyped-call]
        return made

    async def close(self) -> None:
        for connection, _ in self._idle:
            await connection.disconnect(nowait=True)
        self._idle.clear()


@asynccontextmanager
async def limit(seconds: float) -> AsyncIterator[None]:
    """Raises TimeoutError when the other side was silent for so long.

    In two halves, since the loop looks at its clock before its sockets: after a time in which this process itself stood still
    (a frozen function, a machine that is overloaded), one limit would be over while the answer lies there unread.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as timeout:
        half = loop.call_later(seconds / 2, lambda: timeout.reschedule(loop.time() + seconds / 2))
        try:
            yield
        finally:
            half.cancel()


def is_open(connection: Connection) -> bool:
    """Whether the server hasn't hung up. The library has no cheap way to ask.

    The loop may not know yet: between two requests a function is frozen, or at least its loop doesn't run. So the socket is
    asked too; from an idle connection there is nothing to read but its end.
    """
    reader, writer = connection._reader, connection._writer
    if reader is None or writer is None or reader.at_eof():
        return False
    poll = select.poll()
    poll.register(writer.get_extra_info("socket").fileno(), select.POLLIN)
    return not poll.poll(0)


async def read_answer(connection: Connection) -> Any:
    """An answer, or the error that it is; the connection is good in both cases."""
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


class Script(msgspec.Struct, frozen=True):
    """A Lua script, sent once to a server and called by its hash from then on."""

    text: str
    sha: str

    async def call(self, server: Server, keys: Sequence[str], arguments: Sequence[str | int | bytes]) -> Any:
        (answer,) = await self.call_and(server, keys, arguments)
        return answer

    async def call_and(
        self,
        server: Server,
        keys: Sequence[str],
        arguments: Sequence[str | int | bytes],
        *others: Sequence[str | int],
        block_s: float | None = None,
    ) -> list[Any]:
        """The answers to a call and to other commands, sent at once behind it on the same connection."""
        try:
            return await server.call_many([("EVALSHA", self.sha, len(keys), *keys, *arguments), *others], block_s)
        except NoScriptError:  # a server that has just started: it has done nothing
            return await server.call_many([("EVAL", self.text, len(keys), *keys, *arguments), *others], block_s)


def load_script(name: str, package: str = "relay") -> Script:
    text = files(package).joinpath(f"{name}.lua").read_text()
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def joined_scripts(name: str, last: Script) -> Script:
    """A script whose first part is a file's, and whose last is another script."""
    text = load_script(name).text + last.text.removeprefix("#!lua\n")
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class Servers:
    """The servers of a log."""

    def __init__(self, url: str, answer_s: float = ANSWER_S) -> None:
        parts = urlsplit(url)
        self._answer_s = answer_s
        self._url, self._parts = url, parts
        self._kind = parts.scheme.partition("+")[2]
        self._scheme = parts.scheme.partition("+")[0]
        self._nodes = nodes(parts)  # of a cluster, or sentinels
        self._known: dict[int, str] = {}  # a slot's server, until something went wrong there; 0 where one server has them all
        self._servers: dict[str, Server] = {}
        self._asking: dict[int, asyncio.Task[str]] = {}
        self._asked_s: dict[int, float] = {}

    def of(self, shard: int) -> AbstractAsyncContextManager[Server]:
        """A shard's server for one command. Raises LogUnavailable for whatever goes wrong; then it is asked for anew."""
        return self._of_slot(slot_of_shard(shard) if self._kind == "cluster" else 0)

    def of_key(self, key: str) -> AbstractAsyncContextManager[Server]:
        """The same for a key that is in no shard's slot."""
        return self._of_slot(key_slot(key.encode()) if self._kind == "cluster" else 0)

    @asynccontextmanager
    async def _of_slot(self, slot: int) -> AsyncIterator[Server]:
        try:
            async with translated():
                yield await self._server(slot)
        except LogUnavailable:
            if self._kind:
                self._known.pop(slot, None)
            raise

    async def _server(self, slot: int) -> Server:
        url = self._known.get(slot)
        if url is None:
            url = await asyncio.shield(self._ask(slot))
        elif self._kind == "sentinel" and time.monotonic() - self._asked_s[slot] > CONFIRM_S:
            self._ask(slot)  # nobody waits for that: as long as no sentinel says otherwise, what is known is true
        return self._server_at(url)

    def _server_at(self, url: str) -> Server:
        if url not in self._servers:
            self._servers[url] = Server(url, self._answer_s)
        return self._servers[url]

    def _ask(self, slot: int) -> asyncio.Task[str]:
        """Asked once for all who want to know: else each in turn would wait for those who don't answer."""
        asking = self._asking.get(slot)
        if asking is None:
            asking = self._asking[slot] = asyncio.create_task(self._find(slot))
            self._asked_s[slot] = time.monotonic()
            asking.add_done_callback(lambda task: self._learn(slot, task))
        return asking

    def _learn(self, slot: int, asking: asyncio.Task[str]) -> None:
        del self._asking[slot]
        if not asking.cancelled() and asking.exception() is None:
            self._known[slot] = asking.result()

    async def _find(self, slot: int) -> str:
        match self._kind:
            case "sentinel":
                return await self._ask_sentinels()
            case "cluster":
                return await self._ask_nodes(slot)
            case _:
                return self._url

    async def _ask_sentinels(self) -> str:
        service = self._parts.path.strip("/")
        async for address in self._answers("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service):
            if address is None:
                continue
            url = address_url(self._scheme, self._parts, address[0].decode(), int(address[1]))
            # A sentinel that hung itself may name one that became a replica meanwhile. It would answer reads, and be behind.
            # https://valkey.io/topics/sentinel-clients/ step 3
            if url not in self._known.values() and (await self._server_at(url).call("ROLE"))[0] != b"master":
                raise LogUnavailable(f"the server that Sentinel names for {service} is a replica")
            return url
        raise LogUnavailable(f"no sentinel names the primary of {service}")

    async def _ask_nodes(self, slot: int) -> str:
        async for ranges in self._answers("CLUSTER", "SLOTS"):
            for first, last, (host, port, *_), *_ in ranges:
                if first <= slot <= last:
                    url = address_url(self._scheme, self._parts, host.decode(), port)
                    if url not in self._nodes:
                        self._nodes.append(url)
                    return url
        raise LogUnavailable(f"no node of the cluster says who has slot {slot}")

    async def _answers(self, *command: Argument) -> AsyncIterator[Any]:
        """What the nodes or the sentinels answer, one after the other."""
        for node in list(self._nodes):
            try:
                answer = await self._server_at(node).call(*command)
            except (ValkeyError, OSError, TimeoutError):
                # Asked last from now on: one that hangs takes its time to fail.
                self._nodes.remove(node)
                self._nodes.append(node)
            else:
                yield answer

    async def close(self) -> None:
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        for server in self._servers.values():
            await server.close()
        self._servers.clear()


@cache
def slot_of_shard(shard: int) -> int:
    return int(key_slot(f"{{relay:{shard}}}:journal".encode()))


def nodes(parts: SplitResult) -> list[str]:
    """The URLs of those that a URL of several names."""
    scheme, _, kind = parts.scheme.partition("+")
    match kind:
        case "sentinel":
            return [f"valkey://{host}:{port}" for host, port in addresses(parts)]
        case "cluster":
            return [address_url(scheme, parts, host, port) for host, port in addresses(parts)]
        case _:
            return []


def addresses(parts: SplitResult) -> list[tuple[str, int]]:
    """The hosts of a URL that names several. Raises ValueError."""
    default = 26379 if parts.scheme.endswith("sentinel") else 6379
    found = []
    for part in parts.netloc.rpartition("@")[2].split(","):
        host, colon, port = part.rpartition(":") if ":" in part else (part, "", "")
        if not host:
            raise ValueError(f"names no host in {part!r}")
        found.append((host, int(port) if colon else default))
    return found


def address_url(scheme: str, parts: SplitResult, host: str, port: int) -> str:
    credentials, at, _ = parts.netloc.rpartition("@")
    return f"{scheme}://{credentials}{at}{host}:{port}"


def check_url(url: str) -> str:
    """The URL, if it is one of the forms above. Raises ValueError."""
    try:
        parts = urlsplit(url)
        scheme, _, kind = parts.scheme.partition("+")
        known = scheme in SCHEMES and (f"+{kind}" in MANY and scheme != "unix" if kind else parts.port != 0)
    except ValueError:  # brackets or a port that are none
        known = False
    if url and not known:
        raise ValueError("is not a URL of the form valkey://host:6379/0, valkeys://… (TLS) or unix:///path")
    if kind:
        addresses(parts)
        if kind == "sentinel" and not parts.path.strip("/"):
            raise ValueError("names no service: valkey+sentinel://host:26379,host:26379/service")
    return url

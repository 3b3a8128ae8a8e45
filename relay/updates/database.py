"""Sources of the kind `sql`: a query, asked again and again, of any database that SQLAlchemy speaks to.

Each row is an item, an object by the columns' names. With `after`, the next query gets the last row's value of that column as
`:after`, so the query orders by it. Rows that were written at the same time may become visible out of order: a query that looks back a
little (`updated > :after - interval '1 minute'`) finds those too, and what it shows again is known.

Drivers block, and many can't be interrupted. So each source has a thread of its own: one that hangs holds up its source alone, is
joined by no other, and ends with the process.
"""

import asyncio
import datetime
import decimal
import queue
import threading
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from relay.updates.feed import Batch, FeedError, Look
from relay.updates.sources import Source

if TYPE_CHECKING:
    from sqlalchemy import CursorResult, Engine
    from sqlalchemy.exc import SQLAlchemyError

ROWS_MAX = 200  # of a batch
# What `:after` may be, beside JSON's own values: how it is told from text, and read back.
TYPES: dict[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "datetime": (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),  # before date, whose kind it is
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "decimal": (decimal.Decimal, str, decimal.Decimal),
    "uuid": (uuid.UUID, str, uuid.UUID),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
}
T = TypeVar("T")


@asynccontextmanager
async def open_database(source: Source) -> AsyncIterator[Look]:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import QueuePool

    engine = create_engine(source.url, poolclass=QueuePool, pool_size=1, max_overflow=0, pool_pre_ping=True)
    caller = Caller(source.timeout_ms / 1000)

    async def look(place: str | None) -> AsyncGenerator[Batch, None]:
        after = source.start if place is None else read_after(place)
        opened: list[CursorResult[Any]] = []
        try:
            await caller.call(lambda: execute(engine, source, after, opened))
            while rows := await caller.call(lambda: fetch(opened[0])):
                yield Batch([msgspec.Raw(msgspec.json.encode(row, enc_hook=str)) for row in rows])
                after = after_of(source, rows[-1], after)
        except SQLAlchemyError as error:
            raise failure(error) from error
        finally:
            caller.post(lambda: close(opened))  # in its turn: a query that hangs may yet open something
        yield Batch(place=write_after(after) if source.after else None)

    try:
        yield look
    finally:
        caller.post(engine.dispose)
        caller.end()


async def reach(source: Source) -> None:
    """Connects, and asks nothing. Raises FeedError."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    engine = create_engine(source.url, poolclass=NullPool)
    caller = Caller(source.timeout_ms / 1000)
    try:
        await caller.call(lambda: engine.connect().close())
    except SQLAlchemyError as error:
        raise failure(error) from error
    finally:
        caller.end()


def failure(error: "SQLAlchemyError") -> FeedError:
    return FeedError(f"fails: {str(getattr(error, 'orig', None) or error).partition(chr(10))[0]}")


def execute(engine: "Engine", source: Source, after: Any, opened: "list[CursorResult[Any]]") -> None:
    from sqlalchemy import text

    connection = engine.connect()
    try:
        reading = connection.execution_options(stream_results=True, max_row_buffer=ROWS_MAX)
        opened.append(reading.execute(text(source.query), {"after": after} if source.after else {}))
    except BaseException:
        connection.close()
        raise


def fetch(result: "CursorResult[Any]") -> list[dict[str, Any]]:
    return [dict(row._mapping) for row in result.fetchmany(ROWS_MAX)]


def close(opened: "list[CursorResult[Any]]") -> None:
    for result in opened:
        result.close()
        result.connection.close()


def after_of(source: Source, row: dict[str, Any], before: Any) -> Any:
    if not source.after:
        return before
    if source.after not in row:
        raise FeedError(f"has no column {source.after}, which after names")
    found = row[source.after]
    return before if found is None else found


def write_after(value: Any) -> str:
    """A place is text, and `:after` of the same type as before: databases don't compare times with text."""
    for name, (kind, write, _) in TYPES.items():
        if isinstance(value, kind):
            return msgspec.json.encode({name: write(value)}).decode()
    if isinstance(value, str | int | float):
        return msgspec.json.encode(value).decode()
    raise FeedError(f"has an after of the type {type(value).__name__}, which can't be kept: let the query cast it to text or a number")


def read_after(place: str) -> Any:
    found = msgspec.json.decode(place)
    if isinstance(found, dict):
        ((name, text),) = found.items()
        return TYPES[name][2](text)
    return found


class Caller:
    """Makes calls that block, one after the other, in a thread of its own."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    async def call(self, function: Callable[[], T]) -> T:
        """Raises what the function raises; FeedError when it takes too long, and goes on all the same."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def act() -> None:
            try:
                result = function()
            except BaseException as error:
                tell(loop, partial(fail, answer, error))
            else:
                tell(loop, partial(succeed, answer, result))

        self._calls.put(act)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await answer
        except TimeoutError as error:
            raise FeedError(f"is slow: no answer after {self._timeout_s:g} s") from error

    def post(self, function: Callable[[], None]) -> None:
        """Nobody waits for it, nor wants to know how it ends."""

        def act() -> None:
            with suppress(Exception):
                function()

        self._calls.put(act)

    def end(self) -> None:
        self._calls.put(None)

    def _run(self) -> None:
        while call := self._calls.get():
            call()


def tell(loop: asyncio.AbstractEventLoop, act: Callable[[], object]) -> None:
    with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
        loop.call_soon_threadsafe(act)


def succeed(answer: "asyncio.Future[T]", result: T) -> None:
    if not answer.done():
        answer.set_result(result)


def fail(answer: "asyncio.Future[Any]", error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)

"""What may be published: one check for every way in, and `Publisher` for Python programs.

    from relay import Publisher, broadcast_to_resource

    await broadcast_to_resource("ROULETTE", 123, {"number": 25})        # in async code: to rounds/ROULETTE/123
    broadcast_to_resource.blocking("ROULETTE", 123, {"number": 25})     # elsewhere

    async with Publisher() as publisher:                                # many events over one connection
        await publisher.publish("rounds/ROULETTE/123", {"number": 25}, key="spin-77")

Both write to the Valkey that the relay's own settings name. A program that must not reach Valkey publishes over HTTP.
"""

import asyncio
import math
import re
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import msgspec

from relay.embedded import find_url
from relay.errors import RelayError, SettingsError
from relay.event import DEFAULT_NAME, NESTING_MAX, RESERVED_NAMES, is_nested_too_deeply, is_publishable_name
from relay.log import Appended, Log, NewEvent
from relay.settings import Settings, read_settings, retention_of
from relay.topic import parse_topic

BATCH_EVENTS_MAX = 1000
BATCH_BYTES_MAX = 8 << 20
KEY = re.compile(r"[!-~]{1,255}")
COLLECTION = "rounds"  # of `broadcast_to_resource`


class PublishError(RelayError):
    """An event that can't be published as it is."""

    def __init__(self, detail: str, code: str, *, too_large: bool = False) -> None:
        super().__init__(detail)
        self.code = code
        self.too_large = too_large


def new_event(topic: str, data: bytes, name: str, key: str | None, max_bytes: int) -> NewEvent:
    """Checks what is to be published on a valid topic. Raises PublishError.

    `data` is JSON text and stays it to the letter, but for line breaks between its tokens: those become spaces, so that an
    event is one line on every wire.
    """
    if not is_publishable_name(name):
        reserved = "is reserved" if name in RESERVED_NAMES else "is not 1 to 64 of A-Z a-z 0-9 . _ : -"
        raise PublishError(f"the event name {name[:80]!r} {reserved}", "bad_event")
    if key is not None and not KEY.fullmatch(key):
        raise PublishError("an idempotency key is 1 to 255 visible ASCII characters", "bad_key")
    if len(data) > max_bytes:
        raise PublishError(f"data of {len(data)} bytes: {max_bytes} at most", "event_too_large", too_large=True)
    if is_nested_too_deeply(data):
        raise PublishError(f"data is nested too deeply: {NESTING_MAX} arrays and objects in each other at most", "bad_data")
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise PublishError(f"data is no JSON: {error}", "bad_data") from error
    # Inside strings, JSON has no raw line breaks (RFC 8259, section 7), so these are all between tokens.
    return NewEvent(topic, name, data.replace(b"\r", b" ").replace(b"\n", b" "), key)


class Publisher:
    """Publishes from Python, straight into the log. An async context manager."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or read_settings(needs_key=False)
        self._log: Log | None = None

    async def __aenter__(self) -> Self:
        url = self._settings.valkey_url or find_url(self._settings.data_dir)
        if not url:
            raise SettingsError(
                [f"no relay runs in {self._settings.data_dir}: start `relay serve`, or set RELAY_VALKEY_URL or RELAY_DATA_DIR"]
            )
        self._log = Log(url, self._settings.shards, retention_of(self._settings), self._settings.valkey_seconds)
        try:
            await self._log.check_shards()
        except BaseException:
            await self._log.close()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._log:
            await self._log.close()

    async def publish(self, topic: str, data: Any, *, event: str = DEFAULT_NAME, key: str | None = None) -> Appended:
        """Appends one event. Raises PublishError, Malformed for a topic, LogUnavailable (then repeat it with the same key)."""
        (appended,) = await self.publish_many([(topic, data, event, key)])
        return appended

    async def publish_many(self, events: Sequence[tuple[str, Any, str, str | None]]) -> list[Appended]:
        """Appends events (topic, data, name, key) in order. All are checked first."""
        if self._log is None:
            raise RuntimeError("use it as: async with Publisher() as publisher")
        most = self._settings.max_event_bytes
        checked = [new_event(parse_topic(topic), encode(data), name, key, most) for topic, data, name, key in events]
        appended = await self._log.append(checked) if checked else []
        reused = next((one for one in appended if one.reused), None)
        if reused:
            raise PublishError(f"the key of an event on {reused.event.topic} was used for another one", "key_reused")
        return appended

    @staticmethod
    def blocking(settings: Settings | None = None) -> "BlockingPublisher":
        """The same for code which isn't async: `with Publisher.blocking() as publisher: publisher.publish(…)`."""
        return BlockingPublisher(settings)


class BlockingPublisher:
    """A Publisher on an event loop of its own. A context manager; for one thread."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._runner = asyncio.Runner()
        self._publisher = Publisher(settings)

    def __enter__(self) -> Self:
        try:
            self._runner.run(self._publisher.__aenter__())
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._runner.run(self._publisher.__aexit__(kind, error, trace))
        finally:
            self._runner.close()

    def publish(self, topic: str, data: Any, *, event: str = DEFAULT_NAME, key: str | None = None) -> Appended:
        return self._runner.run(self._publisher.publish(topic, data, event=event, key=key))

    def publish_many(self, events: Sequence[tuple[str, Any, str, str | None]]) -> list[Appended]:
        return self._runner.run(self._publisher.publish_many(events))


def encode(data: Any) -> bytes:
    """JSON of a value; of `msgspec.Raw` the text that it holds."""
    try:
        text = msgspec.json.encode(data)
        # NaN and the infinities are none of JSON's numbers (RFC 8259, section 6); the encoder makes them null.
        lossy = b"null" in text and has_no_number(msgspec.to_builtins(data, enc_hook=lambda _: None))
    except (TypeError, ValueError, RecursionError) as error:
        raise PublishError(f"data can't be written as JSON: {error}", "bad_data") from error
    if lossy:
        raise PublishError("data can't be written as JSON: it has a number that is NaN or infinite", "bad_data")
    return text


def has_no_number(value: Any) -> bool:
    """Whether NaN or an infinity is in it."""
    match value:
        case float():
            return not math.isfinite(value)
        case dict():
            return any(map(has_no_number, value.values()))
        case list() | tuple() | set() | frozenset():
            return any(map(has_no_number, value))
        case _:
            return False


class Broadcast:
    """The shortest way: one event to `rounds/{kind}/{ident}`."""

    async def __call__(self, kind: str, ident: str | int, data: Any, *, event: str = DEFAULT_NAME, key: str | None = None) -> Appended:
        async with Publisher() as publisher:
            return await publisher.publish(f"{COLLECTION}/{kind}/{ident}", data, event=event, key=key)

    def blocking(self, kind: str, ident: str | int, data: Any, *, event: str = DEFAULT_NAME, key: str | None = None) -> Appended:
        """The same for code which isn't async."""
        return asyncio.run(self(kind, ident, data, event=event, key=key))


broadcast_to_resource = Broadcast()

"""Server-Sent Events on the wire.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream

Nothing that a publisher writes can become a field or end a block: a line ends at CR, LF or CRLF, so `data` is split at
all three and each piece gets a field of its own; names and ids hold only characters that were checked before. We send
LF alone, one space after the colon, and one block a write, since naive parsers count on all three.
"""

import re

import msgspec

LINE_END = re.compile(rb"\r\n|\r|\n")
BOM = b"\xef\xbb\xbf"
HEARTBEAT = b":\n\n"
CONTENT_TYPE = b"text/event-stream"  # exactly this: some proxies stream no other spelling


def block(name: str, data: bytes, *, id: str = "", retry_ms: int | None = None) -> bytes:
    """One event. Without an id the client keeps the one it has."""
    head = f"event: {name}\n"
    if retry_ms is not None:
        head += f"retry: {retry_ms}\n"
    if id:
        head += f"id: {id}\n"
    if b"\n" in data or b"\r" in data:
        data = b"\ndata: ".join(LINE_END.split(data))
    return b"%bdata: %b\n\n" % (head.encode(), data)


def retry(ms: int) -> bytes:
    """How long a client waits before it reconnects. Never 0: Chromium then reconnects without a pause."""
    return b"retry: %d\n\n" % ms


class Received(msgspec.Struct, frozen=True):
    """An event as a client gets it, with the last id that the client then has."""

    name: str
    data: str
    last_id: str


class Parser:
    """Reads a stream that comes in pieces of any size. A piece may end anywhere, between a CR and its LF too."""

    def __init__(self) -> None:
        self.last_id = ""
        self.retry_ms: int | None = None
        self._rest = b""
        self._begun = False
        self._id, self._name, self._data = "", "", list[str]()

    def feed(self, piece: bytes) -> list[Received]:
        text = self._rest + piece
        if not self._begun:
            if len(text) < len(BOM) and BOM.startswith(text):
                self._rest = text
                return []
            text, self._begun = text.removeprefix(BOM), True
        held = b""
        if text.endswith(b"\r"):  # its LF may be the next piece's first byte
            text, held = text[:-1], b"\r"
        *lines, rest = LINE_END.split(text)
        self._rest = rest + held
        return [received for line in lines if (received := self._take(line.decode("utf-8", "replace")))]

    def _take(self, line: str) -> Received | None:
        if not line:
            return self._dispatch()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        elif field == "id" and "\0" not in value:
            self._id = value
        elif field == "retry" and value.isascii() and value.isdigit():
            self.retry_ms = int(value)
        return None

    def _dispatch(self) -> Received | None:
        self.last_id = self._id
        name, data = self._name or "message", self._data
        self._name, self._data = "", []
        return Received(name, "\n".join(data), self.last_id) if data else None

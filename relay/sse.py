"""Server-Sent Events on the wire.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream

Nothing that a publisher writes can become a field or end a block: a line ends at CR, LF or CRLF, so `data` is split at
all three and each piece gets a field of its own; names and ids hold only characters that were checked before. We send
LF alone, one space after the colon, and one block a write, since naive parsers count on all three.
"""

import re

LINE_END = re.compile(rb"\r\n|\r|\n")
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

"""Content codings of streams and pages (RFC 9110, section 8.4): gzip (RFC 1952) and zstd (RFC 8878).

**Streams.** Those who read the same get the same bytes, though each came at another time. So a chunk is coded once for all of
them, and refers to nothing before it: in gzip it is blocks of deflate up to a full flush (`Z_FULL_FLUSH`,
https://zlib.net/manual.html), in zstd a frame (section 3: frames may follow each other). A connection keeps no state; what it alone is
told (`hello`, `bye`) isn't worth compressing and is only wrapped.

The head of gzip is sent to each connection first. Its trailer never is: it holds a checksum of all that this one connection was
sent. Clients take the end of a stream without it (Chromium, curl, node's fetch and httpx do).

**What compresses tells its size.** Who sees the lengths of encrypted chunks, and can have a text of his own put into one with a
secret, may guess at the secret (BREACH, https://breachattack.com). A chunk holds events of the same topics alone; where strangers
publish to a topic that others keep secrets in, compression is to be off.
"""

import sys
import zlib
from collections.abc import Callable
from functools import cache

import msgspec

LEVEL = 4  # of zlib's 9
SMALL_BYTES = 100  # less isn't worth it in a stream
STORED_BYTES_MAX = 0xFFFF  # of a block of deflate that is as it was (RFC 1951, section 3.2.4)
GZIP_HEAD = b"\x1f\x8b\x08" + bytes(6) + b"\xff"  # deflate, no name, no time, unknown system

Encode = Callable[[bytes], bytes]


class Coding(msgspec.Struct, frozen=True):
    """How the bytes of an answer are coded. All of a stream's parts can be decoded by themselves, behind its head."""

    name: str  # as in Content-Encoding; empty: as they are
    head: bytes
    compress: Encode  # a chunk of a stream
    wrap: Encode  # the same, for what is for one connection alone
    pack: Encode  # a whole body; may be called in any thread


def as_it_is(content: bytes) -> bytes:
    return content


IDENTITY = Coding("", b"", as_it_is, as_it_is, as_it_is)


@cache
def gzip_coding() -> Coding:
    deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)

    def compress(chunk: bytes) -> bytes:
        if len(chunk) < SMALL_BYTES:
            return store(chunk)
        # The flush forgets what came before, so one compressor does for all: making one costs more than a small chunk.
        return deflate.compress(chunk) + deflate.flush(zlib.Z_FULL_FLUSH)

    def pack(content: bytes) -> bytes:
        return zlib.compress(content, LEVEL, wbits=16 + zlib.MAX_WBITS)

    return Coding("gzip", GZIP_HEAD, compress, store, pack)


def store(chunk: bytes) -> bytes:
    """A block of deflate that isn't compressed (RFC 1951, section 3.2.4)."""
    blocks = []
    for begin in range(0, len(chunk), STORED_BYTES_MAX):
        part = chunk[begin : begin + STORED_BYTES_MAX]
        blocks.append(b"\0%b%b%b" % (len(part).to_bytes(2, "little"), (len(part) ^ 0xFFFF).to_bytes(2, "little"), part))
    return b"".join(blocks)


@cache
def zstd_coding() -> Coding:
    # Not at the top: a function that starts cold may never be asked for it.
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    compressor = zstd.ZstdCompressor()

    def compress(chunk: bytes) -> bytes:
        return compressor.compress(chunk, zstd.ZstdCompressor.FLUSH_FRAME) if chunk else b""

    return Coding("zstd", b"", compress, compress, zstd.compress)


def choose_coding(accept: str) -> Coding:
    """What an Accept-Encoding asks for (RFC 9110, section 12.5.3): of what it rates alike, what is quickest made and smallest."""
    weights = weights_of(accept)
    best = max((name for name in ("zstd", "gzip", "identity") if weights.get(name)), key=lambda name: weights[name], default="identity")
    match best:
        case "zstd":
            return zstd_coding()
        case "gzip":
            return gzip_coding()
        case _:
            return IDENTITY


def weights_of(accept: str) -> dict[str, float]:
    """The weight of each coding that it names. One that is no number is none."""
    found: dict[str, float] = {}
    for part in accept.lower().split(","):
        name, _, weight = part.partition(";")
        try:
            found[name.strip()] = float(weight.strip().removeprefix("q=") or 1)
        except ValueError:
            found[name.strip()] = 0.0
    return found


def coding_chooser(compression: str) -> Callable[[str], Coding]:
    """How an answer is coded, by its request's Accept-Encoding: for the setting RELAY_COMPRESSION."""
    return choose_coding if compression == "auto" else lambda accept: IDENTITY

"""The parser of `client.js`, fed whole, byte by byte, and with rubbish."""

import random
from typing import Any

import pytest

from tests.browser.node import run
from tests.streams import Parser

FEED = """
return given.map(pieces => {
  const parser = new client.Parser();
  return pieces.flatMap(piece => parser.feed(Uint8Array.from(piece)));
});
"""

Blocks = list[dict[str, Any]]


def feed(*streams: list[bytes]) -> list[Blocks]:
    """The blocks of each of these streams, which come in pieces."""
    blocks: list[Blocks] = run(FEED, [[list(piece) for piece in stream] for stream in streams])
    return blocks


def bytewise(stream: bytes) -> list[bytes]:
    return [stream[i : i + 1] for i in range(len(stream))]


CASES: dict[str, tuple[bytes, Blocks]] = {
    "an event": (b"event: update\nid: 1\ndata: {}\n\n", [{"name": "update", "id": "1", "data": "{}"}]),
    "LF": (b"data: a\ndata: b\n\n", [{"data": "a\nb"}]),
    "CR": (b"data: a\rdata: b\r\r", [{"data": "a\nb"}]),
    "CRLF": (b"data: a\r\ndata: b\r\n\r\n", [{"data": "a\nb"}]),
    "all three": (b"data: a\rdata: b\r\ndata: c\n\r\n", [{"data": "a\nb\nc"}]),
    "LF CR is two ends": (b"data: a\n\rdata: b\n\n", [{"data": "a"}, {"data": "b"}]),
    "a BOM": (b"\xef\xbb\xbfdata: a\n\n", [{"data": "a"}]),
    "a second BOM spoils its field": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", [{"data": "b"}]),
    "characters of four bytes": ("data: é€😀\n\n".encode(), [{"data": "é€😀"}]),
    "no UTF-8": (b"data: \xff\n\n", [{"data": "�"}]),
    "one space is taken away": (b"data:a\n\ndata:  b \n\n", [{"data": "a"}, {"data": " b "}]),
    "data without a value": (b"data\n\ndata:\n\n", [{"data": ""}, {"data": ""}]),
    "an id without data": (b"id: 7\n\n", [{"id": "7"}]),
    "an empty id": (b"id\ndata: a\n\n", [{"id": "", "data": "a"}]),
    "an id with NUL is none": (b"id: 1\x002\ndata: a\n\n", [{"data": "a"}]),
    "retry": (b"retry: 250\n\nretry: soon\n\n", [{"retry": 250}]),
    "comments are no blocks": (b":\n\n: hello\n\ndata: a\n:\n\n", [{"data": "a"}]),
    "unknown fields are none": (b"colour: red\n\nDATA: x\n\n", []),
    "an event that isn't ended isn't one": (b"data: a\n\ndata: b\n", [{"data": "a"}]),
    "a name lasts for its block alone": (b"event: x\ndata: a\n\ndata: b\n\n", [{"name": "x", "data": "a"}, {"data": "b"}]),
}


def test_a_stream_is_read_as_the_specification_says_whole_and_byte_by_byte() -> None:
    for way in (lambda stream: [stream], bytewise):
        found = feed(*(way(stream) for stream, _ in CASES.values()))
        for name, (_, expected), blocks in zip(CASES, CASES.values(), found, strict=True):
            assert blocks == expected, name


def test_an_event_that_ends_with_cr_is_there_at_once_and_the_lf_in_the_next_piece_is_no_line() -> None:
    stream = [b"data: a\r\n\r", b"\n", b"data: b\r", b"\n\r", b"\ndata: c\r\n", b"", b"\r\n"]
    parts = [feed(stream[:count])[0] for count in range(1, len(stream) + 1)]
    assert [len(blocks) for blocks in parts] == [1, 1, 1, 2, 2, 2, 3]
    assert parts[-1] == [{"data": "a"}, {"data": "b"}, {"data": "c"}]


def test_it_reads_rubbish_as_the_parser_of_the_tests_does_however_it_is_cut() -> None:
    rng = random.Random(4)
    alphabet = [b"data", b":", b" ", b"\r", b"\n", b"\r\n", b"id", b"event", b"retry", b"7", b"a", b"\xf0\x9f\x98\x80", b"\xc3", b"\0"]
    streams, expected = [], []
    for _ in range(300):
        stream = b"".join(rng.choices(alphabet, k=60))
        cuts = sorted(rng.sample(range(len(stream)), 5))
        streams.append([stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)])
        expected.append([block.data for block in Parser().feed(stream)])
    found = feed(*streams)
    assert [[block["data"] for block in blocks if "data" in block] for blocks in found] == expected


def test_an_event_without_an_end_is_no_way_to_fill_the_memory() -> None:
    script = """
    const parser = new client.Parser(), piece = new Uint8Array(1 << 20).fill(97);
    for (let fed = 1; fed <= 20; fed++) try { parser.feed(piece); } catch (error) { return [error.name, fed]; }
    """
    assert run(script) == ["RangeError", 17]


@pytest.mark.parametrize("size", [1, 1000])
def test_many_small_pieces_of_one_large_event_take_no_square_of_the_time(size: int) -> None:
    script = """
    const parser = new client.Parser(), piece = new Uint8Array(given).fill(97), encoder = new TextEncoder();
    parser.feed(encoder.encode("data: "));
    for (let fed = 0; fed < 200000; fed += given) parser.feed(piece);
    return parser.feed(encoder.encode("\\n\\n"))[0].data.length;
    """
    assert run(script, size) == 200000

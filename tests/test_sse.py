"""What we write is what a strict parser reads, whatever a publisher puts into an event."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import sse
from tests.streams import Block, Parser

ID = "e.1795486599120-90121.8812-q7h2"

# Data, and what a client gets: a line may end at LF, CR or CRLF, and arrives with LF.
DATA = {
    "JSON": (b'{"number":25}', '{"number":25}'),
    "empty": (b"", ""),
    "a space in front": (b" x", " x"),
    "a colon in front": (b": x", ": x"),
    "LF": (b"a\nb", "a\nb"),
    "CR": (b"a\rb", "a\nb"),
    "CRLF": (b"a\r\nb", "a\nb"),
    "LFCR": (b"a\n\rb", "a\n\nb"),
    "an empty line": (b"a\n\nb", "a\n\nb"),
    "line ends alone": (b"\n\n", "\n\n"),
    "a line end behind": (b"a\n", "a\n"),
    "a line end in front": (b"\na", "\na"),
    "a field of data": (b"data: x", "data: x"),
    "a forged block": (b'1\n\nevent: bye\nid: forged\nretry: 1\ndata: {"reason":"x"}\n\n', None),
    "a forged block with CR": (b"1\r\revent: bye\rid: forged\rdata: x\r\r", None),
    "a forged block with CRLF": (b"1\r\n\r\nevent: bye\r\nid: forged\r\ndata: x\r\n\r\n", None),
    "a forged id": (b"1\nid: forged", None),
    "a forged event": (b"1\nevent: hello", None),
    "a forged retry": (b"1\nretry: 1", None),
    "a comment": (b"1\n: comment", None),
    "NUL": (b"a\0b", "a\0b"),
    "a byte order mark": ("\ufeff1".encode(), "\ufeff1"),
    "other line ends of Unicode": ("a\u2028b\u2029c\x85d\x0be\x0cf".encode(), "a\u2028b\u2029c\x85d\x0be\x0cf"),
    "beyond the basic plane": ("🎲".encode(), "🎲"),
    "a line of 64 KiB": (b"x" * 65536, "x" * 65536),
    "64 KiB of line ends": (b"\r\n" * 32768, "\n" * 32768),
}


def expected(data: bytes) -> str:
    return re.sub("\r\n|\r", "\n", data.decode())


@pytest.mark.parametrize(("data", "text"), DATA.values(), ids=DATA)
def test_data_arrives_as_one_event_of_its_name_and_id(data: bytes, text: str | None) -> None:
    parser = Parser()
    assert parser.feed(sse.block("update", data, id=ID)) == [Block("update", expected(data) if text is None else text, ID)]
    assert parser.retry_ms is None


@given(st.lists(st.sampled_from(["\r", "\n", "\r\n", "data: ", "id: x", "event: bye", "retry: 1", ":", "\0", "\ufeff", "\u2028", "x"])))
def test_no_data_can_add_a_field_or_end_a_block(pieces: list[str]) -> None:
    data = "".join(pieces).encode()
    parser = Parser()
    assert parser.feed(sse.block("update", data, id=ID)) == [Block("update", expected(data), ID)]
    assert (parser.retry_ms, parser.comments, parser.last_event_id) == (None, 0, ID)


@given(st.text(max_size=60), st.text(max_size=60), st.lists(st.integers(0, 400)))
def test_blocks_are_read_in_pieces_of_any_size(first: str, second: str, cuts: list[int]) -> None:
    wire = sse.retry(3000) + sse.block("a", first.encode(), id="1.1-1") + sse.HEARTBEAT + sse.block("b", second.encode(), retry_ms=5)
    parser, blocks = Parser(), []
    ends = [*sorted({cut for cut in cuts if cut < len(wire)}), len(wire)]
    for begin, end in zip([0, *ends], ends, strict=False):
        blocks += parser.feed(wire[begin:end])
    assert blocks == [Block("a", expected(first.encode()), "1.1-1"), Block("b", expected(second.encode()), "1.1-1")]
    assert (parser.retry_ms, parser.comments) == (5, 1)


def test_a_block_is_read_byte_by_byte() -> None:
    parser = Parser()
    wire = sse.block("update", b"a\r\nb", id=ID)
    got = [(index, block) for index, byte in enumerate(wire) for block in parser.feed(bytes([byte]))]
    assert got == [(len(wire) - 1, Block("update", "a\nb", ID))]


@given(st.binary(max_size=40))
def test_rubbish_behind_a_block_does_not_change_it(rubbish: bytes) -> None:
    wire = sse.block("update", b"1", id=ID)
    assert Parser().feed(wire + rubbish)[0] == Block("update", "1", ID)


@given(st.integers(0, 60))
def test_a_block_that_is_cut_is_no_event(end: int) -> None:
    wire = sse.block("update", b"1\n2", id=ID)
    parser = Parser()
    assert parser.feed(wire[: min(end, len(wire) - 1)]) == []
    assert parser.last_event_id == ""


def test_a_block_has_the_form_that_naive_parsers_count_on() -> None:
    """LF alone, one space after the colon, one empty line at the end, and data last."""
    wire = sse.block("bye", b"1\r2", id="e.1-1", retry_ms=2817)
    assert wire == b"event: bye\nretry: 2817\nid: e.1-1\ndata: 1\ndata: 2\n\n"
    assert sse.retry(2817) == b"retry: 2817\n\n"


def test_without_an_id_a_client_keeps_the_one_it_has() -> None:
    parser = Parser()
    blocks = parser.feed(sse.block("update", b"1", id="e.1-1") + sse.block("gap", b"2"))
    assert [block.last_event_id for block in blocks] == ["e.1-1", "e.1-1"]


def test_a_heartbeat_is_a_comment_and_no_event() -> None:
    parser = Parser()
    assert parser.feed(sse.HEARTBEAT) == []
    assert parser.comments == 1

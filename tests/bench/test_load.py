"""The load generator counts right: a benchmark that says "0 lost" must be able to say 1."""

import collections
import pathlib
import socket
import subprocess
from collections.abc import Callable, Sequence

import msgspec
import pytest

from tests.bench import servers
from tests.bench.run import Delivered
from tests.needs import need
from tests.waiting import LIMIT_S

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
HELLO = b'retry: 2000\n\nevent: hello\nid: e.0-0\ndata: {"time":1,"token_expires":2}\n\n'

Counts = collections.namedtuple("Counts", "events lost repeated reordered closed")


def frame(number: int) -> bytes:
    return b'event: update\nid: e.1-%d\ndata: {"t":1,"i":%d,"pad":"\xc3\xa9"}\n\n: beat\n\n' % (number, number)


def one_chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def tiny_chunks(body: bytes) -> bytes:
    return b"".join(one_chunk(body[at : at + 1]) for at in range(len(body)))


def odd_chunks(body: bytes) -> bytes:
    """Sizes of 17, in capitals and with an extension, as RFC 9112 7.1.1 allows."""
    return b"".join(b"%X;a=b\r\n%b\r\n" % (len(part), part) for at in range(0, len(body), 17) if (part := body[at:][:17]))


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    need("a C compiler")
    return servers.compile_tools(tmp_path_factory.mktemp("tools")) / "load"


def receive(load: pathlib.Path, answer: bytes, expected: int, read_bytes: int, *, closes: bool = False) -> Delivered:
    """What it says of a server that gives this answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT_S)
        arguments = [str(load), "--port", str(listener.getsockname()[1]), "--hello", "event: hello"]
        arguments += ["--read-bytes", str(read_bytes)]
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            try:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(LIMIT_S)
                    connection.recv(65536)
                    connection.sendall(answer)
                    assert process.stdin is not None
                    assert process.stdout is not None
                    assert process.stdout.readline() == b"ready\n"
                    if closes:
                        connection.shutdown(socket.SHUT_WR)
                        assert connection.recv(1) == b""  # it has read all and hung up
                    process.stdin.write(b"%d\n" % expected)
                    process.stdin.flush()
                    if closes:
                        process.stdin.close()
                    line = process.stdout.readline()
            finally:
                process.kill()
    return msgspec.json.decode(line, type=Delivered)


def counts(delivered: Delivered) -> Counts:
    return Counts(*(getattr(delivered, name) for name in Counts._fields))


@pytest.mark.parametrize("read_bytes", [1, 2, 3, 7, 64, 65536])
@pytest.mark.parametrize("chunked", [one_chunk, tiny_chunks, odd_chunks])
def test_events_are_found_wherever_chunks_and_reads_cut(load: pathlib.Path, chunked: Callable[[bytes], bytes], read_bytes: int) -> None:
    body = HELLO + b"".join(frame(number) for number in range(20))
    answer = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(body)
    delivered = receive(load, answer, 20, read_bytes)
    assert counts(delivered) == Counts(events=20, lost=0, repeated=0, reordered=0, closed=0)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([0, 1, 2, 3], Counts(4, 0, 0, 0, 1)),
        ([0, 1, 3], Counts(3, 1, 0, 0, 1)),
        ([2, 3], Counts(2, 2, 0, 0, 1)),
        ([0, 1, 2], Counts(3, 1, 0, 0, 1)),
        ([0, 1, 1, 2, 3], Counts(5, 0, 1, 0, 1)),
        ([0, 2, 1, 3], Counts(4, 0, 0, 1, 1)),
        ([0, 2, 1, 1, 3], Counts(5, 0, 1, 1, 1)),
        ([], Counts(0, 4, 0, 0, 1)),
    ],
)
def test_lost_repeated_and_reordered_events_are_told_apart(load: pathlib.Path, numbers: Sequence[int], expected: Counts) -> None:
    answer = HEAD + b"\r\n" + HELLO + b"".join(frame(number) for number in numbers)
    assert counts(receive(load, answer, 4, 65536, closes=True)) == expected

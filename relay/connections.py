"""Has the kernel hold little for clients that take nothing, and close them; hangs up on those that ask nothing or are left at the end.

An ASGI application can do none of that. When it leaves a body unfinished, the server still keeps the connection until it has
written what it holds, and a client that hangs takes none of that: five streams that the relay had closed kept 8 MB each, for
as long as their clients liked, and then held the server back from its end.

So the kernel is told (`TCP_USER_TIMEOUT`, see tcp(7)) to close a connection whose data nobody has taken for so long. What is
set on the socket that listens holds for all that it accepts. Linux alone has that; elsewhere such clients stay until they leave.

Until then the kernel would take some 4 MB for each of them, and at a limit of its own for all sockets of the machine slow
everybody down. Told `TCP_NOTSENT_LOWAT` it takes no more than that of what it can't send yet. (300 such clients: 1,186 MB of its
memory before, 57 after.) A smaller `SO_SNDBUF` would also bound what is on its way, and so how fast a client far away gets on.

And a server that speaks both HTTP/1.1 and HTTP/2 starts its clock only when it has seen which of them a client speaks. One that
sends nothing, or `P`, it waits for without an end. So the kernel is asked what came (`TCP_INFO`).
"""

import asyncio
import os
import socket
import stat
import struct
import sys
from collections.abc import Container, Iterator
from contextlib import suppress

PREFACE_BYTES = 24  # RFC 9113, section 3.4; whatever has sent less has asked for nothing that lasts
KNOWN_MAX = 1_000_000
UNSENT_BYTES = 128 << 10  # with 32 KB, clients that keep up got less
INFO = struct.Struct("=B51xI72xQ")  # of `struct tcp_info` in linux/tcp.h: tcpi_state, tcpi_last_data_recv (ms), tcpi_bytes_received
ESTABLISHED = 1
STEP_S = (0.005, 0.1)  # from one look to the next; the server listens a moment after it has started the application, or later


async def limit_sends(port: int, limit_s: float) -> None:
    """For whoever connects to the port from now on, or as soon as this process listens on it: the kernel holds little that it can't
    send, and closes the connection when nothing of it was taken for so long."""
    if not sys.platform.startswith("linux"):
        return
    step_s = STEP_S[0]
    while True:
        for found in sockets_on(port):
            if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(limit_s * 1000))
                found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
                return
        await asyncio.sleep(step_s)
        step_s = min(1.1 * step_s, STEP_S[1])


async def limit_silence(port: int, limit_s: float) -> None:
    """Hangs up on every client that hasn't even begun to ask, and has sent nothing for so long."""
    if not sys.platform.startswith("linux"):
        return
    known: set[int] = set()
    while True:
        await asyncio.sleep(limit_s / 2)
        # In a thread: at 10,000 streams it takes some 50 ms, nearly all of it in the kernel.
        await asyncio.to_thread(hang_up_on_silent, port, limit_s, known)


def hang_up_on_silent(port: int, limit_s: float, known: set[int]) -> None:
    """`known` are the sockets that needn't be looked at again, by their inode; it grows."""
    if len(known) > KNOWN_MAX:
        known.clear()
    for found in sockets_on(port, known):
        with suppress(OSError):
            state, silent_ms, received = INFO.unpack(found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO.size))
            if received >= PREFACE_BYTES or found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                known.add(os.fstat(found.fileno()).st_ino)
            elif state == ESTABLISHED and silent_ms >= limit_s * 1000:
                found.shutdown(socket.SHUT_RDWR)


def hang_up(port: int) -> None:
    """On every client of this process."""
    for found in sockets_on(port):
        with suppress(OSError):
            found.shutdown(socket.SHUT_RDWR)


def sockets_on(port: int, known: Container[int] = ()) -> Iterator[socket.socket]:
    """This process's TCP sockets with that local port, but for those known by their inode. Each is a duplicate, which is closed when the
    next is asked for."""
    if not sys.platform.startswith("linux"):
        return
    for name in os.listdir("/proc/self/fd"):
        try:
            status = os.stat(f"/proc/self/fd/{name}")
            if not stat.S_ISSOCK(status.st_mode) or status.st_ino in known:
                continue
            duplicate = os.dup(int(name))
        except OSError:  # it was closed meanwhile
            continue
        with socket.socket(fileno=duplicate) as found:
            if found.family in (socket.AF_INET, socket.AF_INET6) and found.getsockname()[1] == port:
                yield found

"""Has the kernel close the connections of clients that take nothing, and hangs up on whoever is left at the end.

An ASGI application can do neither. When it leaves a body unfinished, the server still keeps the connection until it has
written what it holds, and a client that hangs takes none of that: five streams that the relay had closed kept 8 MB each, for
as long as their clients liked, and then held the server back from its end.

So the kernel is told (`TCP_USER_TIMEOUT`, see tcp(7)) to close a connection whose data nobody has taken for so long. What is
set on the socket that listens holds for all that it accepts. Linux alone has that; elsewhere such clients stay until they leave.
"""

import asyncio
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

FIND_S = 10.0  # the server listens a moment after it has started the application
STEP_S = 0.005


async def limit_sends(port: int, limit_s: float) -> None:
    """Whoever connects to the port from now on, or as soon as this process listens on it, is closed at that limit."""
    if not sys.platform.startswith("linux"):
        return
    until = time.monotonic() + FIND_S
    while time.monotonic() < until:
        for found in sockets_on(port):
            if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(limit_s * 1000))
                return
        await asyncio.sleep(STEP_S)


def hang_up(port: int) -> None:
    """On every client of this process."""
    for found in sockets_on(port):
        with suppress(OSError):
            found.shutdown(socket.SHUT_RDWR)


def sockets_on(port: int) -> Iterator[socket.socket]:
    """This process's TCP sockets with that local port. Each is a duplicate, which is closed when the next is asked for."""
    if not sys.platform.startswith("linux"):
        return
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            duplicate = os.dup(int(name))
        except OSError:  # it was closed meanwhile
            continue
        with socket.socket(fileno=duplicate) as found:
            if found.family in (socket.AF_INET, socket.AF_INET6) and found.getsockname()[1] == port:
                yield found

"""A made-up provider of roulette numbers, which `relay demo` has for an upstream: an HTTP endpoint in a process of its own.

{"provider": "made up", "spins": [{"id": "…-1", "table": 123, "update": {"update_type": "new_number", "number": …}}, …]}
"""

import random
import secrets
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from os import getpid

import msgspec

from relay.embedded import STOP_S, die_with

TABLE = 123
SPIN_S = 2.0
SHOWN_MAX = 50
RED = frozenset({1, 3, 5, 7, 9, 12, 14, 16, 18, 19, 21, 23, 25, 27, 30, 32, 34, 36})


class Wheel(HTTPServer):
    """Spins by itself: whoever asks is shown what has been spun by then."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.name = secrets.token_hex(4)  # no two wheels have a spin's id in common
        self.spins: deque[dict[str, object]] = deque(maxlen=SHOWN_MAX)
        self.count = 0
        self._began_s = time.monotonic()

    def turn(self) -> None:
        while self.count <= (time.monotonic() - self._began_s) / SPIN_S:
            self.count += 1
            self.spins.append({"id": f"{self.name}-{self.count}", "table": TABLE, "update": spun(random.randrange(37))})


class Handler(BaseHTTPRequestHandler):
    server: Wheel

    def do_GET(self) -> None:
        self.server.turn()
        etag = f'"{self.server.count}"'
        known = self.headers.get("If-None-Match") == etag
        self.send_response(304 if known else 200)
        self.send_header("ETag", etag)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if not known:
            self.wfile.write(msgspec.json.encode({"provider": "made up", "spins": list(self.server.spins)}))

    def log_message(self, *arguments: object) -> None:
        pass


def spun(number: int) -> dict[str, object]:
    color = "green" if not number else "red" if number in RED else "black"
    return {"update_type": "new_number", "number": {"value": number, "color": color}}


@contextmanager
def made_up_provider() -> Iterator[str]:
    """Its URL, for as long as the context lasts. It ends with this process, however that one ends."""
    command = [sys.executable, "-m", "relay.roulette"]
    # A session of its own, so that a Ctrl-C ends the relay first.
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, preexec_fn=die_with(getpid())) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().decode().strip()
        finally:
            process.terminate()
            process.wait(STOP_S)


def main() -> None:
    with Wheel() as wheel:
        print(f"http://127.0.0.1:{wheel.server_port}/", flush=True)
        wheel.serve_forever()


if __name__ == "__main__":
    main()

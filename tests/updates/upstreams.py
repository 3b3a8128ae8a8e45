"""An HTTP upstream for tests: a real server in a thread, which answers what it is told to, the truth or not."""

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.waiting import LIMIT_S


@dataclass
class Answer:
    """What the upstream says. `write` says it instead, where that is not an answer as others."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    write: "Callable[[Handler], None] | None" = None


def shows(*items: Any, etag: str = "", **more: str) -> Answer:
    """An answer with these items in an array."""
    headers = {"Content-Type": "application/json", **({"ETag": etag} if etag else {}), **more}
    return Answer(json.dumps({"items": items}).encode(), headers=headers)


def gzipped(body: bytes) -> Answer:
    return Answer(gzip.compress(body), headers={"Content-Type": "application/json", "Content-Encoding": "gzip"})


class Upstream(ThreadingHTTPServer):
    """Counts looks, and lets tests wait for them."""

    daemon_threads = True
    answer: Answer

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = shows()
        self.asked: list[dict[str, str]] = []  # the headers of each request, in lower case, and its path
        self._given: list[Answer] = []
        self._news = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/feed"

    def shows(self, *items: Any, **more: str) -> None:
        """From now on, and until it has been looked at twice: the second look is taken only once the first was dealt with."""
        self.says(shows(*items, **more))

    def says(self, answer: Answer) -> None:
        with self._news:
            self.answer = answer
            assert self._news.wait_for(lambda: sum(given is answer for given in self._given) >= 2, LIMIT_S), "nobody looks"

    def begins(self, headers: dict[str, str]) -> Answer:
        with self._news:
            self.asked.append(headers)
            self._given.append(self.answer)
            self._news.notify_all()
            return self.answer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Upstream

    def do_GET(self) -> None:
        answer = self.server.begins({**{name.lower(): value for name, value in self.headers.items()}, ":path": self.path})
        if answer.write:
            return answer.write(self)
        etag = answer.headers.get("ETag")
        known = etag and self.headers.get("If-None-Match") == etag
        self.send_response(304 if known else answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if not known:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if not known:
            self.wfile.write(answer.body)

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    thread = threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(LIMIT_S)

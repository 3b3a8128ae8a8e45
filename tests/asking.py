"""Plain requests, one after the other, and what every answer must have."""

import json
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, Self, TypeVar

import httpx

from tests.servers import token
from tests.streams import Block, Parser, decoder
from tests.waiting import LIMIT_S, wait_for

T = TypeVar("T")
JSON = {"content-type": "application/json"}
TRIES = 10


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of what has nothing to wait for."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    raise AssertionError("it waits")


def bearer(sub: str = "ada", **options: Any) -> dict[str, str]:
    return {"authorization": f"Bearer {token(sub, **options)}"}


AUTH = bearer()


class Asker:
    """A client of one relay. Paths go over the wire as they are given, and every answer is looked at."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=LIMIT_S, trust_env=False, verify=False)  # without TLS, so without its roots

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def ask(self, method: str, target: str, *, headers: Any = AUTH, content: Any = None) -> httpx.Response:
        answer = self.client.request(method, "/", headers=headers, content=content, extensions={"target": target.encode()})
        check(answer)
        return answer

    def get(self, target: str, *, headers: Any = AUTH) -> httpx.Response:
        return self.ask("GET", target, headers=headers)

    def post(self, target: str, value: Any, *, headers: Any = JSON) -> httpx.Response:
        """`value` is JSON's, or bytes that go as they are."""
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.ask("POST", target, headers={**AUTH, **headers}, content=content)

    def publish(self, topic: str, *values: Any) -> list[str]:
        """Their ids."""
        items = [{"topic": topic, "data": value} for value in values]
        answer = self.post("/stream/publish", items)
        assert answer.status_code == 200, answer.text
        return [result["id"] for result in answer.json()["results"]]

    def page(self, target: str, *, headers: Any = AUTH) -> Any:
        answer = self.get(target, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def log(self, topic: str) -> list[Any]:
        """The data of all events of a topic that the log has."""
        return [event["data"] for event in self.page(f"/stream/{topic}/v1/poll?cursor=earliest&limit=500")["events"]]

    @contextmanager
    def live(self, target: str, *, headers: Any = AUTH) -> Iterator["Live"]:
        """A stream, which is left at the end."""
        with self.client.stream("GET", "/", headers=headers, extensions={"target": target.encode()}) as answer:
            assert answer.status_code == 200, answer.read()
            check(answer)
            stream = Live(answer)  # in a name, since the connection ends with it
            yield stream


class Server(Protocol):
    """A process with an address of its own."""

    @property
    def url(self) -> str: ...
    def start(self) -> object: ...
    def kill(self) -> None: ...


@contextmanager
def asking(server: Server) -> Iterator[Asker]:
    """Starts a server and asks it. Both end with the context."""
    try:
        server.start()
        with Asker(server.url) as asker:
            yield asker
    finally:
        server.kill()


def start_poll(asker: Asker, target: str) -> tuple[threading.Thread, list[Any]]:
    """A poll on a connection of its own, and where its page will be when the thread has ended."""
    found: list[Any] = []

    def ask() -> None:
        with Asker(str(asker.client.base_url)) as own:
            found.append(own.page(target))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, found


def start_waiting_poll(asker: Asker, target: str) -> tuple[threading.Thread, list[Any]]:
    """The same, once it is seen to wait. One whose wait was over before that is started anew."""
    for _ in range(TRIES):
        thread, found = start_poll(asker, target)
        wait_for("it waits", lambda thread=thread: asker.page("/stream/status")["waiting_polls"] or not thread.is_alive())  # type: ignore[misc]
        if thread.is_alive():
            return thread, found
    raise AssertionError(f"{target} is answered at once: {found}")


class Live:
    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.parser = Parser()
        self.text = b""
        self._pieces = map(decoder(answer.headers.get("content-encoding", "")), answer.iter_raw())
        self._blocks: list[Block] = []

    def next(self) -> Block:
        """Raises EOFError at the stream's end; httpx.ReadTimeout when nothing comes, not even a heartbeat."""
        while not self._blocks:
            try:
                piece = next(self._pieces)
            except StopIteration:
                raise EOFError from None
            self.text += piece
            self._blocks += self.parser.feed(piece)
        return self._blocks.pop(0)

    def beats(self, count: int) -> None:
        """Reads so many heartbeats, and nothing else."""
        until = self.parser.comments + count
        while self.parser.comments < until:
            piece = next(self._pieces)
            self.text += piece
            self._blocks += self.parser.feed(piece)
            assert self._blocks == []

    def rest(self) -> list[Block]:
        blocks = []
        try:
            while True:
                blocks.append(self.next())
        except EOFError:
            return blocks


def check(answer: httpx.Response) -> None:
    """What all answers have, whatever they say."""
    headers = answer.headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "origin" in [name.strip().lower() for name in headers["vary"].split(",")]
    assert headers["cache-control"]
    if answer.status_code >= 400:
        assert headers["cache-control"] == "no-store"


def check_problem(answer: httpx.Response, status: int, code: str, *, index: int | None = None) -> dict[str, Any]:
    """RFC 9457, with our `code`, a way out, and nothing of our insides."""
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert set(problem) - {"index"} == {"title", "status", "code", "detail"}
    assert (problem["status"], problem["code"], problem.get("index")) == (status, code, index)
    assert problem["title"]
    assert 10 < len(problem["detail"]) < 700
    for inside in ("Traceback", "site-packages", "Litestar", "valkey", "journal", "/relay/"):
        assert inside not in answer.text
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    if status in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    return problem


def check_bye(stream: Live, bye: Block) -> None:
    """The last block of a stream: why it ends, and when to come back, which `retry` says too."""
    assert set(bye.json()) == {"reason", "reconnect_ms"}
    assert stream.parser.retry_ms == bye.json()["reconnect_ms"]
    assert 500 <= bye.json()["reconnect_ms"] <= 15_000

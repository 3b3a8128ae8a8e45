"""The configuration in `infra/nginx`, in Debian's nginx, in front of two relays."""

import asyncio
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import httpx
import pytest

from relay.query import WAIT_MAX_S
from tests.asking import JSON
from tests.faults.clients import Follower, Poller, Publisher, running, until, upto
from tests.infra.nginx import Nginx, run_nginx
from tests.needs import need
from tests.servers import Relay, token, topic
from tests.streams import CODINGS, Block, Parser, open_stream
from tests.waiting import LIMIT_S, wait_for

pytestmark = pytest.mark.anyio

EQUAL_POLLS = 120
FEWER = 4  # of equal polls, at most one of so many gets to a relay; on a machine that has nothing else to do it's one of all
FLOODS, FLOOD = 3, 800  # connections of one address, and requests on each
BURST = 1000  # requests that an address may make at once


def public_topic() -> str:
    return topic().replace("tests/", "public/")


async def publish(http: httpx.AsyncClient, url: str, name: str, *values: int) -> list[str]:
    """Their ids."""
    answer = await http.post(f"{url}/stream/publish", json=[{"topic": name, "data": {"i": value}} for value in values])
    assert answer.status_code == 200, answer.text
    return [result["id"] for result in answer.json()["results"]]


async def total(relays: list[Relay], metric: str) -> int:
    """Of both relays, each asked itself."""
    count = 0.0
    async with httpx.AsyncClient(timeout=LIMIT_S) as direct:
        for relay in relays:
            text = (await direct.get(f"{relay.url}/metrics")).text
            count += sum(float(value) for value in re.findall(rf"^{metric}(?:{{.*}})? (.*)$", text, re.MULTILINE))
    return int(count)


@contextmanager
def nginx_without_relays(folder: Path, **changes: str) -> Iterator[Nginx]:
    """Their ports are taken, so that nobody else listens there."""
    with socket.socket() as one, socket.socket() as other:
        for taken in (one, other):
            taken.bind(("127.0.0.1", 0))
        with run_nginx(folder, [one.getsockname()[1], other.getsockname()[1]], changes) as nginx:
            yield nginx


def anonymous(nginx: Nginx) -> httpx.AsyncClient:
    """A client without credentials, with a connection for every request."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(verify=nginx.tls, timeout=LIMIT_S, limits=limits)


# Streams


async def test_a_stream_comes_over_http2_and_each_event_at_once(http: httpx.AsyncClient, nginx: Nginx, relays: list[Relay]) -> None:
    name = topic()
    async with open_stream(http, f"{nginx.url}/stream/{name}/v1/live") as stream:
        assert stream.response.http_version == "HTTP/2"
        assert stream.response.headers["cache-control"] == "no-store, no-transform"
        assert (await stream.next()).name == "hello"
        for number in range(3):
            await publish(http, relays[number % 2].url, name, number)
            assert (await stream.next()).json() == {"i": number}


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_stream_comes_in_each_coding_and_at_once(http: httpx.AsyncClient, nginx: Nginx, relays: list[Relay], coding: str) -> None:
    name = topic()
    headers = {"accept-encoding": coding}
    async with open_stream(http, f"{nginx.url}/stream/{name}/v1/live", headers=headers) as stream:
        assert stream.response.headers.get("content-encoding", "identity") == coding
        assert (await stream.next()).name == "hello"
        for number in (7, 10**200):
            await publish(http, relays[0].url, name, number)
            assert (await stream.next()).json() == {"i": number}


async def test_a_kept_page_is_given_to_whoever_asked_for_its_coding(nginx: Nginx, relays: list[Relay], http: httpx.AsyncClient) -> None:
    name = public_topic()
    ids = await publish(http, relays[0].url, name, *range(50))
    found: dict[str, list[bytes]] = {}
    async with anonymous(nginx) as client:
        for coding in (*CODINGS, *CODINGS):
            headers = {"accept-encoding": coding}
            request = client.build_request("GET", f"{nginx.url}/stream/{name}/v1/poll?cursor={ids[0]}&limit=40", headers=headers)
            answer = await client.send(request, stream=True)
            assert answer.headers.get("content-encoding", "identity") == coding
            found.setdefault(coding, []).append(b"".join([piece async for piece in answer.aiter_raw()]))
    assert all(first == second for first, second in found.values())


async def test_several_topics_on_one_stream_come_through(http: httpx.AsyncClient, nginx: Nginx) -> None:
    one, other = topic(), topic()
    async with open_stream(http, f"{nginx.url}/stream/v1/live?topic={one}&topic={other}") as stream:
        await stream.until("hello")
        await publish(http, nginx.url, other, 1)
        assert (await stream.next()).json()["topic"] == other


async def test_a_stream_resumes_by_last_event_id_on_whichever_relay(http: httpx.AsyncClient, nginx: Nginx) -> None:
    name = topic()
    ids = await publish(http, nginx.url, name, *range(5))
    for start in range(4):
        async with open_stream(http, f"{nginx.url}/stream/{name}/v1/live", headers={"last-event-id": ids[start]}) as stream:
            assert (await stream.next()).json()["resume"] == "exact"
            assert [block.last_event_id for block in await stream.take(4 - start)] == ids[start + 1 :]


# Polls of public topics


class Connections:
    """To nginx, open and warm, so that equal requests on all of them are there in one moment, as those of many clients are."""

    def __init__(self, nginx: Nginx, count: int) -> None:
        self.nginx, self.count = nginx, count
        self._open: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> Self:
        http1 = ssl.create_default_context(cafile=str(self.nginx.folder / "fullchain.pem"))  # the other one is httpx's, for HTTP/2 too
        for _ in range(self.count):
            self._open.append(await asyncio.open_connection("127.0.0.1", self.nginx.port, ssl=http1))
        return self

    async def __aexit__(self, *error: object) -> None:
        for _, writer in self._open:
            writer.transport.abort()

    def ask(self, path: str) -> None:
        for _, writer in self._open:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.nginx.port}\r\n\r\n".encode())

    async def answers(self) -> list[httpx.Response]:
        async with asyncio.timeout(LIMIT_S):
            return [await self._answer(reader) for reader, _ in self._open]

    async def _answer(self, reader: asyncio.StreamReader) -> httpx.Response:
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = httpx.Headers([(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)])
        return httpx.Response(int(status.split()[1]), headers=headers, content=await reader.readexactly(int(headers["content-length"])))


async def test_equal_long_polls_are_one_request_an_event(http: httpx.AsyncClient, nginx: Nginx, relays: list[Relay]) -> None:
    name = public_topic()
    (cursor,) = await publish(http, nginx.url, name, 0)
    rounds = 3
    before = await total(relays, "relay_polls_total")

    async def one_waits() -> bool:
        return await total(relays, "relay_waiting_polls") == 1

    async with Connections(nginx, EQUAL_POLLS) as clients:
        for number in range(1, rounds + 1):
            path = f"/stream/{name}/v1/poll?cursor={cursor}&wait={WAIT_MAX_S:g}"
            clients.ask(path)
            await until(one_waits)
            (published,) = await publish(http, nginx.url, name, number)
            pages = [answer.json() for answer in await clients.answers()]
            while not pages[0]["events"]:  # on a busy machine they may have waited for all of their time
                clients.ask(path)
                pages = [answer.json() for answer in await clients.answers()]
            assert [event["data"] for event in pages[0]["events"]] == [{"i": number}]
            assert all(page["events"] in ([], pages[0]["events"]) for page in pages)
            cursor = pages[0]["cursor"]
            assert cursor == published
    # Those that nginx got, or came to answer, only when the page was no longer kept are one request more, however many they are.
    asked = await total(relays, "relay_polls_total") - before
    assert rounds <= asked <= rounds * EQUAL_POLLS / FEWER

    def kept() -> int:
        return sum(name in line and line.endswith("cache=HIT") for line in nginx.requests())

    wait_for("what is kept is in the log", lambda: kept() >= rounds * EQUAL_POLLS * (1 - 1 / FEWER))


async def test_equal_long_polls_of_a_quiet_topic_end_together(http: httpx.AsyncClient, nginx: Nginx, relays: list[Relay]) -> None:
    """An answer that may not be kept at all would have them wait for each other, one after the other."""
    name = public_topic()
    (cursor,) = await publish(http, nginx.url, name, 0)
    before = await total(relays, "relay_polls_total")
    async with Connections(nginx, EQUAL_POLLS) as clients:
        clients.ask(f"/stream/{name}/v1/poll?cursor={cursor}&wait=3")
        answers = await clients.answers()
    for answer in answers:
        assert (answer.status_code, answer.json()["events"]) == (200, [])
        assert answer.headers["cache-control"] == "no-cache"
        assert "x-accel-expires" not in answer.headers
    assert await total(relays, "relay_polls_total") - before <= EQUAL_POLLS / FEWER


def read_if_kept(path: Path) -> bytes:
    """nginx takes a page away when nobody has asked for it for a while."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


@pytest.mark.parametrize("carrier", ["token", "encoded", "authorization", "cookie", "another-cookie", "position", "foreign"])
async def test_a_request_that_is_somebodys_is_not_answered_from_the_cache(
    http: httpx.AsyncClient, nginx: Nginx, relays: list[Relay], carrier: str
) -> None:
    name, secret = public_topic(), token()
    first, _ = await publish(http, nginx.url, name, 0, 1)
    url = f"{nginx.url}/stream/{name}/v1/poll?cursor={first}"
    headers, query = {
        "token": ({}, f"&token={secret}"),
        "encoded": ({}, f"&%74oken={secret}"),
        "authorization": ({"authorization": f"Bearer {secret}"}, ""),
        "cookie": ({"cookie": f"relay_token={secret}", "sec-fetch-site": "same-origin"}, ""),
        "another-cookie": ({"cookie": "theme=dark"}, ""),
        "position": ({"last-event-id": first}, ""),
        "foreign": ({}, "&_=123"),
    }[carrier]
    async with anonymous(nginx) as client:
        assert (await client.get(url)).headers["cache-control"] == "public, max-age=1"
        before = await total(relays, "relay_polls_total")
        for _ in range(2):
            answer = await client.get(url + query, headers=headers)
            assert [event["data"] for event in answer.json()["events"]] == [{"i": 1}]
        assert await total(relays, "relay_polls_total") - before == 2

    def outcomes() -> list[str]:
        return [line.rpartition("=")[2] for line in nginx.requests() if name in line and "POST" not in line]

    wait_for("all are in the log", lambda: len(outcomes()) == 3)  # each is, once it was answered
    assert outcomes() == ["MISS", "-", "-"]
    assert [path.name for path in nginx.folder.rglob("pages/*/*/*") if secret.encode() in read_if_kept(path)] == []


async def test_a_personal_poll_may_be_a_304(http: httpx.AsyncClient, nginx: Nginx) -> None:
    name = topic()
    (cursor,) = await publish(http, nginx.url, name, 0)
    url = f"{nginx.url}/stream/{name}/v1/poll?cursor={cursor}"
    page = await http.get(url)
    assert page.headers["cache-control"] == "private, no-cache"
    assert (await http.get(url, headers={"if-none-match": page.headers["etag"]})).status_code == 304


# What is closed


@pytest.mark.parametrize("path", ["/metrics", "//metrics", "/metrics/", "/%6detrics", "/stream/../metrics", "/stream/%2e%2e/metrics", "/x"])
async def test_what_clients_do_not_need_is_closed(nginx: Nginx, path: str) -> None:
    async with anonymous(nginx) as client:
        answer = await client.get(nginx.url, extensions={"target": path.encode()})
    assert answer.status_code == 404
    assert "relay_" not in answer.text


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/schema/openapi.json", "/stream/status"])
async def test_what_clients_need_is_open(http: httpx.AsyncClient, nginx: Nginx, path: str) -> None:
    assert (await http.get(f"{nginx.url}{path}")).status_code == 200


async def test_nothing_is_served_without_tls(nginx: Nginx) -> None:
    async with httpx.AsyncClient(timeout=LIMIT_S) as client:
        answer = await client.get(f"http://127.0.0.1:{nginx.plain_port}/stream/{topic()}/v1/live?token={token()}")
    assert (answer.status_code, "location" in answer.headers) == (403, False)


# While no relay answers


async def test_a_stream_is_told_to_come_back_while_no_relay_answers(directory: Path) -> None:
    with nginx_without_relays(directory) as nginx:
        async with anonymous(nginx) as client:
            url, pauses = f"{nginx.url}/stream/{topic()}/v1/live", set()
            for _ in range(20):
                answer = await client.get(url, headers={"last-event-id": "e1.5-6.7-abcd", "origin": "https://app.example"})
                assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
                assert answer.headers["access-control-allow-origin"] == "https://app.example"
                assert answer.headers["cache-control"] == "no-store, no-transform"
                parser = Parser()
                (block,) = parser.feed(answer.content)
                assert block == Block("bye", block.data, "e1.5-6.7-abcd")
                assert block.json() == {"reason": "unavailable", "reconnect_ms": parser.retry_ms}
                assert parser.retry_ms is not None
                assert 2000 <= parser.retry_ms < 5000
                pauses.add(parser.retry_ms)
            assert len(pauses) > 10
            # What is no cursor isn't told again.
            for position in ("", "a b", "x\ty", "<script>"):
                answer = await client.get(url, headers={"last-event-id": position})
                assert b"\nid:" not in answer.content


async def test_other_requests_are_503_while_no_relay_answers(directory: Path) -> None:
    with nginx_without_relays(directory) as nginx:
        async with anonymous(nginx) as client:
            name = topic()
            requests = [("GET", f"/stream/{name}/v1/poll"), ("POST", f"/stream/{name}"), ("GET", "/stream/status")]
            # A topic whose type is a version and whose id is `live`: publishing to it is no stream.
            requests.append(("POST", "/stream/rounds/v1/live"))
            for method, path in requests:
                answer = await client.request(method, nginx.url + path, headers=JSON, content="{}" if method == "POST" else None)
                assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "unavailable", "2")
                assert answer.headers["content-type"] == "application/problem+json"


# Limits


def connect(nginx: Nginx, address: str) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", nginx.port), LIMIT_S, source_address=(address, 0))
    return nginx.tls.wrap_socket(plain, server_hostname="127.0.0.1")


def flood(nginx: Nginx, path: str, address: str, count: int) -> bytes:
    """What is answered to many requests that come at once from an address."""
    with connect(nginx, address) as connection:
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n"
        connection.sendall((f"{request}\r\n" * (count - 1) + f"{request}Connection: close\r\n\r\n").encode())
        answers = b""
        while piece := connection.recv(1 << 16):
            answers += piece
    return answers


async def test_an_address_that_asks_too_often_is_told_to_come_back_and_others_are_not(directory: Path) -> None:
    """It may ask so rarely here that what it asks while it is told so adds nothing."""
    need("Linux")  # on which all of 127/8 is this machine
    with nginx_without_relays(directory, **{"rate=100r/s": "rate=1r/m"}) as nginx:
        path = f"/stream/{topic()}/v1/live"
        answers = b"".join([await asyncio.to_thread(flood, nginx, path, "127.0.0.1", FLOOD) for _ in range(FLOODS)])
        assert answers.count(b"HTTP/1.1 200") == answers.count(b"event: bye") == FLOODS * FLOOD
        assert 0 <= FLOODS * FLOOD - BURST - answers.count(b'"busy"') < 100
        assert b'"busy"' not in await asyncio.to_thread(flood, nginx, path, "127.0.0.2", 10)


# Logs


async def test_no_log_has_a_token(http: httpx.AsyncClient, directory: Path, relays: list[Relay]) -> None:
    """Whatever goes wrong with its request; and what went wrong is in the access log. The error log is at the lowest level."""
    secret = token(sub="whose-token-is-in-no-log")
    paths = [f"/stream/{topic()}/v1/live?token={secret}", f"/stream/{public_topic()}/v1/poll?cursor=e1.2-3&%74oken={secret}"]
    headers = {"cookie": f"relay_token={secret}", "authorization": f"Bearer {secret}"}

    async def provoke(nginx: Nginx) -> None:
        async with anonymous(nginx) as client:
            for path in paths:
                await client.get(nginx.url + path, headers=headers)
        await asyncio.gather(*(asyncio.to_thread(flood, nginx, paths[0], "127.0.0.1", FLOOD) for _ in range(2)))
        for path in paths:
            # Malformed, twice, and a client that leaves in the middle of it.
            for rest in ("HTTP/9\r\n\r\n", "HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "HTTP/1.1\r\n"):
                with connect(nginx, "127.0.0.1") as connection:
                    connection.sendall(f"GET {path} {rest}".encode())

    signature = secret.rpartition(".")[2].encode()
    with nginx_without_relays(directory / "down") as nginx:
        await provoke(nginx)
    assert [line for line in nginx.requests() if "live" in line and " 200 " in line and " 502" in line]
    with run_nginx(directory / "up", [relay.port for relay in relays]) as nginx:
        async with anonymous(nginx) as client, open_stream(client, f"{nginx.url}{paths[0]}") as stream:
            await stream.until("hello")
    for folder in (directory / "down", directory / "up"):
        written = [path for path in folder.rglob("*") if path.is_file()]
        assert {"access.log", "error.log"} < {path.name for path in written}
        assert [path.name for path in written if signature in path.read_bytes()] == []
    assert all(signature.decode() not in relay.log() for relay in relays)
    # Without the line which says so, it would be in there.
    with nginx_without_relays(directory / "loose", **{"error_log /dev/null emerg;": ""}) as nginx:
        await provoke(nginx)
    assert signature in (nginx.folder / "error.log").read_bytes()


# Reloads and restarts


async def test_a_reload_and_a_rolling_restart_under_load_lose_nothing(
    http: httpx.AsyncClient, http1: httpx.AsyncClient, nginx: Nginx, relays: list[Relay]
) -> None:
    name = topic()
    url = f"{nginx.url}/stream/{name}"
    publisher = Publisher(http, url)
    # On HTTP/1.1, since httpx ends all streams of a connection at a GOAWAY, where browsers let them go on.
    followers = [Follower(http1, f"{url}/v1/live", "cursor=earliest") for _ in range(10)]
    pollers = [Poller(http, f"{url}/v1/poll") for _ in range(2)]
    clients: list[Follower | Poller] = [*followers, *pollers]

    async def all_go_on() -> None:
        last = publisher.acknowledged + 20
        await publisher.has_published(last)
        for one in clients:
            await one.reaches(last)

    async with running(publisher, *clients):
        await all_go_on()
        nginx.reload()
        await all_go_on()
        for relay in relays:
            assert await asyncio.to_thread(relay.stop) == 0
            await all_go_on()
            await asyncio.to_thread(relay.start)
        nginx.reload()
        await all_go_on()
        last = await publisher.rest()
        for one in clients:
            await one.reaches(last)
            assert one.numbers == upto(last)
        for follower in followers:
            assert set(follower.verdicts) == {"exact"}
        # A relay that has just started may refuse a stream for a moment.
        assert {"drain"} <= {bye["reason"] for one in followers for bye in one.names("bye")} <= {"drain", "unavailable"}
        assert sum(one.cuts for one in followers) == 0

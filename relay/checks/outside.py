"""What the way to a relay does to streams and pages, seen from outside as a browser would.

Proxies hold events back, cut quiet connections, drop headers and keep pages that are somebody's own. The relay can't see that
and its clients can't say it. So this goes the public way with canaries on a topic of its own. Everything is asked at the same
time; a whole check takes as long as two heartbeats, or as the longest poll may wait.
"""

import asyncio
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from relay import sse
from relay.fitness import Finding
from relay.query import WAIT_MAX_S

REQUEST_S = 10.0
HELLO_S = 5.0  # the patience of a client before it takes the way for one that buffers
PROMPT_S = 1.0  # an event that takes longer was held back
CLOCK_S = 15.0  # half of the leeway that tokens have
FOREIGN_ORIGIN = "https://relay-check.invalid"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
NGINX = "in nginx: `proxy_buffering off; proxy_http_version 1.1;`, and no `proxy_ignore_headers X-Accel-Buffering`"

Look = Callable[["Outside"], Awaitable[list[Finding]]]


class Outside:
    """The relay at a URL, and a topic of its own there."""

    def __init__(self, url: str, token: str, origin: str, wait_s: float, client: httpx.AsyncClient) -> None:
        self.url, self.token, self.origin, self.wait_s, self.client = url.rstrip("/"), token, origin, wait_s, client
        self.parts = urlsplit(url)
        self.credentials = {"authorization": f"Bearer {token}"}

    @staticmethod
    def topic() -> str:
        return f"canary/check/{secrets.token_hex(8)}"

    async def publish(self, topic: str) -> str:
        """A canary's id."""
        answer = await self.client.post(f"{self.url}/stream/{topic}", json={"event": "canary", "data": 1}, headers=self.credentials)
        answer.raise_for_status()
        return str(answer.json()["id"])

    @asynccontextmanager
    async def stream(self, topic: str, **headers: str) -> AsyncIterator["Stream"]:
        """A stream whose head is here. Raises TimeoutError if something on the way keeps that back too."""
        began = time.monotonic()
        request = self.client.build_request("GET", f"{self.url}/stream/{topic}/v1/live", headers={**self.credentials, **headers})
        async with asyncio.timeout(HELLO_S):
            answer = await self.client.send(request, stream=True)
        try:
            yield Stream(answer, began)
        finally:
            await answer.aclose()


class Stream:
    """A stream, and when what came."""

    def __init__(self, answer: httpx.Response, began_s: float) -> None:
        self.answer, self.began_s = answer, began_s
        self._pieces = answer.aiter_bytes()
        self._parser = sse.Parser()
        self._received: list[sse.Received] = []

    async def next(self) -> list[sse.Received]:
        """What comes next: events, or none for a comment. Raises EOFError at the end."""
        try:
            return self._parser.feed(await anext(self._pieces))
        except StopAsyncIteration:
            raise EOFError from None

    async def event(self, name: str, within_s: float) -> sse.Received:
        """The next event of this name. Raises TimeoutError or EOFError."""
        async with asyncio.timeout(within_s):
            while True:
                while self._received:
                    received = self._received.pop(0)
                    if received.name == name:
                        return received
                self._received += await self.next()


async def look_from_outside(url: str, token: str, origin: str = "", wait_s: float = WAIT_MAX_S) -> list[Finding]:
    """All findings, in the order in which a person reads them. `wait_s`: how long a poll is to wait."""
    timeout = httpx.Timeout(REQUEST_S, read=WAIT_MAX_S + REQUEST_S, pool=None)
    async with httpx.AsyncClient(timeout=timeout, trust_env=False) as client:
        outside = Outside(url, token, origin, wait_s, client)
        reached = await look_for_relay(outside)
        if any(finding.level == "error" for finding in reached):
            return reached
        found = await asyncio.gather(*(looked(outside, look) for look in LOOKS))
    return reached + [finding for findings in found for finding in findings]


async def looked(outside: Outside, look: Look) -> list[Finding]:
    about = look.__name__.removeprefix("look_at_").replace("_", " ")
    try:
        return await look(outside)
    except (httpx.HTTPError, OSError, EOFError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        return [
            Finding("error", about, f"could not be looked at: {reason}", "something on the way breaks requests", "look in the proxy's log")
        ]


async def look_for_relay(outside: Outside) -> list[Finding]:
    """Whether there is a relay, and whether the token opens it; without both nothing else can be said."""
    try:
        began = time.monotonic()
        alive = await outside.client.get(f"{outside.url}/healthz")
        took_ms = (time.monotonic() - began) * 1000
        page = await outside.client.get(f"{outside.url}/stream/{outside.topic()}/v1/poll", headers=outside.credentials)
    except httpx.HTTPError as error:
        return [Finding("error", "address", f"{outside.url} can't be reached: {error}", "nobody can", "name the address that clients use")]
    if alive.status_code != 200 or page.status_code not in (200, 401, 402, 403, 503):
        return [
            Finding(
                "error",
                "address",
                f"/healthz is {alive.status_code} and a poll {page.status_code}",
                "this is no relay, or a proxy keeps paths from it",
                "let the proxy hand /stream/ on as it is, without a prefix added or taken away",
            )
        ]
    if page.status_code != 200:
        detail = page.json().get("detail", "") if "json" in page.headers.get("content-type", "") else ""
        return [
            Finding(
                "error",
                "token",
                f"a poll is {page.status_code}: {detail}",
                "without a token that may read and publish canary/** nothing else can be seen",
                "set the relay's RELAY_JWT_SECRET here too, or give --token",
            )
        ]
    return [Finding("ok", "address", f"a relay answers, in {took_ms:.0f} ms")]


async def look_at_http_version(outside: Outside) -> list[Finding]:
    if outside.parts.scheme != "https":
        if outside.parts.hostname in LOOPBACK:
            return [Finding("ok", "HTTP version", "HTTP/1.1 on this machine itself; ask the public address for what browsers get")]
        return [
            Finding(
                "error",
                "TLS",
                "plain http",
                "tokens are readable on the way, and browsers have no WebCrypto there, which sealed streams need",
                "put TLS in front",
            )
        ]
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    _, writer = await asyncio.open_connection(outside.parts.hostname, outside.parts.port or 443, ssl=context)
    protocol = writer.get_extra_info("ssl_object").selected_alpn_protocol()
    writer.close()
    if protocol == "h2":
        return [Finding("ok", "HTTP version", "HTTP/2")]
    return [
        Finding(
            "warning",
            "HTTP version",
            f"{protocol or 'HTTP/1.1'}",
            "a browser opens six connections to an origin, and each stream takes one: the seventh tab hangs",
            "turn HTTP/2 on where TLS ends; in nginx: `http2 on;`",
        )
    ]


async def look_at_buffering(outside: Outside) -> list[Finding]:
    """How soon `hello` and a canary are here, and whether the answer's head says what the relay said."""
    topic, waited_for = outside.topic(), "`hello`"
    try:
        async with outside.stream(topic) as stream:
            hello = await stream.event("hello", HELLO_S)
            hello_s = time.monotonic() - stream.began_s
            waited_for = "a canary"
            await outside.publish(topic)
            await stream.event("canary", HELLO_S)
            canary_s = time.monotonic() - stream.began_s - hello_s
            findings = look_at_head(stream.answer) + look_at_clock(msgspec.json.decode(hello.data))
    except TimeoutError:
        return [held_back(f"{waited_for} was not here after {HELLO_S:g} s")]
    if max(hello_s, canary_s) > PROMPT_S:
        return [held_back(f"`hello` took {hello_s:.1f} s, a canary {canary_s:.1f} s"), *findings]
    return [Finding("ok", "buffering", f"`hello` after {hello_s * 1000:.0f} ms, a canary after {canary_s * 1000:.0f} ms"), *findings]


def held_back(what: str) -> Finding:
    return Finding("error", "buffering", what, "something on the way holds events back, and clients fall back to polling", NGINX)


def look_at_head(answer: httpx.Response) -> list[Finding]:
    findings = []
    encoding, kept = answer.headers.get("content-encoding"), answer.headers.get("cache-control", "")
    if "no-transform" not in kept or "no-store" not in kept:
        findings.append(
            Finding(
                "warning",
                "headers",
                f"a stream's Cache-Control arrives as {kept!r}",
                "a cache on the way may keep a stream, or change it",
                "don't replace the Cache-Control that the relay sends",
            )
        )
    if encoding and not answer.headers.get("vary", "").lower().count("accept-encoding"):
        findings.append(
            Finding(
                "warning",
                "headers",
                f"a stream arrives as {encoding}",
                "a proxy that compresses streams holds events back until its buffer is full",
                "leave text/event-stream out of what the proxy compresses; in nginx: `gzip_types` without it",
            )
        )
    return findings


def look_at_clock(hello: dict[str, Any]) -> list[Finding]:
    apart_s = abs(time.time() - hello["time"] / 1000)
    if apart_s < CLOCK_S:
        return []
    return [
        Finding(
            "warning",
            "clock",
            f"the relay's clock and this one are {apart_s:.0f} s apart",
            "tokens that are made here may count as not valid yet, or as ended",
            "let both run NTP",
        )
    ]


async def look_at_quiet_streams(outside: Outside) -> list[Finding]:
    """Whether a stream in which nothing happens stays open, and its heartbeats come."""
    async with outside.stream(outside.topic()) as stream:
        hello = msgspec.json.decode((await stream.event("hello", REQUEST_S)).data)
        heartbeat_s = float(hello["heartbeat_s"])
        began, beats, at_s = time.monotonic(), 0, 0.0
        try:
            async with asyncio.timeout(2.2 * heartbeat_s):
                while True:
                    await stream.next()
                    beats, at_s = beats + 1, time.monotonic() - began
        except TimeoutError:
            pass
        except (EOFError, httpx.HTTPError):
            lasted_s = time.monotonic() - began
            return [
                Finding(
                    "error",
                    "quiet streams",
                    f"a quiet stream was cut after {lasted_s:.0f} s, at heartbeats of {heartbeat_s:g} s",
                    "each client reconnects that often",
                    f"set the idle or read timeout on the way above {heartbeat_s:g} s (nginx: `proxy_read_timeout`), "
                    "or RELAY_HEARTBEAT_SECONDS below it",
                )
            ]
    if not beats:
        return [
            Finding(
                "error",
                "quiet streams",
                f"no heartbeat in {2.2 * heartbeat_s:.0f} s, where one is due each {heartbeat_s:g} s",
                "clients take the connection for dead",
                NGINX,
            )
        ]
    return [Finding("ok", "quiet streams", f"{beats} heartbeats, the last after {at_s:.0f} s; the stream stayed open")]


async def look_at_resuming(outside: Outside) -> list[Finding]:
    """Whether the position that a client sends in its header gets to the relay."""
    topic = outside.topic()
    first = await outside.publish(topic)
    second = await outside.publish(topic)
    async with outside.stream(topic, **{"last-event-id": first}) as stream:
        hello = msgspec.json.decode((await stream.event("hello", REQUEST_S)).data)
        missed = await stream.event("canary", REQUEST_S) if hello["resume"] == "exact" else None
    if missed and missed.last_id == second:
        return [Finding("ok", "resuming", "a stream goes on behind its Last-Event-ID")]
    return [
        Finding(
            "error",
            "resuming",
            f"a stream with Last-Event-ID began as {hello['resume']!r}",
            "clients miss what came while they were away",
            "let the proxy hand the header Last-Event-ID on",
        )
    ]


async def look_at_long_polls(outside: Outside) -> list[Finding]:
    url = f"{outside.url}/stream/{outside.topic()}/v1/poll"
    page = await outside.client.get(url, headers=outside.credentials)
    waiting = {"cursor": page.json()["cursor"], "wait": f"{outside.wait_s:g}"}
    began = time.monotonic()
    try:
        status = (await outside.client.get(url, params=waiting, headers=outside.credentials)).status_code
        outcome = "" if status == 200 else f"was answered {status}"
    except httpx.HTTPError as error:
        outcome = f"was cut ({type(error).__name__})"
    took_s = time.monotonic() - began
    if not outcome:
        return [Finding("ok", "long polls", f"one of {outside.wait_s:g} s was answered after {took_s:.0f} s")]
    return [
        Finding(
            "error",
            "long polls",
            f"one of {outside.wait_s:g} s {outcome} after {took_s:.0f} s",
            "old clients get errors whenever nothing happens",
            f"set the timeout on the way above {WAIT_MAX_S:g} s",
        )
    ]


async def look_at_paths(outside: Outside) -> list[Finding]:
    topic = outside.topic()
    await outside.publish(f"{topic}:x")
    page = await outside.client.get(f"{outside.url}/stream/{topic}%3Ax/v1/poll?cursor=earliest", headers=outside.credentials)
    if page.status_code == 200 and len(page.json()["events"]) == 1:
        return [Finding("ok", "paths", "percent-encoded topics arrive as they were sent")]
    return [
        Finding(
            "error",
            "paths",
            f"a topic with %3A for its colon is {page.status_code}",
            "topics that a client encodes are lost",
            "let the proxy hand the path on as it came; in nginx: `proxy_pass` without a path",
        )
    ]


async def look_at_origins(outside: Outside) -> list[Finding]:
    """What pages of other origins may do."""
    url = f"{outside.url}/stream/{outside.topic()}/v1/poll"
    foreign = await outside.client.get(url, headers={**outside.credentials, "origin": FOREIGN_ORIGIN})
    allowed = foreign.headers.get_list("access-control-allow-origin")
    findings = []
    if allowed or foreign.status_code != 403:
        findings.append(
            Finding(
                "error",
                "origins",
                f"a page of {FOREIGN_ORIGIN} gets {foreign.status_code} with Access-Control-Allow-Origin {', '.join(allowed) or 'absent'}",
                "any page may read streams with the cookies of its visitor",
                "don't set CORS headers in the proxy, and hand Origin on: the relay has RELAY_ALLOWED_ORIGINS",
            )
        )
    if not outside.origin:
        return findings or [Finding("ok", "origins", "foreign pages are refused; give --origin to ask for your own")]
    asked = {"access-control-request-method": "GET", "access-control-request-headers": "authorization"}
    preflight = await outside.client.options(url, headers={"origin": outside.origin, **asked})
    own = await outside.client.get(url, headers={**outside.credentials, "origin": outside.origin})
    for name, answer in (("a preflight", preflight), ("a poll", own)):
        allowed = answer.headers.get_list("access-control-allow-origin")
        if answer.is_success and allowed == [outside.origin]:
            continue
        findings.append(
            Finding(
                "error",
                "origins",
                f"{name} of {outside.origin} is {answer.status_code} with Access-Control-Allow-Origin {', '.join(allowed) or 'absent'}",
                "that page can't use the relay",
                "name it in RELAY_ALLOWED_ORIGINS, hand OPTIONS on, and don't add the header in the proxy a second time",
            )
        )
    return findings or [Finding("ok", "origins", f"{outside.origin} may use the relay, foreign pages are refused")]


async def look_at_caches(outside: Outside) -> list[Finding]:
    """Whether what one may read is shown to others, and what should stay inside."""
    topic = outside.topic()
    await outside.publish(topic)
    url = f"{outside.url}/stream/{topic}/v1/poll?cursor=earliest"
    await outside.client.get(url, headers=outside.credentials)
    stranger = await outside.client.get(url)
    figures = await outside.client.get(f"{outside.url}/metrics")
    findings = []
    if stranger.status_code == 200:
        findings.append(
            Finding(
                "error",
                "caches",
                "a page that needs a token was shown without one",
                "anybody reads what others may",
                "don't cache answers to requests with Authorization, Cookie or a token; or take canary/** from RELAY_PUBLIC_TOPICS",
            )
        )
    if figures.status_code == 200 and outside.parts.hostname not in LOOPBACK:
        findings.append(
            Finding(
                "warning",
                "metrics",
                "/metrics is open to everybody",
                "it tells strangers how busy you are",
                "close the path in the proxy, or set RELAY_METRICS_TOKEN",
            )
        )
    return findings or [Finding("ok", "caches", "a page that needs a token isn't shown without one")]


async def look_at_tokens(outside: Outside) -> list[Finding]:
    """Whether a token in a URL gets anywhere else than to the relay."""
    url = f"{outside.url}/stream/{outside.topic()}/v1/poll"
    answer = await outside.client.get(url, params={"token": outside.token})
    findings = []
    told = [name for name, value in answer.headers.items() if outside.token in value]
    if told or outside.token in answer.text:
        findings.append(
            Finding(
                "error",
                "tokens",
                f"a token from the query comes back in {', '.join(told) or 'the body'}",
                "it gets into the logs and histories of whoever is told",
                "let clients ask the final address at once, and don't redirect with the query",
            )
        )
    if answer.headers.get("referrer-policy") != "no-referrer":
        findings.append(
            Finding(
                "warning",
                "tokens",
                "Referrer-Policy doesn't arrive as the relay sends it",
                "a page's URL, and a token in it, is told to other sites",
                "don't replace the header in the proxy",
            )
        )
    if outside.parts.scheme == "https":
        findings += await look_at_plain_http(outside)
    return findings or [Finding("ok", "tokens", "a token in the query comes back nowhere")]


async def look_at_plain_http(outside: Outside) -> list[Finding]:
    try:
        plain = await outside.client.get(f"http://{outside.parts.hostname}/healthz")
    except httpx.HTTPError:
        return []
    if not plain.is_success:
        return []
    return [
        Finding(
            "warning",
            "TLS",
            f"http://{outside.parts.hostname} is answered too, without TLS",
            "a client with the wrong address sends its token in the clear",
            "answer port 80 with a redirect, or not at all",
        )
    ]


LOOKS: Sequence[Look] = (
    look_at_http_version,
    look_at_buffering,
    look_at_quiet_streams,
    look_at_resuming,
    look_at_long_polls,
    look_at_paths,
    look_at_origins,
    look_at_caches,
    look_at_tokens,
)

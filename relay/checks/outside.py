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
from relay.canary import refusal_of
from relay.checks import faults
from relay.errors import Unopened
from relay.finding import Finding, good
from relay.fitness import seconds_outside
from relay.query import PLAIN, SEALED, WAIT_MAX_S
from relay.seal import read_base64, unseal

QUIET_BEATS = 2  # so many heartbeats, a quiet stream is looked at
CLOCK_S = 15.0  # half of the leeway that tokens have
FOREIGN_ORIGIN = "https://relay-check.invalid"
EARLIEST = {"cursor": "earliest"}
LOOPBACK = ("localhost", "127.0.0.1", "::1")

NO_KEYS = {  # and why that is as it was set
    "sealing_off": "nothing is sealed: the relay has no SSE_ENCRYPTION_KEY",
    "keys_shared": "sealed for backends that have the key (RELAY_SEAL_KEYS=shared): what they open isn't looked at",
}

Look = Callable[["Outside"], Awaitable[list[Finding]]]


class Patience(msgspec.Struct, frozen=True):
    """How long what may take: what is later is a fault of the way. Whoever looks on a machine that is busy itself needs more."""

    request_s: float = 10.0
    hello_s: float = 5.0  # of a client, before it takes the way for one that buffers
    prompt_s: float = 1.0  # an event that takes longer was held back
    quiet_beats: float = 2.2  # heartbeats, for the first two of a stream
    wait_s: float = WAIT_MAX_S  # how long a poll is to wait


class Outside:
    """The relay at a URL, and a topic of its own there."""

    def __init__(self, url: str, token: str, origin: str, patience: Patience, client: httpx.AsyncClient) -> None:
        self.url, self.token, self.origin, self.patience, self.client = url.rstrip("/"), token, origin, patience, client
        self.version = PLAIN  # or sealed, where the relay has canaries in no other way
        self.parts = urlsplit(url)
        self.credentials = {"authorization": f"Bearer {token}"}

    @staticmethod
    def topic() -> str:
        return f"canary/check/{secrets.token_hex(8)}"

    def page_url(self, topic: str) -> str:
        return f"{self.url}/stream/{topic}/{self.version}/poll"

    async def publish(self, topic: str) -> str:
        """A canary's id."""
        answer = await self.client.post(f"{self.url}/stream/{topic}", json={"event": "canary", "data": 1}, headers=self.credentials)
        answer.raise_for_status()
        return str(answer.json()["id"])

    @asynccontextmanager
    async def stream(self, topic: str, **headers: str) -> AsyncIterator["Stream"]:
        """A stream whose head is here. Raises TimeoutError if something on the way keeps that back too."""
        began_s, asked_at = time.monotonic(), time.time()
        request = self.client.build_request(
            "GET", f"{self.url}/stream/{topic}/{self.version}/live", headers={**self.credentials, **headers}
        )
        async with asyncio.timeout(self.patience.hello_s):
            answer = await self.client.send(request, stream=True)
        try:
            yield Stream(answer, began_s, asked_at)
        finally:
            await answer.aclose()


class Stream:
    """A stream, and when what came."""

    def __init__(self, answer: httpx.Response, began_s: float, asked_at: float) -> None:
        self.answer, self.began_s, self.asked_at = answer, began_s, asked_at
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


async def look_from_outside(url: str, token: str, origin: str = "", patience: Patience = Patience()) -> list[Finding]:
    """All findings, in the order in which a person reads them."""
    timeout = httpx.Timeout(patience.request_s, read=WAIT_MAX_S + patience.request_s, pool=None)
    async with httpx.AsyncClient(timeout=timeout, trust_env=False) as client:
        outside = Outside(url, token, origin, patience, client)
        reached = await look_for_relay(outside)
        if any(finding.level == "error" for finding in reached):
            return reached
        found = await asyncio.gather(*(looked(outside, look) for look in LOOKS))
    return reached + [finding for findings in found for finding in findings]


async def looked(outside: Outside, look: Look) -> list[Finding]:
    about = look.__name__.removeprefix("look_at_").replace("_", " ")
    try:
        return await look(outside)
    except (httpx.HTTPError, OSError, EOFError, TimeoutError, ValueError, LookupError) as error:  # the last two: no answer of a relay
        reason = str(error) or type(error).__name__
        return [faults.NOT_LOOKED_AT.found(about=about, reason=reason)]


async def look_for_relay(outside: Outside) -> list[Finding]:
    """Whether there is a relay, and whether the token opens it; without both nothing else can be said."""
    try:
        began = time.monotonic()
        alive = await outside.client.get(f"{outside.url}/healthz")
        took_ms = (time.monotonic() - began) * 1000
        page = await outside.client.get(outside.page_url(outside.topic()), headers=outside.credentials)
        if refusal_of(page).code == "only_sealed":
            outside.version = SEALED
            page = await outside.client.get(outside.page_url(outside.topic()), headers=outside.credentials)
    except httpx.HTTPError as error:
        return [faults.NOT_REACHED.found(url=outside.url, error=error)]
    if alive.status_code != 200 or page.status_code not in (200, 401, 402, 403, 503):
        return [faults.NO_RELAY.found(health=alive.status_code, poll=page.status_code)]
    if page.status_code != 200:
        return [faults.TOKEN_REFUSED.found(status=page.status_code, detail=refusal_of(page).detail)]
    return [good("address", f"a relay answers, in {took_ms:.0f} ms")]


async def look_at_http_version(outside: Outside) -> list[Finding]:
    if outside.parts.scheme != "https":
        if outside.parts.hostname in LOOPBACK:
            return [good("HTTP version", "HTTP/1.1 on this machine itself; ask the public address for what browsers get")]
        return [faults.PLAIN_HTTP.found()]
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    _, writer = await asyncio.open_connection(outside.parts.hostname, outside.parts.port or 443, ssl=context)
    protocol = writer.get_extra_info("ssl_object").selected_alpn_protocol()
    writer.close()
    if protocol == "h2":
        return [good("HTTP version", "HTTP/2")]
    return [faults.NO_HTTP2.found(protocol=protocol or "HTTP/1.1")]


async def look_at_buffering(outside: Outside) -> list[Finding]:
    """How soon `hello` and a canary are here, and whether the answer's head says what the relay said."""
    topic, waited_for, patience = outside.topic(), "`hello`", outside.patience
    try:
        async with outside.stream(topic) as stream:
            hello = await stream.event("hello", patience.hello_s)
            hello_s = time.monotonic() - stream.began_s
            findings = look_at_head(stream.answer) + look_at_clock(msgspec.json.decode(hello.data), stream.asked_at, time.time())
            waited_for = "a canary"
            await outside.publish(topic)
            await stream.event("canary", patience.hello_s)
            canary_s = time.monotonic() - stream.began_s - hello_s
    except TimeoutError:
        return [faults.HELD_BACK.found(what=f"{waited_for} was not here after {patience.hello_s:g} s")]
    if max(hello_s, canary_s) > patience.prompt_s:
        return [faults.HELD_BACK.found(what=f"`hello` took {hello_s:.1f} s, a canary {canary_s:.1f} s"), *findings]
    return [good("buffering", f"`hello` after {hello_s * 1000:.0f} ms, a canary after {canary_s * 1000:.0f} ms"), *findings]


def look_at_head(answer: httpx.Response) -> list[Finding]:
    findings = []
    encoding, kept = answer.headers.get("content-encoding"), answer.headers.get("cache-control", "")
    if "no-transform" not in kept or "no-store" not in kept:
        findings.append(faults.MAY_BE_KEPT.found(kept=kept))
    if encoding and not answer.headers.get("vary", "").lower().count("accept-encoding"):
        findings.append(faults.COMPRESSED.found(encoding=encoding))
    return findings


def look_at_clock(hello: dict[str, Any], asked_at: float, answered_at: float) -> list[Finding]:
    apart_s = seconds_outside(hello["time"] / 1000, asked_at, answered_at)
    if apart_s < CLOCK_S:
        return []
    return [faults.CLOCK_APART.found(apart_s=apart_s)]


async def look_at_quiet_streams(outside: Outside) -> list[Finding]:
    """Whether a stream in which nothing happens stays open, and its heartbeats come."""
    async with outside.stream(outside.topic()) as stream:
        hello = msgspec.json.decode((await stream.event("hello", outside.patience.request_s)).data)
        heartbeat_s = float(hello["heartbeat_s"])
        began, beats, at_s = time.monotonic(), 0, 0.0
        waited_s = outside.patience.quiet_beats * heartbeat_s
        try:
            async with asyncio.timeout(waited_s):
                while beats < QUIET_BEATS:
                    await stream.next()
                    beats, at_s = beats + 1, time.monotonic() - began
        except TimeoutError:
            pass
        except (EOFError, httpx.HTTPError):
            lasted_s = time.monotonic() - began
            return [faults.CUT_WHEN_QUIET.found(lasted_s=lasted_s, heartbeat_s=heartbeat_s)]
    if not beats:
        return [faults.NO_HEARTBEAT.found(waited_s=waited_s, heartbeat_s=heartbeat_s)]
    return [good("quiet streams", f"{beats} heartbeats, the last after {at_s:.0f} s; the stream stayed open")]


async def look_at_resuming(outside: Outside) -> list[Finding]:
    """Whether the position that a client sends in its header gets to the relay."""
    topic = outside.topic()
    first = await outside.publish(topic)
    second = await outside.publish(topic)
    async with outside.stream(topic, **{"last-event-id": first}) as stream:
        hello = msgspec.json.decode((await stream.event("hello", outside.patience.request_s)).data)
        missed = await stream.event("canary", outside.patience.request_s) if hello["resume"] == "exact" else None
    if missed and missed.last_id == second:
        return [good("resuming", "a stream goes on behind its Last-Event-ID")]
    return [faults.NOT_RESUMED.found(resume=hello["resume"])]


async def look_at_long_polls(outside: Outside) -> list[Finding]:
    url, wait_s = outside.page_url(outside.topic()), outside.patience.wait_s
    page = await outside.client.get(url, headers=outside.credentials)
    waiting = {"cursor": page.json()["cursor"], "wait": f"{wait_s:g}"}
    began = time.monotonic()
    try:
        status = (await outside.client.get(url, params=waiting, headers=outside.credentials)).status_code
        outcome = "" if status == 200 else f"was answered {status}"
    except httpx.HTTPError as error:
        outcome = f"was cut ({type(error).__name__})"
    took_s = time.monotonic() - began
    if not outcome:
        return [good("long polls", f"one of {wait_s:g} s was answered after {took_s:.0f} s")]
    return [faults.POLL_CUT.found(wait_s=wait_s, outcome=outcome, took_s=took_s, most_s=WAIT_MAX_S)]


async def look_at_paths(outside: Outside) -> list[Finding]:
    topic = outside.topic()
    await outside.publish(f"{topic}:x")
    page = await outside.client.get(outside.page_url(f"{topic}%3Ax"), params=EARLIEST, headers=outside.credentials)
    if page.status_code == 200 and len(page.json()["events"]) == 1:
        return [good("paths", "percent-encoded topics arrive as they were sent")]
    return [faults.PATH_CHANGED.found(status=page.status_code)]


async def look_at_origins(outside: Outside) -> list[Finding]:
    """What pages of other origins may do."""
    url = outside.page_url(outside.topic())
    foreign = await outside.client.get(url, headers={**outside.credentials, "origin": FOREIGN_ORIGIN})
    findings = []
    if allowed_by(foreign) or foreign.status_code != 403:
        findings.append(faults.FOREIGN_ALLOWED.found(origin=FOREIGN_ORIGIN, **outcome_of(foreign)))
    if not outside.origin:
        return findings or [good("origins", "foreign pages are refused; give --origin to ask for your own")]
    asked = {"access-control-request-method": "GET", "access-control-request-headers": "authorization"}
    preflight = await outside.client.options(url, headers={"origin": outside.origin, **asked})
    own = await outside.client.get(url, headers={**outside.credentials, "origin": outside.origin})
    for request, answer in (("a preflight", preflight), ("a poll", own)):
        if not answer.is_success or allowed_by(answer) != [outside.origin]:
            findings.append(faults.OWN_REFUSED.found(request=request, origin=outside.origin, **outcome_of(answer)))
    return findings or [good("origins", f"{outside.origin} may use the relay, foreign pages are refused")]


def allowed_by(answer: httpx.Response) -> list[str]:
    return answer.headers.get_list("access-control-allow-origin")


def outcome_of(answer: httpx.Response) -> dict[str, object]:
    return {"status": answer.status_code, "allowed": ", ".join(allowed_by(answer)) or "absent"}


async def look_at_caches(outside: Outside) -> list[Finding]:
    """Whether what one may read is shown to others, and what should stay inside."""
    topic = outside.topic()
    await outside.publish(topic)
    url = outside.page_url(topic)
    await outside.client.get(url, params=EARLIEST, headers=outside.credentials)
    stranger = await outside.client.get(url, params=EARLIEST)
    figures = await outside.client.get(f"{outside.url}/metrics")
    findings = []
    if stranger.status_code == 200:
        findings.append(faults.SHOWN_TO_STRANGERS.found())
    if figures.status_code == 200 and outside.parts.hostname not in LOOPBACK:
        findings.append(faults.METRICS_OPEN.found())
    return findings or [good("caches", "a page that needs a token isn't shown without one")]


async def look_at_tokens(outside: Outside) -> list[Finding]:
    """Whether a token in a URL gets anywhere else than to the relay."""
    url = outside.page_url(outside.topic())
    answer = await outside.client.get(url, params={"token": outside.token})
    findings = []
    told = [name for name, value in answer.headers.items() if outside.token in value]
    if told or outside.token in answer.text:
        findings.append(faults.TOKEN_TOLD.found(where=", ".join(told) or "the body"))
    if answer.headers.get("referrer-policy") != "no-referrer":
        findings.append(faults.REFERRER_TOLD.found())
    if outside.parts.scheme == "https":
        findings += await look_at_plain_http(outside)
    return findings or [good("tokens", "a token in the query comes back nowhere")]


async def look_at_plain_http(outside: Outside) -> list[Finding]:
    try:
        plain = await outside.client.get(f"http://{outside.parts.hostname}/healthz")
    except httpx.HTTPError:
        return []
    if not plain.is_success:
        return []
    return [faults.ALSO_PLAIN_HTTP.found(host=outside.parts.hostname)]


async def look_at_sealing(outside: Outside) -> list[Finding]:
    """Whether the keys that a reader is given open what it is sent."""
    topic = outside.topic()
    await outside.publish(topic)
    given = await outside.client.get(f"{outside.url}/stream/keys", params={"topic": topic}, headers=outside.credentials)
    code = refusal_of(given).code
    if code in NO_KEYS:
        return [good("sealing", NO_KEYS[code])]
    page = await outside.client.get(f"{outside.url}/stream/{topic}/{SEALED}/poll", params=EARLIEST, headers=outside.credentials)
    if given.status_code != 200 or page.status_code != 200:
        return [faults.NO_SEALS.found(keys=given.status_code, poll=page.status_code)]
    passwords = {one["id"]: read_base64(one["key"]) for one in given.json()["keys"]}
    try:
        unseal(page.json()["events"][0]["data"], passwords, int(time.time() * 1000))
    except Unopened as error:
        return [faults.SEAL_SHUT.found(reason=error)]
    return [good("sealing", "the keys that readers are given open what they are sent")]


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
    look_at_sealing,
)

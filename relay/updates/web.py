"""Sources of the kind `http`: an answer that shows items, as JSON or NDJSON, asked for again and again.

The upstream's ETag and Last-Modified are sent back as they came, never compared: its clock is its own. They are kept with a
hash of the source, since another definition makes other events of the same answer. Now and then they are left out: an upstream
that says "not modified" of what it has modified is found out within ten minutes.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import httpx
import msgspec

from relay.updates.feed import SEEN_MAX, Batch, FeedError, Look
from relay.updates.outbound import answer_of, check_status, open_client, read_body
from relay.updates.sources import Source

WHOLE_S = 600.0  # so often at least, an answer is asked for whatever it was before
BOM = b"\xef\xbb\xbf"


class Validators(msgspec.Struct, frozen=True):
    """A source's place: what tells the upstream which answer was seen."""

    source: str
    etag: str = ""
    modified: str = ""


@asynccontextmanager
async def open_web(source: Source) -> AsyncIterator[Look]:
    fingerprint = hashlib.blake2b(msgspec.json.encode(source), digest_size=16).hexdigest()
    last_body = b""  # its hash
    whole_s = time.monotonic()

    async with open_client(source) as client:

        async def look(place: str | None) -> AsyncGenerator[Batch, None]:
            nonlocal last_body, whole_s
            known = parse_place(place, fingerprint)
            if time.monotonic() - whole_s >= WHOLE_S:
                known = Validators(fingerprint)
            try:
                async with asyncio.timeout(source.timeout_ms / 1000):
                    response, body = await fetch(client, source, known)
            except TimeoutError as error:
                raise FeedError(f"is slow: no whole answer after {source.timeout_ms} ms") from error
            if body is None:
                yield Batch(unchanged=True)
                return
            seen = Validators(fingerprint, response.headers.get("etag", ""), response.headers.get("last-modified", ""))
            if not (known.etag or known.modified):
                whole_s = time.monotonic()
            new_place = msgspec.json.encode(seen).decode()
            hashed = hashlib.blake2b(body, digest_size=16).digest()
            if hashed == last_body:
                yield Batch(place=new_place, unchanged=True)
                return
            items = items_of(source, body, response.headers.get("content-type", ""))
            yield Batch(items[::-1] if source.newest_first else items, new_place)
            last_body = hashed  # only now: all that it held has been dealt with

        yield look


def parse_place(place: str | None, fingerprint: str) -> Validators:
    try:
        known = msgspec.json.decode(place or "", type=Validators)
    except msgspec.DecodeError:
        return Validators(fingerprint)
    return known if known.source == fingerprint else Validators(fingerprint)


async def fetch(client: httpx.AsyncClient, source: Source, known: Validators) -> tuple[httpx.Response, bytes | None]:
    """An answer and its body; without a body where it is the one that is known."""
    headers = {"accept": "application/json, */*;q=0.5", "accept-encoding": "gzip"}
    if known.etag:
        headers["if-none-match"] = known.etag
    if known.modified:
        headers["if-modified-since"] = known.modified
    async with answer_of(client, source, headers) as response:
        if response.status_code == 304 and (known.etag or known.modified):
            return response, None
        check_status(response)
        return response, await read_body(response)


def items_of(source: Source, body: bytes, content_type: str) -> list[msgspec.Raw]:
    """Raises FeedError if the answer isn't what the source says. Each item is looked at by itself, later."""
    body = body.removeprefix(BOM)
    if source.format == "ndjson":
        items = [msgspec.Raw(line) for line in body.splitlines() if line.strip()]
    else:
        try:
            items = msgspec.json.decode(source.items.find_raw(msgspec.Raw(body)), type=list[msgspec.Raw])
        except msgspec.ValidationError as error:
            raise FeedError(f"has no array at {source.items.text or 'its root'}") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FeedError(f"answers {content_type[:80] or 'something'!r} that is no JSON: {error}") from error
        except LookupError as error:
            raise FeedError(f"has nothing at {source.items.text}") from error
    if len(items) > SEEN_MAX:
        raise FeedError(f"shows {len(items)} items: {SEEN_MAX} at most, or they couldn't all be remembered")
    return items

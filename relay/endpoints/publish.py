"""Publishing over HTTP: one event, or a batch."""

import asyncio
import re
from collections import Counter
from typing import Any

import msgspec
from litestar import Request, post
from litestar.handlers import HTTPRouteHandler
from litestar.response import Response

from relay.answers import json_answer
from relay.edge import topic_of
from relay.endpoints import described
from relay.errors import Forbidden, Malformed, TooLarge, TooSlow, Unprocessable, WrongMediaType
from relay.event import DEFAULT_NAME, NESTING_MAX, is_nested_too_deeply
from relay.guard import Guard, header
from relay.log import Appended, Log, NewEvent
from relay.metrics import Metrics
from relay.publishing import BATCH_BYTES_MAX, BATCH_EVENTS_MAX, PublishError, new_event
from relay.rates import Rates
from relay.topic import parse_topic

ENVELOPE_BYTES = 4096  # what a body may have around its data
BATCH_NESTING = 2  # what its data stand in, in a batch


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One event."""

    data: msgspec.Raw
    event: str = DEFAULT_NAME


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One event of a batch."""

    topic: str
    data: msgspec.Raw
    event: str = DEFAULT_NAME
    key: str | None = None


ONE = msgspec.json.Decoder(Body)
MANY = msgspec.json.Decoder(list[Item])


def publish_handlers(guard: Guard, log: Log, rates: Rates, metrics: Metrics, max_event_bytes: int, body_s: float) -> list[HTTPRouteHandler]:
    @post(
        "/stream/{collection:str}/{kind:str}/{ident:str}",
        operation_class=described.PUBLISH,
        status_code=201,
    )
    async def publish(request: Request[Any, Any, Any]) -> Response[bytes]:
        topic = topic_of(request.path_params)
        scope: Any = request.scope
        # An empty one is a client's mistake, and would be no protection: it is refused like any other that is none.
        key = header(scope, b"idempotency-key") if any(name == b"idempotency-key" for name, _ in scope["headers"]) else None
        publisher = await guard.may_act(scope)
        grants = publisher.grants.publish
        if not grants.match(topic):
            raise Forbidden(f"the token does not grant publishing to {topic}", code="topic_not_granted")
        body = decode(ONE, await read_json(request, max_event_bytes + ENVELOPE_BYTES, body_s))
        event = checked(topic, body, key, max_event_bytes)
        await rates.publish(publisher.sub, 1)
        (appended,) = await log.append([event])
        count(metrics, [appended])
        if appended.reused:
            raise Unprocessable("this idempotency key was used for another event: use a new one", code="key_reused")
        return json_answer(answer(appended), 200 if appended.duplicate else 201)

    @post(
        "/stream/publish",
        operation_class=described.PUBLISH_BATCH,
        status_code=200,
    )
    async def publish_batch(request: Request[Any, Any, Any]) -> Response[bytes]:
        publisher = await guard.may_act(request.scope)
        grants = publisher.grants.publish
        items = decode(MANY, await read_json(request, BATCH_BYTES_MAX, body_s))
        if len(items) > BATCH_EVENTS_MAX:
            raise TooLarge(f"{len(items)} events in one batch: send {BATCH_EVENTS_MAX} at most", code="too_many_events")
        events = [checked_item(index, item, max_event_bytes) for index, item in enumerate(items)]
        for index, event in enumerate(events):
            if not grants.match(event.topic):
                raise Forbidden(
                    f"item {index}: the token does not grant publishing to {event.topic}",
                    code="topic_not_granted",
                    index=index,
                )
        await rates.publish(publisher.sub, len(events))
        reused = await log.find_reused_key(events)
        if reused is not None:
            raise key_reused(reused, "nothing was appended")
        appended = await log.append(events) if events else []
        count(metrics, appended)
        # Between the look and the append, another publisher may have used a key.
        raced = next((index for index, one in enumerate(appended) if one.reused), None)
        if raced is not None:
            raise key_reused(raced, "the other items were appended")
        return json_answer({"results": [answer(one) for one in appended]})

    return [publish, publish_batch]


def key_reused(index: int, outcome: str) -> Unprocessable:
    return Unprocessable(f"item {index}: its key was used for another event; {outcome}", code="key_reused", index=index)


def count(metrics: Metrics, appended: list[Appended]) -> None:
    outcomes = Counter("reused" if one.reused else "duplicate" if one.duplicate else "new" for one in appended)
    for outcome, number in outcomes.items():
        metrics.appended(outcome, number)


def answer(appended: Appended) -> dict[str, Any]:
    event = appended.event
    return {"id": event.cursor(appended.shard), "topic": event.topic, "n": event.n, "duplicate": appended.duplicate}


async def read_json(request: Request[Any, Any, Any], most: int, limit_s: float) -> bytes:
    """The body. The limit is for all of it: one for each piece, a client could stretch to hours with a byte now and then."""
    media_type = header(request.scope, b"content-type").partition(";")[0].strip().lower()
    if media_type and media_type != "application/json" and not media_type.endswith("+json"):
        raise WrongMediaType(f"a body of {media_type[:80]!r}: send JSON, with Content-Type: application/json")
    try:
        async with asyncio.timeout(limit_s):
            return await read_body(request, most)
    except TimeoutError as error:
        raise TooSlow(f"the body was not here after {limit_s:g} s: send it at once, in smaller batches if need be") from error


async def read_body(request: Request[Any, Any, Any], most: int) -> bytes:
    """Not Litestar's, which asks once more after the last byte, to be told that it was the last: 60 µs of each publish."""
    length = header(request.scope, b"content-length")
    announced = int(length) if length.isdecimal() else 0
    # An HTTP/2 stream whose end nobody has read is reset after the answer.
    ends_by_length = not request.scope["http_version"].startswith("2")
    body = bytearray()
    while max(announced, len(body)) <= most:
        message = await request.receive()
        if message["type"] != "http.request":
            raise Malformed("the body ended early", code="bad_json")
        body += message["body"]
        if not message["more_body"] or (ends_by_length and len(body) == announced):
            return bytes(body)
    raise TooLarge(f"the body is larger than the {most} bytes that this path takes")


def decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    """Raises Malformed for what is no JSON, Unprocessable for JSON of another shape (a batch's item is named)."""
    if is_nested_too_deeply(body, NESTING_MAX + BATCH_NESTING):
        raise Malformed("the body is nested too deeply", code="bad_json")
    try:
        body.decode()  # what is taken as it is, `data`, the decoder doesn't look into
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        item = re.search(r"at `\$\[(\d+)\]", str(error))
        raise Unprocessable(f"{error}", index=int(item[1]) if item else None) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"the body is no JSON: {error}", code="bad_json") from error


def checked(topic: str, body: Body | Item, key: str | None, max_event_bytes: int) -> NewEvent:
    try:
        return new_event(topic, bytes(body.data), body.event, key, max_event_bytes)
    except PublishError as error:
        raise (TooLarge if error.too_large else Unprocessable)(str(error), code=error.code) from error


def checked_item(index: int, item: Item, max_event_bytes: int) -> NewEvent:
    try:
        topic = parse_topic(item.topic)
        return checked(topic, item, item.key, max_event_bytes)
    except (TooLarge, Unprocessable, Malformed) as problem:
        kind = TooLarge if isinstance(problem, TooLarge) else Unprocessable
        raise kind(f"item {index}: {problem.detail}", code=problem.code, index=index) from problem

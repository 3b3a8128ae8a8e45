"""A token becomes a ticket, which may stand in a URL: it is short-lived, reads and nothing else, and is worth nothing in old logs."""

import time
from typing import Any

import msgspec
from litestar import Request, post
from litestar.handlers import HTTPRouteHandler
from litestar.response import Response

from relay.answers import json_answer
from relay.endpoints import described
from relay.endpoints.publish import decode, read_json
from relay.errors import Forbidden, Unprocessable
from relay.guard import Guard
from relay.query import TOPICS_MAX
from relay.records import Records
from relay.topic import Patterns

BODY_BYTES_MAX = 64 << 10


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a ticket is to open; all that its token does unless `topics` says less."""

    topics: list[str] | None = None


WISH = msgspec.json.Decoder(Wish)


def ticket_handlers(guard: Guard, records: Records, body_s: float) -> list[HTTPRouteHandler]:
    @post("/stream/ticket", operation_class=described.TICKET, status_code=200)
    async def ticket(request: Request[Any, Any, Any]) -> Response[bytes]:
        identity = await guard.may_act(request.scope)
        body = await read_json(request, BODY_BYTES_MAX, body_s)
        wish = decode(WISH, body) if body else Wish()
        granted = identity.grants.subscribe
        made, expires_in = await records.add_ticket(
            identity, granted if wish.topics is None else narrowed(granted, wish.topics), time.time()
        )
        return json_answer({"ticket": made, "expires_in": expires_in})

    return [ticket]


def narrowed(granted: Patterns, topics: list[str]) -> Patterns:
    """These topics, or patterns, alone."""
    if not 1 <= len(topics) <= TOPICS_MAX:
        raise Unprocessable(f"topics are 1 to {TOPICS_MAX}, or leave them out for all that the token grants")
    wanted, bad = Patterns.parse(topics)
    if bad:
        raise Unprocessable(f"{bad[0][:400]!r} is neither a topic nor a pattern", code="bad_topic")
    for pattern in wanted.patterns:
        if not granted.cover(pattern):
            raise Forbidden(f"the token grants no subscription to {'/'.join(pattern)}", code="topic_not_granted")
    return wanted

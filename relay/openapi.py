"""The OpenAPI document: what the descriptions of all endpoints share, and how it is served.

Handlers read their requests themselves, so Litestar can't derive what they take and answer. Each is described as plain
OpenAPI JSON in the `described` module beside it. Bounds come from the constants that the code checks with, so that they
can't differ; that the server answers what is written is held by `tests/test_openapi.py`.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec
from litestar import Request, Router
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import License, Operation, Tag
from litestar.response import Response

from relay import cursor, event, framing, sse, topic
from relay.answers import PROBLEM_TYPE, problem_answer
from relay.cursor import CURSOR_BYTES_MAX, Place, write_cursor
from relay.errors import (
    Forbidden,
    Malformed,
    NotFound,
    NotSubscribed,
    Problem,
    TooLarge,
    TooMany,
    TooSlow,
    Unauthorized,
    Unavailable,
    Unprocessable,
    WrongMediaType,
)
from relay.event import Event
from relay.guard import COOKIES
from relay.query import (
    HEARTBEAT_S,
    LIMIT_DEFAULT,
    LIMIT_MAX,
    NAMES_MAX,
    NEWEST_EVENTS_MAX,
    NEWEST_MAX,
    POSITION_NAMES,
    TOPICS_MAX,
    VERSIONS,
    WAIT_MAX_S,
)

Json = dict[str, Any]

PATH = "/schema/openapi.json"

DESCRIPTION = """
Backends append events to a **topic**, `{collection}/{type}/{id}`. Browsers read them live over Server-Sent Events, or as
JSON pages. Both read one log with one **cursor**: whoever sends the last cursor it saw goes on right behind it, through
either door and on any process, and is told when events between are no longer retained.

**Every answer** carries `X-Content-Type-Options: nosniff`, `Referrer-Policy: no-referrer`, `Vary` and `Cache-Control`. A page
of another origin may read answers if the operator allows that origin; preflights need no token.

**Errors** are problem details (RFC 9457) with a `code` for programs and a sentence with the way out. They are checked in the
order 400, 401, 402, 403. A path that there is not is 404 `not_found`, another method than those below is 405
`method_not_allowed`, and a fault of the relay is 500 `internal`. A request whose line and headers are larger than
the server's buffer is answered 431 without a body.

**Compression**: streams and pages of `v1`, and files, come in zstd or gzip if the request's `Accept-Encoding` names it and it is worth
it; `Content-Encoding` says so.

**Streams are refused with 200.** Any other status ends an `EventSource` for good. So whatever is temporary on `/live` (the log
is away, too many streams, a relay that stops) is a 200 whose only event is `bye`; what is final is a real status.
""".strip()

# Schemas


def schema_ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def parameter_ref(name: str) -> Json:
    return {"$ref": f"#/components/parameters/{name}"}


def whole_match(pattern: str) -> str:
    """Our patterns must match a whole text; JSON Schema's match any part of it."""
    return f"^(?:{pattern})$"


def closed(properties: Json, *, optional: Sequence[str] = (), **more: Any) -> Json:
    """An object that has these properties and no others."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False, **more}


def nullable(schema: Json, description: str) -> Json:
    return {"anyOf": [schema, {"type": "null"}], "description": description}


EVENT = Event(
    "rounds/ROULETTE/123",
    "update",
    8812,
    Place("e3f9k2a", 1795486599120, 90121),
    (1795486597000, 90117),
    b'{"update_type":"new_number","number":{"value":25,"color":"red"}}',
)
CURSOR = EVENT.cursor(0)
BEFORE = write_cursor({0: Place(EVENT.place.epoch, *EVENT.before)}, EVENT.n - 1, EVENT.topic)
GAP: Json = {"topic": EVENT.topic, "lost": 37, "first_n": EVENT.n, "oldest": CURSOR}
HELLO: Json = {
    "cursor": BEFORE,
    "resume": "exact",
    "heartbeat_s": 15,
    "time": 1795486597012,
    "connection": "c-7Q2fJw_a",
    "token_expires": 1795490197,
}
BYE: Json = {"reason": "drain", "reconnect_ms": 2817}
SYNC: Json = {"cursor": CURSOR, "time": 1795486612000}

TOPIC_PATTERN = f"(?:{topic.PART.pattern})" + f"/(?:{topic.PART.pattern})" * (topic.PARTS - 1)
NUMBER: Json = {"type": "integer", "minimum": 0, "description": "Counts the topic's events without a hole."}
TIME: Json = {"type": "integer", "description": "Milliseconds since 1970 by the relay's clock."}
VERDICT = "How this goes on from the position that was sent: " + (
    "`new` there was none; `exact` nothing is missing; `gap` events between are no longer retained; "
    "`reset` the position is none of this log's, so drop what you have"
)

SCHEMAS: Json = {
    "Topic": {
        "type": "string",
        "pattern": whole_match(TOPIC_PATTERN),
        "description": "`{collection}/{type}/{id}`; no part is `.` or `..`.",
        "examples": [EVENT.topic],
    },
    "Cursor": {
        "type": "string",
        "pattern": whole_match(f"(?:{cursor.PART.pattern})(?:_(?:{cursor.PART.pattern}))*"),
        "maxLength": CURSOR_BYTES_MAX,
        "description": "A place in the log. Keep the last one you saw and send it back unchanged; what is in it is the relay's.",
        "examples": [CURSOR],
    },
    "EventName": {
        "type": "string",
        "pattern": whole_match(event.NAME.pattern),
        "description": "What kind of event it is.",
        "examples": [event.DEFAULT_NAME],
    },
    "Event": closed(
        {
            "id": schema_ref("Cursor"),
            "topic": schema_ref("Topic"),
            "n": NUMBER,
            "event": schema_ref("EventName"),
            "ts": TIME,
            "data": {"description": "The publisher's JSON, to the letter; in `v2` a string, the seal."},
        },
        description="An event in a page. Its `id` is a cursor of its topic.",
        examples=[msgspec.json.decode(framing.page_item(EVENT, 0))],
    ),
    "WrappedEvent": closed(
        {
            "id": schema_ref("Cursor"),
            "topic": schema_ref("Topic"),
            "n": NUMBER,
            "ts": TIME,
            "data": {"description": "The publisher's JSON; in `v2` a string, the seal."},
        },
        description="`data` of an event on a stream of several topics. The block's own `id` is the stream's cursor.",
        examples=[{"id": CURSOR, "topic": EVENT.topic, "n": EVENT.n, "ts": EVENT.ts, "data": msgspec.json.decode(EVENT.data)}],
    ),
    "Gap": closed(
        {
            "topic": schema_ref("Topic"),
            "lost": nullable(
                {"type": "integer", "minimum": 0}, "How many events of the topic are missing; null where that can't be known."
            ),
            "first_n": nullable(NUMBER, "Number of the first retained event, or of the next one if none is."),
            "oldest": nullable(schema_ref("Cursor"), "Id of the first retained event."),
        },
        description="Events of a topic that are no longer retained: `data` of the control event `gap`, and a page's `gap`.",
        examples=[GAP],
    ),
    "Hello": closed(
        {
            "cursor": schema_ref("Cursor"),
            "resume": {"enum": ["new", "exact", "gap", "reset"], "description": f"{VERDICT}."},
            "heartbeat_s": {
                "type": "number",
                "description": "A quiet stream gets a comment so often; much longer silence means it is dead.",
            },
            "time": TIME,
            "connection": {"type": "string", "description": "Names this stream in the relay's log lines."},
            "token_expires": nullable({"type": "integer"}, "The token's `exp`, in unix seconds; null without a token."),
        },
        description="`data` of the control event `hello`, the first of each stream. A second one with `reset` may come later.",
        examples=[HELLO],
    ),
    "Sync": closed(
        {"cursor": schema_ref("Cursor"), "time": TIME},
        description="`data` of the control event `sync`: the cursor went on, though there was no event to send.",
        examples=[SYNC],
    ),
    "Bye": closed(
        {
            "reason": {
                "enum": ["drain", "max_age", "expired", "busy", "unavailable"],
                "description": "`drain` the relay stops; `max_age` the stream was long enough; `expired` the token has ended; "
                "`busy` too many streams; `unavailable` it can't be served now.",
            },
            "reconnect_ms": {"type": "integer", "minimum": 1, "description": "When to come back; the same as the block's `retry`."},
        },
        description="`data` of the control event `bye`, the last of a stream that ends as planned. Without a `hello` it is a refusal.",
        examples=[BYE],
    ),
    "Problem": closed(
        {
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "code": {
                "type": "string",
                "pattern": "^[a-z_]+$",
                "description": "For programs: stays as it is, while titles and details may change.",
            },
            "detail": {"type": "string", "description": "What is wrong, and the way out."},
            "index": {"type": "integer", "minimum": 0, "description": "Which item of a batch, counted from 0."},
        },
        optional=["index"],
        description="Problem details (RFC 9457). There is no `type`: programs branch on `code`.",
    ),
}

STREAM_EXAMPLE = b"".join(
    [
        sse.retry(2817),
        sse.block("hello", msgspec.json.encode(HELLO), id=BEFORE),
        framing.single_block(EVENT, 0),
        sse.HEARTBEAT,
        sse.block("bye", msgspec.json.encode(BYE), id=CURSOR, retry_ms=BYE["reconnect_ms"]),
    ]
).decode()

# Parameters


def part(name: str, description: str, example: str) -> Json:
    schema = {"type": "string", "pattern": whole_match(topic.PART.pattern)}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema, "example": example}


def query(name: str, description: str, schema: Json, **more: Any) -> Json:
    return {"name": name, "in": "query", "description": description, "schema": schema, **more}


COLLECTION, KIND, IDENT = EVENT.topic.split("/")
PARAMETERS: Json = {
    "Collection": part("collection", "First part of the topic.", COLLECTION),
    "Kind": part("kind", "Second part of the topic: its type.", KIND),
    "Ident": part("ident", "Third part of the topic: its id.", IDENT),
    "Version": {
        "name": "version",
        "in": "path",
        "required": True,
        "description": "How `data` travels: `v1` is the publisher's JSON as it is; `v2` is that sealed (Fe26.2), if the relay has a key.",
        "schema": {"enum": list(VERSIONS)},
        "example": VERSIONS[0],
    },
    "Topics": query(
        "topic",
        f"Topics to read, once each, at most {TOPICS_MAX} different ones.",
        {"type": "array", "items": schema_ref("Topic"), "minItems": 1},
        required=True,
        style="form",
        explode=True,
        example=[EVENT.topic, "rounds/ROULETTE/124"],
    ),
    "Newest": query(
        "k",
        f"On a first connect, the newest k events of each topic come first. k × topics is at most {NEWEST_EVENTS_MAX}. "
        "A position beats it; after a reset it counts again.",
        {"type": "integer", "minimum": 0, "maximum": NEWEST_MAX, "default": 0},
    ),
    "Heartbeat": query(
        "heartbeat",
        "How often, in seconds, a quiet stream is to get its comment. Without it the relay decides; `hello` says what it is.",
        {"type": "integer", "minimum": HEARTBEAT_S[0], "maximum": HEARTBEAT_S[1]},
        example=HEARTBEAT_S[1],
    ),
    "Names": query(
        "events",
        f"Only events of these names, joined by commas, at most {NAMES_MAX}.",
        {"type": "array", "items": schema_ref("EventName"), "minItems": 1},
        style="form",
        explode=False,
        example=["update", "result"],
    ),
    "Cursor": query(
        "cursor",
        "Where to go on: a cursor that the relay gave, `now`, or `earliest`. Empty counts as absent; malformed is 400 `bad_cursor`.",
        {"anyOf": [{"enum": ["now", "earliest"]}, schema_ref("Cursor")], "default": "now"},
        example="earliest",
    ),
    **{
        f"Position_{name}": query(
            name,
            f"The same as `cursor`, for clients that can't set `Last-Event-ID`; counts before `{after}`.",
            schema_ref("Cursor"),
        )
        for name, after in pairwise(POSITION_NAMES)
    },
    "LastEventId": {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "Where to go on; counts before the query. EventSource sends it by itself. A malformed one is answered as "
        "`reset`, since a 400 would end an EventSource for good.",
        "schema": {"type": "string"},
        "example": CURSOR,
    },
    "Limit": query(
        "limit",
        "Most events in the page.",
        {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT},
    ),
    "Wait": query(
        "wait",
        "Seconds to wait for something new before an empty page is answered (long polling).",
        {"type": "number", "minimum": 0, "maximum": WAIT_MAX_S, "default": 0},
        example=20,
    ),
    "IfNoneMatch": {
        "name": "If-None-Match",
        "in": "header",
        "description": "The `ETag` of the last page: if the answer would be the same, it is 304. With `wait` it waits first.",
        "schema": {"type": "string"},
    },
}

TOPIC_PATH = [parameter_ref("Collection"), parameter_ref("Kind"), parameter_ref("Ident")]
ONE_TOPIC = [*TOPIC_PATH, parameter_ref("Version")]
SEVERAL_TOPICS = [parameter_ref("Version"), parameter_ref("Topics")]
READ = [
    *map(parameter_ref, ["Newest", "Names", "Cursor"]),
    *(parameter_ref(f"Position_{name}") for name in POSITION_NAMES[:-1]),
    parameter_ref("LastEventId"),
]

# Security

HOST_COOKIE, COOKIE = COOKIES
COOKIE_RULE = "GET only, and only from an allowed origin or, without an Origin, with `Sec-Fetch-Site: same-origin`."
SECURITY: Json = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A JWT with `exp` and `sub`. Its claim `relay` holds patterns of topics: "
        '`{"subscribe": ["rounds/**"], "publish": ["rounds/ROULETTE/*"], "admin": ["status"]}`; '
        '`subscription` is `{"status": "active", "until": <unix seconds, optional>}`. The operator may have renamed both claims.',
    },
    "query": {
        "type": "apiKey",
        "in": "query",
        "name": "token",
        "description": "The same JWT or a ticket, for an EventSource, which can set no header. GET only; the operator may allow less.",
    },
    "hostCookie": {"type": "apiKey", "in": "cookie", "name": HOST_COOKIE, "description": f"The same JWT. {COOKIE_RULE}"},
    "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": f"The same JWT. {COOKIE_RULE}"},
    "metrics": {"type": "http", "scheme": "bearer", "description": "The value of `RELAY_METRICS_TOKEN`, where that is set."},
}
READER: list[Json] = [{"bearer": []}, {"query": []}, {"hostCookie": []}, {"cookie": []}, {}]  # {}: public topics need none
PUBLISHER: list[Json] = [{"bearer": []}]
ANYBODY: list[Json] = []

# Answers

RETRY_AFTER: Json = {"Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "integer", "minimum": 1}}}
CHALLENGE: Json = {"WWW-Authenticate": {"description": "RFC 6750.", "schema": {"const": "Bearer"}}}

# What each status is for, and its codes: when they come.
PROBLEMS: dict[type[Problem], tuple[str, dict[str, str]]] = {
    Malformed: (
        "The request can't be understood.",
        {
            "bad_topic": "a topic is not three parts of the allowed characters, there is none, or there are too many",
            "bad_path": "the path is percent-encoded twice",
            "bad_query": "the query is no percent-encoded UTF-8, has too many fields, or one of them twice",
            "bad_cursor": "a position in the query is no cursor",
            "bad_k": "`k` is out of its bounds, or k × topics is",
            "bad_limit": "`limit` is out of its bounds",
            "bad_wait": "`wait` is out of its bounds",
            "bad_heartbeat": "`heartbeat` is out of its bounds",
            "bad_events": "`events` is no list of event names",
            "bad_json": "the body is no JSON, or nested too deeply",
        },
    ),
    Unauthorized: (
        "No token, or one that doesn't hold.",
        {
            "no_token": "the request needs a token and has none",
            "bad_ticket": "there is no such ticket, or no longer: get a new one",
            "bad_token": "the token's form, algorithm, signature, issuer, audience or claims are not right, or it is not valid yet",
            "token_expired": "the token has ended: get a new one",
            "token_revoked": "the token, or all of its subject, was revoked: get a new one",
        },
    ),
    NotSubscribed: ("The token has no active subscription.", {"not_subscribed": "the subscription is missing, inactive or over"}),
    Forbidden: (
        "The token is good, but doesn't grant this.",
        {
            "topic_not_granted": "no pattern of the token matches a topic, which is named",
            "topic_revoked": "what the token granted on a topic, which is named, was revoked: get a new one",
            "admin_not_granted": "the token's `admin` lacks what this needs",
            "origin_refused": "the operator doesn't allow the page's origin",
            "status_not_granted": 'what is kept of a topic is told to tokens with `admin: ["status"]`',
        },
    ),
    NotFound: (
        "There is no such path or version.",
        {
            "not_found": "there is nothing at this path",
            "unknown_version": f"the version is not {' or '.join(VERSIONS)}",
            "sealing_off": "the relay has no key to seal with: its operator sets `SSE_ENCRYPTION_KEY`",
            "only_sealed": "the topic, which is named, is had as `v2` alone: `RELAY_REQUIRE_SEALED`",
            "keys_shared": "the relay seals with a key that only backends have: `RELAY_SEAL_KEYS=shared`",
        },
    ),
    TooSlow: ("The body did not come.", {"too_slow": "the body was not here after `RELAY_REQUEST_SECONDS`"}),
    TooLarge: (
        "The body, or an event in it, is too large.",
        {
            "too_large": "the body is larger than this path takes",
            "event_too_large": "one event's data is larger than `RELAY_MAX_EVENT_BYTES`",
            "too_many_events": "a batch has more events than one may have",
        },
    ),
    WrongMediaType: ("The body is said to be something else than JSON.", {"wrong_media_type": "`Content-Type` is not JSON"}),
    Unprocessable: (
        "The body is JSON, but not of the right shape. Of a batch, `index` names the first bad item.",
        {
            "wrong_shape": "a member is missing, unknown, or of another type",
            "bad_event": "the event's name is reserved, or not of the allowed characters",
            "bad_key": "the idempotency key is empty, too long, or not visible ASCII",
            "bad_data": "`data` is no JSON, or nested too deeply",
            "bad_topic": "an item's topic is none, or a ticket's",
            "key_reused": "the idempotency key was used for another event of this topic: use a new one",
        },
    ),
    TooMany: (
        "A limit of this process or of this client; temporary.",
        {
            "too_many_streams": "as many streams and waiting polls are open as may be: close one, or come back later",
            "rate_limited": "a publisher, or an address, asks for more than it may in a second: come back when it says",
            "too_many_tickets": "a subject asks for tickets without end: use one again",
            "too_many_denials": "as many denials are kept as may be: they end with the tokens that they hold for",
            "too_many_connects": "more streams and waiting polls begin than may in a second: come back when it says",
        },
    ),
    Unavailable: (
        "It can't be done now; temporary. What was being published may be in the log or not: repeat it with the same key.",
        {
            "unavailable": "the log is away, full or not ready, or what decides can't be asked",
            "not_replicated": "fewer than `RELAY_WAIT_REPLICAS` have what was published: it may be in the log, and be lost with its server",
        },
    ),
}


def problem_response(kind: type[Problem]) -> Json:
    description, codes = PROBLEMS[kind]
    told = "\n".join(f"- `{code}`: {when}" for code, when in codes.items())
    code, when = next(iter(codes.items()))
    example = msgspec.json.decode(kind(when, code=code).body())
    headers = RETRY_AFTER if kind in (TooMany, Unavailable) else CHALLENGE if kind is Unauthorized else {}
    return {
        "description": f"{description}\n\n{told}",
        "headers": headers,
        "content": {PROBLEM_TYPE: {"schema": schema_ref("Problem"), "example": example}},
    }


def problems(*kinds: type[Problem]) -> Json:
    """The error answers of an operation."""
    return {str(kind.status): {"$ref": f"#/components/responses/{kind.__name__}"} for kind in kinds}


def header_of(description: str, schema: Json | None = None) -> Json:
    return {"description": description, "schema": schema or {"type": "string"}}


def json_content(schema: Json, **examples: Any) -> Json:
    """Content of one media type, with named examples."""
    return {"application/json": {"schema": schema, "examples": {name: {"value": value} for name, value in examples.items()}}}


# Operations


def operation(
    operation_id: str,
    summary: str,
    description: str,
    *,
    tag: str,
    responses: Json,
    parameters: Sequence[Json] = (),
    body: Json | None = None,
    security: Sequence[Json] = (),
    schemas: Mapping[str, Json] = {},
) -> type[Operation]:
    """For a handler's `operation_class`. `schemas` are those that this operation alone refers to."""
    told: Json = {
        "operationId": operation_id,
        "tags": [tag],
        "summary": summary,
        "description": description.strip(),
        "parameters": list(parameters),
        "responses": responses,
        "security": list(security),
    }
    if body:
        told["requestBody"] = body

    class Described(Operation):
        own_schemas = schemas

        def to_schema(self) -> Json:
            return told

    return Described


DOCUMENT = operation(
    "openapi",
    "This document",
    "OpenAPI 3.1. There is no page that shows it: such pages load scripts of others.",
    tag="service",
    responses={
        "200": {
            "description": "The description of this version.",
            "content": {"application/vnd.oai.openapi+json": {"schema": {"type": "object"}}},
        }
    },
)


class DocumentPlugin(JsonRenderPlugin):
    """Adds what Litestar doesn't know of: the components, and the document's own path."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: Json) -> bytes:
        handlers = [handler for route in request.app.routes for handler in getattr(route, "route_handlers", ())]
        own = [getattr(getattr(handler, "operation_class", None), "own_schemas", {}) for handler in handlers]
        schemas = dict(SCHEMAS)
        for more in own:
            schemas.update(more)
        components = {
            "schemas": schemas,
            "parameters": PARAMETERS,
            "responses": {kind.__name__: problem_response(kind) for kind in PROBLEMS},
            "securitySchemes": SECURITY,
        }
        paths = {**openapi_schema["paths"], PATH: {"get": DOCUMENT().to_schema()}}
        return msgspec.json.encode({**openapi_schema, "paths": paths, "components": components})


def plain_answer(response: Response[Any]) -> Response[Any]:
    """Litestar answers a path that isn't there with a page; everything here is told as problem details."""
    if response.status_code == NotFound.status:
        return problem_answer(NotFound(f"there is nothing at this path: see {PATH}"))
    response.headers["cache-control"] = "no-cache"
    return response


def openapi_config(version: str) -> OpenAPIConfig:
    return OpenAPIConfig(
        "Edge Relay",
        version,
        summary="Live events for browsers, by Server-Sent Events and by polling, from one log",
        description=DESCRIPTION,
        license=License("Apache-2.0", identifier="Apache-2.0"),
        tags=[
            Tag("live", "Server-Sent Events."),
            Tag("poll", "JSON pages, for clients that can't hold a stream."),
            Tag("publish", "Appending events."),
            Tag("service", "For people, balancers and Prometheus."),
        ],
        render_plugins=[DocumentPlugin()],
        openapi_router=Router("/schema", route_handlers=[], include_in_schema=False, after_request=plain_answer),
    )

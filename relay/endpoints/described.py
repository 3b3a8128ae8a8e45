"""How the relay's endpoints are described in OpenAPI."""

from relay.auth import NAME_CHARACTERS_MAX
from relay.errors import (
    Forbidden,
    Malformed,
    NotFound,
    NotSubscribed,
    TooLarge,
    TooMany,
    TooSlow,
    Unauthorized,
    Unavailable,
    Unprocessable,
    WrongMediaType,
)
from relay.event import DEFAULT_NAME, RESERVED_NAMES
from relay.files import JAVASCRIPT, library
from relay.metrics import CONTENT_TYPE
from relay.openapi import (
    ANYBODY,
    CURSOR,
    EVENT,
    ONE_TOPIC,
    PUBLISHER,
    READ,
    READER,
    RETRY_AFTER,
    SEVERAL_TOPICS,
    STREAM_EXAMPLE,
    TOPIC_PATH,
    Json,
    closed,
    header_of,
    json_content,
    nullable,
    operation,
    parameter_ref,
    problems,
    query,
    schema_ref,
    whole_match,
)
from relay.publishing import BATCH_BYTES_MAX, BATCH_EVENTS_MAX, KEY
from relay.query import TOPICS_MAX
from relay.records import TICKET as TICKET_FORM
from relay.records import TICKET_S
from relay.updates.sources import KINDS

# Live

LIVE_DESCRIPTION = """
A stream of Server-Sent Events. Its first event is `hello`, whose id is the place that the stream goes on from; then come the
topics' events in the log's order, each with an id to resume from. An `EventSource` resumes by itself.

Control events, with JSON as `data` (see the schemas of these names):

- `hello` (`Hello`): where the stream goes on, and how: `resume` is `new`, `exact`, `gap` or `reset`. After `reset` drop what you
  have: everything retained follows. An open stream whose log was lost gets a second `hello` with `reset`.
- `gap` (`Gap`): events are missing; what is retained follows. On one topic it has an id.
- `sync` (`Sync`): the cursor went on without an event to send: its topics are quiet, or `events` hid what came.
- `bye` (`Bye`): the stream ends as planned, and `retry` says when to come back. Without a `hello` before it, it is a refusal: the
  relay is stopping, has too many streams, or can't reach its log. That is a 200, since any other status ends an
  `EventSource` for good.

A quiet stream gets a comment as heartbeat. No event of a publisher bears the name of a control event.
"""
LIVE_RESPONSES: Json = {
    "200": {
        "description": "A stream, or a refusal (`bye` alone).",
        "headers": {
            "Cache-Control": header_of("Nothing may keep it, nor change it on its way.", {"const": "no-store, no-transform"}),
            "X-Accel-Buffering": header_of("Tells nginx not to hold events back.", {"const": "no"}),
        },
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": STREAM_EXAMPLE}},
    },
    **problems(Malformed, Unauthorized, NotSubscribed, Forbidden, NotFound),
}

LIVE_TOPIC = operation(
    "liveTopic",
    "Live events of one topic",
    f"{LIVE_DESCRIPTION}\nHere `data` is the publisher's JSON alone, and an event's id is its own.",
    tag="live",
    parameters=[*ONE_TOPIC, *READ, parameter_ref("Heartbeat")],
    responses=LIVE_RESPONSES,
    security=READER,
)
LIVE = operation(
    "live",
    "Live events of several topics on one connection",
    f"{LIVE_DESCRIPTION}\nHere `data` is a `WrappedEvent`, and the block's id is the cursor of the whole stream. Each topic's gap is told.",
    tag="live",
    parameters=[*SEVERAL_TOPICS, *READ, parameter_ref("Heartbeat")],
    responses=LIVE_RESPONSES,
    security=READER,
)

# Publishing

NAMED: Json = {
    "allOf": [schema_ref("EventName"), {"not": {"enum": sorted(RESERVED_NAMES)}}],
    "default": DEFAULT_NAME,
    "description": f"What kind of event it is. Reserved: {', '.join(f'`{name}`' for name in sorted(RESERVED_NAMES))}.",
}
DATA: Json = {"description": "Any JSON, kept to the letter, at most `RELAY_MAX_EVENT_BYTES` of it."}
KEY_SCHEMA: Json = {"type": "string", "pattern": whole_match(KEY.pattern)}
KEY_RULE = (
    "Makes it safe to publish again: the same key on the same topic appends nothing and is answered as the first time. 1 to 255 "
    "visible ASCII characters, known for `RELAY_IDEMPOTENCY_SECONDS`."
)
PUBLISH_SCHEMAS: Json = {
    "NewEvent": closed(
        {"data": DATA, "event": NAMED},
        optional=["event"],
        description="An event to append to the path's topic.",
    ),
    "NewItem": closed(
        {
            "topic": schema_ref("Topic"),
            "data": DATA,
            "event": NAMED,
            "key": nullable(KEY_SCHEMA, f"Idempotency key. {KEY_RULE}"),
        },
        optional=["event", "key"],
        description="An event of a batch.",
    ),
    "Published": closed(
        {
            "id": schema_ref("Cursor"),
            "topic": schema_ref("Topic"),
            "n": {"type": "integer", "minimum": 1, "description": "The event's number on its topic."},
            "duplicate": {
                "type": "boolean",
                "description": "Whether the key was known: this is the first answer again, and nothing was appended.",
            },
        },
        description="Where an event is in the log.",
    ),
}
SAMPLE_DATA: Json = {"update_type": "new_number", "number": {"value": 25, "color": "red"}}
PUBLISHED: Json = {"id": CURSOR, "topic": EVENT.topic, "n": EVENT.n, "duplicate": False}
REFUSALS = problems(Malformed, Unauthorized, Forbidden, TooSlow, TooLarge, WrongMediaType, Unprocessable, TooMany, Unavailable)

PUBLISH = operation(
    "publish",
    "Publish one event",
    "Appends an event to the topic. It needs a token whose `publish` grants match, in the Authorization header; no subscription.",
    tag="publish",
    parameters=[
        *TOPIC_PATH,
        {"name": "Idempotency-Key", "in": "header", "description": KEY_RULE, "schema": KEY_SCHEMA, "example": "spin-77"},
    ],
    body={
        "required": True,
        "content": json_content(schema_ref("NewEvent"), named={"event": DEFAULT_NAME, "data": SAMPLE_DATA}, shortest={"data": SAMPLE_DATA}),
    },
    responses={
        "201": {"description": "It is in the log.", "content": json_content(schema_ref("Published"), new=PUBLISHED)},
        "200": {
            "description": "It had been there: the key is known.",
            "content": json_content(schema_ref("Published"), duplicate={**PUBLISHED, "duplicate": True}),
        },
        **REFUSALS,
    },
    security=PUBLISHER,
    schemas=PUBLISH_SCHEMAS,
)
PUBLISH_BATCH = operation(
    "publishBatch",
    "Publish a batch",
    f"""
Appends up to {BATCH_EVENTS_MAX} events, on any topics, in at most {BATCH_BYTES_MAX >> 20} MiB. All are checked first: if one is bad
or not granted, `index` names it and nothing is appended. Then they are appended in order. After a 503 some may be in the
log: a batch whose items have keys is safe to repeat.
""",
    tag="publish",
    body={
        "required": True,
        "content": json_content(
            {"type": "array", "items": schema_ref("NewItem"), "maxItems": BATCH_EVENTS_MAX},
            two=[
                {"topic": EVENT.topic, "data": SAMPLE_DATA, "key": "spin-77"},
                {"topic": "rounds/ROULETTE/124", "event": "closed", "data": None},
            ],
        ),
    },
    responses={
        "200": {
            "description": "All are in the log; answers in the order of the items.",
            "content": json_content(
                closed({"results": {"type": "array", "items": schema_ref("Published"), "maxItems": BATCH_EVENTS_MAX}}),
                one={"results": [PUBLISHED]},
            ),
        },
        **REFUSALS,
    },
    security=PUBLISHER,
    schemas=PUBLISH_SCHEMAS,
)

# Tickets

TICKET = operation(
    "ticket",
    "A token becomes a ticket",
    f"""
A ticket stands in a URL as `?token=`, where a token would end up in the logs of proxies: for an EventSource, which can set no header.
It reads what its token reads, on every process, again and again. It dies {TICKET_S // 60} minutes after its last use (an open stream is
one), with its token at the latest, and is revoked as its token is. It neither publishes nor administers.
""",
    tag="live",
    body={
        "required": False,
        "content": json_content(schema_ref("Wish"), all={}, one={"topics": [EVENT.topic]}),
    },
    responses={
        "200": {
            "description": "A new ticket. Nobody can tell it again: only its hash is kept.",
            "content": json_content(
                closed(
                    {
                        "ticket": {"type": "string", "pattern": whole_match(TICKET_FORM.pattern)},
                        "expires_in": {"type": "integer", "minimum": 1, "description": "Seconds until it dies if nobody uses it."},
                    }
                ),
                ticket={"ticket": "kXp0Vb1yJ8mQ2rT5wZ7aC4eG6iK9nP3sU1vX0yB8dF2", "expires_in": TICKET_S},
            ),
        },
        **problems(Malformed, Unauthorized, Forbidden, TooSlow, TooLarge, WrongMediaType, Unprocessable, TooMany, Unavailable),
    },
    security=PUBLISHER,
    schemas={
        "Wish": closed(
            {
                "topics": nullable(
                    {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": TOPICS_MAX},
                    "Topics, or patterns, that it opens; without them all that the token grants.",
                )
            },
            optional=["topics"],
            description="What a ticket is to open.",
        ),
    },
)

# Revoking

NAME: Json = {"type": "string", "maxLength": NAME_CHARACTERS_MAX}
DENIAL: Json = {
    "sub": {**NAME, "description": "A subject: all its tokens; with `topic`, what they granted there."},
    "jti": {**NAME, "description": "One token, by its `jti`."},
    "topic": {"type": "string", "description": "A pattern of topics."},
}
REVOKE = operation(
    "revoke",
    "Deny a subject, a token or a topic, now",
    """
Holds for tokens that were issued up to now (`iat`), on every process within a second: open streams end with `bye` and the reason
`revoked`, waiting polls and all later requests are refused. A token of a denied `sub` or `jti` is 401, one for a denied `topic` 403 when
it is to be read. A new token is good again. `undo` takes the same denial away. It needs a token with `admin: ["revoke"]`.
""",
    tag="service",
    body={
        "required": True,
        "content": json_content(
            schema_ref("Revocation"),
            subject={"sub": "ada"},
            token={"jti": "7b1c"},
            topics={"topic": "rounds/ROULETTE/*", "sub": "ada"},
            undo={"sub": "ada", "undo": True},
        ),
    },
    responses={
        "200": {
            "description": "It is denied, or no longer.",
            "content": json_content(
                {
                    "oneOf": [
                        closed({"denied": schema_ref("Denial"), "issued_until": {"type": "number", "description": "A Unix time."}}),
                        closed({"undone": schema_ref("Denial")}),
                    ]
                },
                denied={"denied": {"sub": "ada"}, "issued_until": 1795486599.12},
                undone={"undone": {"sub": "ada"}},
            ),
        },
        **problems(Malformed, Unauthorized, Forbidden, TooSlow, TooLarge, WrongMediaType, Unprocessable, TooMany, Unavailable),
    },
    security=PUBLISHER,
    schemas={
        "Denial": closed(DENIAL, optional=list(DENIAL), description="What is denied: one of them, or topic and sub."),
        "Revocation": closed(
            {**DENIAL, "undo": {"type": "boolean", "default": False, "description": "Deny it no longer."}},
            optional=[*DENIAL, "undo"],
            description="What to deny: one of sub, jti and topic, or topic and sub.",
        ),
    },
)

# For people, balancers and Prometheus

COUNT: Json = {"type": "integer", "minimum": 0}
RATE: Json = {"type": "number", "minimum": 0, "description": "A second, over the last ten."}
HERE: Json = {"enum": ["here", "away"], "description": "Whether the log's server answers."}
TAIL: Json = {
    "connected": {"type": "boolean"},
    "lag_ms": nullable({"type": "number"}, "Age of the newest event when it was read; null before the first."),
    "restarts": {**COUNT, "description": "Times it had to begin again at the log's end."},
}
TOTALS: Json = {
    "version": {"type": "string", "description": "Of the process that answers."},
    "uptime_s": {**COUNT, "description": "The same."},
    "processes": {"type": "integer", "minimum": 1, "description": "How many serve this log; the others as of a few seconds ago."},
    "versions": {"type": "array", "items": {"type": "string"}},
    "connections": {**COUNT, "description": "Open streams."},
    "behind": {**COUNT, "description": "Streams that still read what they have missed."},
    "waiting_polls": COUNT,
    "topics": {**COUNT, "description": "Topics with open streams, of the process that has the most."},
    "audiences": {**COUNT, "description": "Groups of streams that get the same bytes."},
    "events": {**COUNT, "description": "Events seen in the log, by the process that has seen the most."},
    "deliveries": {**COUNT, "description": "Events pushed to streams."},
    "events_per_s": RATE,
    "deliveries_per_s": RATE,
    "tail": closed(TAIL, description="What reads the log's end, in each process."),
    "valkey": HERE,
}
FINGERPRINT: Json = {
    "type": "string",
    "description": 'Of the key that seals, to compare: `printf %s "$KEY" | sha256sum | head -c 12`. Empty without one.',
}
KEPT: Json = closed({"seconds": COUNT, "topic_events": COUNT, "journal_events": COUNT})
FIGURES: Json = closed(
    {
        "host": {"type": "string"},
        "pid": COUNT,
        "version": {"type": "string"},
        "kind": {"enum": ["relay", "job"]},
        **dict.fromkeys(("uptime_s", "connections", "behind", "waiting_polls", "topics", "audiences", "events", "deliveries"), COUNT),
        **dict.fromkeys(("events_per_s", "deliveries_per_s"), RATE),
        **TAIL,
        "draining": {"type": "boolean"},
        "fingerprint": FINGERPRINT,
        "retention": nullable(KEPT, "What it leaves in the log when it appends; null where it doesn't say."),
    }
)
DETAILS: Json = {
    "warnings": {
        "type": "array",
        "items": {"type": "string"},
        "description": "Where processes differ that should be alike: versions, keys, retention.",
    },
    "host": {"type": "string"},
    "pid": COUNT,
    "fingerprint": FINGERPRINT,
    "fleet": {"type": "array", "items": FIGURES, "description": "Each process; the one that answers comes first."},
    "valkey_server": nullable({"type": "object"}, "The server's own figures; null while it is away."),
    "shards": {"type": "integer", "minimum": 1},
    "retention": KEPT,
    "busiest_topics": {
        "type": "array",
        "items": closed({"topic": schema_ref("Topic"), "connections": COUNT}),
        "description": "Topics with the most streams.",
    },
    "sources": nullable(
        {
            "type": "array",
            "items": closed(
                {
                    "name": {"type": "string"},
                    "kind": {"enum": list(KINDS)},
                    "leader": nullable({"type": "string"}, "Which process looks at it; null while none does."),
                    "last_look": nullable(COUNT, "When it was looked at, in ms since 1970."),
                    "last_success": nullable(COUNT, "When that went well."),
                    "lag_ms": nullable(COUNT, "How long ago that was."),
                    "items_seen": {**COUNT, "description": "Items shown, at each look anew."},
                    "appended": COUNT,
                    "duplicates": {**COUNT, "description": "Items that were in the log already."},
                    "skipped": {**COUNT, "description": "Items that can't become events."},
                    "errors": {**COUNT, "description": "Looks that failed."},
                    "error": nullable({"type": "string"}, "Why the last look failed, if it did."),
                    "interval_ms": COUNT,
                }
            ),
        },
        "The upstreams that the update job watches, wherever in the fleet; null while the log is away.",
    ),
}
RETAINED: Json = {
    "topic": schema_ref("Topic"),
    "events": {**COUNT, "description": "How many are kept."},
    "first_n": nullable(COUNT, "Number of the oldest one; null where there is none."),
    "last_n": nullable(COUNT, "Number of the newest one."),
    "oldest": nullable(schema_ref("Cursor"), "Id of the oldest one."),
    "newest": nullable(schema_ref("Cursor"), "Id of the newest one."),
    "oldest_age_ms": nullable(COUNT, "How long ago the oldest one was appended."),
    "bytes": {**COUNT, "description": "What the topic's stream takes of the server's memory, estimated; the journal comes on top."},
}
ASKED: Json = {
    "retained": nullable(
        {"type": "array", "items": closed(RETAINED), "maxItems": TOPICS_MAX},
        "What is kept of the topics that were asked for; null while the log is away.",
    )
}
TOTALS_SAMPLE: Json = {
    "version": "0.1.0",
    "uptime_s": 5025,
    "processes": 1,
    "versions": ["0.1.0"],
    "connections": 812,
    "behind": 3,
    "waiting_polls": 14,
    "topics": 41,
    "audiences": 58,
    "events": 90121,
    "deliveries": 7311804,
    "events_per_s": 18.2,
    "deliveries_per_s": 1476.5,
    "tail": {"connected": True, "lag_ms": 1, "restarts": 0},
    "valkey": "here",
}
DETAILS_SAMPLE: Json = {
    **TOTALS_SAMPLE,
    "warnings": [],
    "host": "relay-1",
    "pid": 4711,
    "fingerprint": "8f6d21c0b75e",
    "fleet": [
        {
            "host": "relay-1",
            "pid": 4711,
            "kind": "relay",
            **{name: TOTALS_SAMPLE[name] for name in FIGURES["properties"] if name in TOTALS_SAMPLE},
            **TOTALS_SAMPLE["tail"],
            "draining": False,
            "fingerprint": "8f6d21c0b75e",
            "retention": {"seconds": 86400, "topic_events": 10000, "journal_events": 100000},
        }
    ],
    "valkey_server": {"valkey_version": "9.1.2", "used_memory": 104857600, "maxmemory_policy": "noeviction", "role": "master"},
    "shards": 1,
    "retention": {"seconds": 86400, "topic_events": 10000, "journal_events": 100000},
    "busiest_topics": [{"topic": EVENT.topic, "connections": 611}],
    "sources": [
        {
            "name": "usgs",
            "kind": "http",
            "leader": "relay-1:4711:5e0c9a1f",
            "last_look": 1795486599120,
            "last_success": 1795486599120,
            "lag_ms": 812,
            "items_seen": 4210,
            "appended": 317,
            "duplicates": 0,
            "skipped": 2,
            "errors": 1,
            "error": None,
            "interval_ms": 5000,
        }
    ],
}
READINESS = closed({"status": {"enum": ["ready", "draining"]}, "valkey": HERE})

STATUS = operation(
    "status",
    "How the fleet is",
    "Totals of all processes that serve this log; of the one that answers alone, while the log is away. A token with "
    '`admin: ["status"]` also sees each of them, the log\'s server, the sources, and the busiest topics of the one that answers.',
    tag="service",
    parameters=[
        query(
            "topic",
            f'Topics, at most {TOPICS_MAX}, of which to tell what is kept. Needs a token with `admin: ["status"]`.',
            {"type": "array", "items": schema_ref("Topic"), "minItems": 1},
            style="form",
            explode=True,
            example=[EVENT.topic],
        )
    ],
    responses={
        "200": {
            "description": "Totals, and with such a token details.",
            "content": {
                **json_content(schema_ref("Status"), totals=TOTALS_SAMPLE, details=DETAILS_SAMPLE),
                "text/html; charset=utf-8": {"schema": {"type": "string"}, "example": "<!doctype html>"},
            },
        },
        **problems(Malformed, Unauthorized, Forbidden),
    },
    security=READER,
    schemas={"Status": closed({**TOTALS, **DETAILS, **ASKED}, optional=[*DETAILS, *ASKED])},
)
HEALTH = operation(
    "healthz",
    "Alive",
    "Answers as long as the process does. Restart it when it doesn't.",
    tag="service",
    responses={
        "200": {"description": "Alive.", "content": json_content(closed({"status": {"const": "alive"}}), alive={"status": "alive"})},
    },
    security=ANYBODY,
)
READY = operation(
    "readyz",
    "Wants traffic",
    "200 while the process wants traffic. An outage of the log is told in the body but is no 503: a balancer that finds all "
    "relays red answers 503 itself, which ends every EventSource for good.",
    tag="service",
    responses={
        "200": {"description": "Ready.", "content": json_content(READINESS, ready={"status": "ready", "valkey": "here"})},
        "503": {
            "description": "It is stopping.",
            "headers": RETRY_AFTER,
            "content": json_content(READINESS, draining={"status": "draining", "valkey": "here"}),
        },
    },
    security=ANYBODY,
)
METRICS = operation(
    "metrics",
    "Figures for Prometheus",
    "Sums over the workers of this machine. Asks for the token `RELAY_METRICS_TOKEN`, where that is set.",
    tag="service",
    responses={
        "200": {
            "description": "Prometheus' text format.",
            "content": {f"{CONTENT_TYPE}; charset=utf-8": {"schema": {"type": "string"}, "example": "relay_connections 812.0\n"}},
        },
        **problems(Unauthorized),
    },
    security=[{"metrics": []}, {}],
)

# Files for browsers

TYPESCRIPT = "text/typescript"

CLIENT = library(
    "client",
    "The client for browsers, an ES module",
    "`RelayStream` reads streams, or pages where something on the way holds streams back.",
    JAVASCRIPT,
    "export class RelayStream extends EventTarget {}",
)
CLIENT_TYPES = library(
    "clientTypes",
    "Its types, for TypeScript",
    "Declares what `client.js` exports.",
    TYPESCRIPT,
    "export declare class RelayStream extends EventTarget {}",
)

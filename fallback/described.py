"""How polling is described in OpenAPI."""

from fallback.page import ENTRIES_MAX, PACE_MS, PAGE_BYTES_MAX
from relay.errors import Forbidden, Malformed, NotFound, NotSubscribed, TooMany, Unauthorized, Unavailable
from relay.files import JAVASCRIPT, library
from relay.keys import EARLY_MS
from relay.openapi import (
    CURSOR,
    EVENT,
    GAP,
    ONE_TOPIC,
    READ,
    READER,
    SCHEMAS,
    SEVERAL_TOPICS,
    TIME,
    VERDICT,
    Json,
    closed,
    header_of,
    json_content,
    operation,
    parameter_ref,
    problems,
    schema_ref,
)
from relay.query import LIMIT_MAX
from relay.seal import KEY_BYTES

PAGE = closed(
    {
        "events": {"type": "array", "items": schema_ref("Event"), "maxItems": LIMIT_MAX, "description": "In the log's order."},
        "cursor": schema_ref("Cursor"),
        "more": {"type": "boolean", "description": "Whether to ask again at once: there is, or may be, more after the cursor."},
        "poll_after_ms": {
            "type": "integer",
            "minimum": 0,
            "description": f"When to ask again: 0 after `more` or `wait`, else {PACE_MS[0]} to {PACE_MS[1]}, more under load.",
        },
        "resume": {"enum": ["new", "exact", "gap", "reset"], "description": f"{VERDICT}."},
        "gap": {
            "anyOf": [schema_ref("Gap"), {"type": "array", "items": schema_ref("Gap"), "minItems": 1}, {"type": "null"}],
            "description": "What is missing: one gap on one topic, a list on several, null where nothing is.",
        },
    },
    description="A page. Send its `cursor` back for the next one, even if the page is empty.",
)
SAMPLE: Json = {
    "events": SCHEMAS["Event"]["examples"],
    "cursor": CURSOR,
    "more": False,
    "poll_after_ms": 5000,
    "resume": "exact",
    "gap": None,
}
LOSSY: Json = {**SAMPLE, "resume": "gap", "gap": GAP}

DESCRIPTION = f"""
The events after a position, oldest first. Ask again with the page's `cursor`: at once if `more`, else after `poll_after_ms`.

A page ends at `limit` events, {PAGE_BYTES_MAX >> 20} MiB, or {ENTRIES_MAX} entries looked at, whichever comes first; so `more`, not
an empty list, says whether to ask again at once. Without a position and without `k` the first page is empty, and its cursor is
the end of the log. The same cursors are the ids of a stream.
"""

RESPONSES: Json = {
    "200": {
        "description": "A page.",
        "headers": {
            "ETag": header_of("Stands for what was asked and what was found; send it as `If-None-Match`. `v2` has none."),
            "Cache-Control": header_of(
                "Public pages asked for with `cursor` in the query and without a credential may be kept by shared caches, "
                "full ones for 60 s, others for 1 s; all others are `private` or `no-store`, as `v2` is."
            ),
            "Vary": header_of("The headers that the answer depends on."),
        },
        "content": json_content(schema_ref("Page"), exact=SAMPLE, gap=LOSSY),
    },
    "304": {"description": "Nothing has changed since the page with this `ETag`.", "headers": {"ETag": header_of("The same again.")}},
    **problems(Malformed, Unauthorized, NotSubscribed, Forbidden, NotFound, TooMany, Unavailable),
}

SEALING_KEY = closed(
    {
        "topic": schema_ref("Topic"),
        "id": {"type": "string", "pattern": "^[A-Za-z0-9_]+$", "description": "The password id that stands in the seals."},
        "key": {
            "type": "string",
            "pattern": "^[A-Za-z0-9_-]{43}$",
            "description": f"{KEY_BYTES} bytes as base64url: Iron's raw key, for encryption and integrity both.",
        },
        "from": {**TIME, "description": "From when it seals, in ms since 1970."},
        "until": {**TIME, "description": "Until when it seals."},
    },
    description="What opens the seals of one topic and one epoch of time.",
)
KEYS = operation(
    "keys",
    "The keys which open sealed events",
    f"""
The keys with which the topics' `v2` data is being sealed: of each the current one, and in the last {EARLY_MS // 1000} s of its time
the next one too. Ask at a random moment in these, so that not all clients ask at once; and ask when a seal names a key that you
don't have. If it still isn't there, go on from your last cursor: what is sent again is sealed anew. While the relay's own key
is being rotated there are two of each.
""",
    tag="poll",
    parameters=[parameter_ref("Topics")],
    responses={
        "200": {
            "description": "The keys.",
            "content": json_content(
                closed({"keys": {"type": "array", "items": schema_ref("SealingKey"), "minItems": 1}}),
                current={
                    "keys": [
                        {
                            "topic": EVENT.topic,
                            "id": "k1c5d62a8f6c1b3e0",
                            "key": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
                            "from": 1795485600000,
                            "until": 1795489200000,
                        }
                    ]
                },
            ),
        },
        **problems(Malformed, Unauthorized, NotSubscribed, Forbidden, NotFound, TooMany, Unavailable),
    },
    security=READER,
    schemas={"SealingKey": SEALING_KEY},
)

PARAMETERS = [*READ, *map(parameter_ref, ["Limit", "Wait", "IfNoneMatch"])]

POLL_TOPIC = operation(
    "pollTopic",
    "A page of one topic's events",
    DESCRIPTION,
    tag="poll",
    parameters=[*ONE_TOPIC, *PARAMETERS],
    responses=RESPONSES,
    security=READER,
    schemas={"Page": PAGE},
)
POLL = operation(
    "poll",
    "A page of several topics' events",
    DESCRIPTION,
    tag="poll",
    parameters=[*SEVERAL_TOPICS, *PARAMETERS],
    responses=RESPONSES,
    security=READER,
    schemas={"Page": PAGE},
)
POLLER = library(
    "poller",
    "The client for old browsers, in ECMAScript 5",
    "`RelayPoller` reads pages, with XMLHttpRequest alone.",
    JAVASCRIPT,
    "window.RelayPoller = function (url, options) {};",
)

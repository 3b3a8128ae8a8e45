"""The keys which open sealed data: what a reader may read, it may have the keys of.

Served inside the relay and beside the pages of the polling function, which are of no use without them.
"""

import time
from typing import Any

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.response import Response

from fallback import described
from relay.answers import json_answer
from relay.errors import NotFound
from relay.guard import Guard
from relay.keys import TopicKey
from relay.query import SEALED, Versions, parse_fields, parse_topics
from relay.rates import Rates
from relay.seal import write_base64


def key_handlers(guard: Guard, rates: Rates, versions: Versions) -> list[HTTPRouteHandler]:
    @get("/stream/keys", operation_class=described.KEYS)
    async def keys(request: Request[Any, Any, Any]) -> Response[bytes]:
        scope: Any = request.scope
        versions.check(SEALED)
        assert versions.sealer
        keyring = versions.sealer.keyring
        if keyring.shared:
            raise NotFound("this relay seals for backends, with the key itself, which it gives to nobody", code="keys_shared")
        topics = parse_topics(parse_fields(scope["query_string"]).get("topic", []))
        await rates.request(guard.address(scope))
        await guard.may_read(scope, topics)
        now_ms = int(time.time() * 1000)
        return json_answer({"keys": [body(key) for topic in topics for key in keyring.given(topic, now_ms)]})

    return [keys]


def body(key: TopicKey) -> dict[str, object]:
    return {"topic": key.topic, "id": key.id, "key": write_base64(key.key), "from": key.from_ms, "until": key.until_ms}

"""Revoking over HTTP: from now on, a subject's tokens, one token, or what tokens granted on topics."""

from typing import Any

import msgspec
from litestar import Request, post
from litestar.handlers import HTTPRouteHandler
from litestar.response import Response

from relay.answers import json_answer
from relay.denial import Denial
from relay.endpoints import described
from relay.endpoints.publish import decode, read_json
from relay.errors import Unprocessable
from relay.guard import Guard
from relay.records import Records

BODY_BYTES_MAX = 8192


class Revocation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to deny, or with `undo` no longer to deny."""

    sub: str = ""
    jti: str = ""
    topic: str = ""
    undo: bool = False


REVOCATION = msgspec.json.Decoder(Revocation)


def revoke_handlers(guard: Guard, records: Records, body_s: float) -> list[HTTPRouteHandler]:
    @post("/stream/revoke", operation_class=described.REVOKE, status_code=200)
    async def revoke(request: Request[Any, Any, Any]) -> Response[bytes]:
        await guard.may_revoke(request.scope)
        body = decode(REVOCATION, await read_json(request, BODY_BYTES_MAX, body_s))
        denial = Denial(body.sub, body.jti, body.topic)
        if mistake := denial.mistake():
            raise Unprocessable(mistake)
        if body.undo:
            await records.undo(denial)
            return json_answer({"undone": denial})
        return json_answer({"denied": denial, "issued_until": await records.deny(denial)})

    return [revoke]

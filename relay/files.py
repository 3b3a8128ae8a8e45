"""Files as answers: read once, at the start, and told apart by a hash of their content.

How long they are kept is short, since a page and the relay it talks to should be of one version; after that the ETag saves
sending them again.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.spec import Operation
from litestar.response import Response

from relay.answers import is_known
from relay.coding import Coding
from relay.guard import header
from relay.openapi import ANYBODY, header_of, operation

CACHE_CONTROL = "public, max-age=300"
JAVASCRIPT = "text/javascript"  # Litestar adds the charset to what begins with text/
# A program of any origin may load a library: it holds nothing of anybody, and a module script is fetched without cookies.
LIBRARY = {
    "access-control-allow-origin": "*",
    "cross-origin-resource-policy": "cross-origin",  # else pages that isolate themselves (COEP) couldn't load it
}


def file_handler(
    path: str,
    source: Path,
    media_type: str,
    headers: dict[str, str],
    choose_coding: Callable[[str], Coding],
    operation_class: type[Operation] | None = None,
) -> HTTPRouteHandler:
    """Serves a file at a path. Without `operation_class` the OpenAPI document doesn't have it."""
    content = source.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:20]

    @cache
    def packed(coding: Coding) -> bytes:
        return coding.pack(content)

    async def serve(request: Request[Any, Any, Any]) -> Response[bytes]:
        coding = choose_coding(header(request.scope, b"accept-encoding"))
        tag = f'"{digest}-{coding.name or "identity"}"'
        sent = {"etag": tag, "vary": "Origin, Accept-Encoding", "cache-control": CACHE_CONTROL, **headers}
        if is_known(header(request.scope, b"if-none-match"), tag):
            return Response(b"", status_code=304, headers=sent)
        if coding.name:
            sent["content-encoding"] = coding.name
        return Response(packed(coding), media_type=media_type, headers=sent)

    if operation_class is None:
        return get(path, include_in_schema=False)(serve)
    return get(path, operation_class=operation_class)(serve)


def library(operation_id: str, summary: str, description: str, media_type: str, example: str) -> type[Operation]:
    """How a file that any page may load is described."""
    headers = {
        "ETag": header_of("Send it as `If-None-Match`."),
        "Cache-Control": header_of("Kept for minutes.", {"type": "string", "pattern": "^public, max-age="}),
    }
    return operation(
        operation_id,
        summary,
        f"{description} Pages of any origin may load it, and anybody may keep it.",
        tag="service",
        responses={
            "200": {
                "description": "The file.",
                "headers": {**headers, "Access-Control-Allow-Origin": header_of("Any origin.", {"const": "*"})},
                "content": {f"{media_type}; charset=utf-8": {"schema": {"type": "string"}, "example": example}},
            },
            "304": {"description": "It is what this `ETag` names.", "headers": headers},
        },
        security=ANYBODY,
    )

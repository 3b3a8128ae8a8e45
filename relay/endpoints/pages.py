"""The files that browsers load from the relay: its clients.

They are read once, at the start. A program of any origin may load them, as it may any library: they hold nothing of
anybody, and a module script is fetched without cookies. How long they are kept is short, since a page and the relay it
talks to should be of one version; after that the ETag saves sending them again.
"""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.spec import Operation
from litestar.response import Response

import relay
from relay.answers import is_known
from relay.endpoints import described
from relay.guard import header

ROOT = Path(relay.__file__).parent.parent
CACHE_CONTROL = "public, max-age=300"


class StaticFile(msgspec.Struct, frozen=True):
    path: str  # of the request
    source: str  # in the packages
    media_type: str
    operation: type[Operation]


FILES = [
    StaticFile("/stream/client.js", "relay/static/client.js", described.JAVASCRIPT, described.CLIENT),
    StaticFile("/stream/client.d.ts", "relay/static/client.d.ts", described.TYPESCRIPT, described.CLIENT_TYPES),
]


def page_handlers() -> list[HTTPRouteHandler]:
    return [file_handler(file) for file in FILES]


def file_handler(file: StaticFile) -> HTTPRouteHandler:
    content = (ROOT / file.source).read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
    headers = {
        "etag": tag,
        "cache-control": CACHE_CONTROL,
        "access-control-allow-origin": "*",
        "cross-origin-resource-policy": "cross-origin",  # else pages that isolate themselves (COEP) couldn't load it
    }

    @get(file.path, operation_class=file.operation)
    async def serve(request: Request[Any, Any, Any]) -> Response[bytes]:
        if is_known(header(request.scope, b"if-none-match"), tag):
            return Response(b"", status_code=304, headers=headers)
        return Response(content, media_type=file.media_type, headers=headers)

    return serve

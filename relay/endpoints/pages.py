"""The client for browsers, and its types."""

from pathlib import Path

from litestar.handlers import HTTPRouteHandler

import relay
from relay.endpoints import described
from relay.files import JAVASCRIPT, LIBRARY, file_handler

STATIC = Path(relay.__file__).parent / "static"


def page_handlers() -> list[HTTPRouteHandler]:
    return [
        file_handler("/stream/client.js", STATIC / "client.js", JAVASCRIPT, LIBRARY, described.CLIENT),
        file_handler("/stream/client.d.ts", STATIC / "client.d.ts", described.TYPESCRIPT, LIBRARY, described.CLIENT_TYPES),
    ]

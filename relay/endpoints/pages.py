"""The client for browsers, its types, and the demo and debugger page at `/`, where that is on.

The page may load nothing but its own files, and may be framed by nobody: it holds a token. It asks each time whether they are
the newest, so that page and client are of one version.
"""

from collections.abc import Callable
from pathlib import Path

from litestar.handlers import HTTPRouteHandler

import relay
from relay.coding import Coding
from relay.endpoints import described
from relay.files import JAVASCRIPT, LIBRARY, file_handler

STATIC = Path(relay.__file__).parent / "static"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
PAGE = {"cache-control": "no-cache", "content-security-policy": POLICY}
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": JAVASCRIPT, ".svg": "image/svg+xml"}


def page_handlers(demo_page: bool, choose_coding: Callable[[str], Coding]) -> list[HTTPRouteHandler]:
    return [
        file_handler("/stream/client.js", STATIC / "client.js", JAVASCRIPT, LIBRARY, choose_coding, described.CLIENT),
        file_handler("/stream/client.d.ts", STATIC / "client.d.ts", described.TYPESCRIPT, LIBRARY, choose_coding, described.CLIENT_TYPES),
        *(demo_handlers(choose_coding) if demo_page else ()),
    ]


def demo_handlers(choose_coding: Callable[[str], Coding]) -> list[HTTPRouteHandler]:
    return [
        file_handler("/" if path.name == "index.html" else f"/page/{path.name}", path, MEDIA_TYPES[path.suffix], PAGE, choose_coding)
        for path in sorted((STATIC / "page").iterdir())
    ]

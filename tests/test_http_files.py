"""The files for browsers: of the right type, for any origin, and not sent twice."""

import hashlib
from pathlib import Path

import httpx
import pytest

from fallback.app import create_app
from tests.asking import Asker
from tests.servers import SECRET

ROOT = Path(__file__).parent.parent
FILES = {
    "/stream/client.js": ("relay/static/client.js", "text/javascript; charset=utf-8"),
    "/stream/client.d.ts": ("relay/static/client.d.ts", "text/typescript; charset=utf-8"),
    "/stream/poller.js": ("fallback/static/poller.js", "text/javascript; charset=utf-8"),
}


def get(asker: Asker, path: str, **headers: str) -> httpx.Response:
    return asker.get(path, headers=headers)


@pytest.mark.parametrize("path", FILES)
def test_a_file_is_served_to_anybody(asker: Asker, path: str) -> None:
    source, media_type = FILES[path]
    answer = get(asker, path, origin="https://elsewhere.example")
    assert answer.status_code == 200
    assert answer.content == (ROOT / source).read_bytes()
    assert answer.headers["content-type"] == media_type
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"


@pytest.mark.parametrize("path", FILES)
def test_a_file_that_is_known_is_not_sent_again(asker: Asker, path: str) -> None:
    first = get(asker, path)
    assert first.headers["cache-control"].startswith("public, max-age=")
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"another", {tag}'):
        again = get(asker, path, **{"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    for other in ('"another"', hashlib.sha256(b"").hexdigest()):
        assert get(asker, path, **{"if-none-match": other}).status_code == 200


@pytest.mark.anyio
async def test_the_polling_function_serves_the_poller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_JWT_SECRET", SECRET)
    monkeypatch.setenv("RELAY_VALKEY_URL", "valkey://127.0.0.1:1/0")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=create_app()), base_url="http://function") as client:
        answer = await client.get("/stream/poller.js")
    assert answer.content == (ROOT / "fallback/static/poller.js").read_bytes()

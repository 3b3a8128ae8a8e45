"""The files for browsers: of the right type, for any origin, and not sent twice."""

import hashlib
from pathlib import Path

import httpx
import pytest

import relay as relay_package
from tests.asking import Asker

STATIC = Path(relay_package.__file__).parent / "static"
FILES = {"/stream/client.js": "text/javascript; charset=utf-8", "/stream/client.d.ts": "text/typescript; charset=utf-8"}


def get(asker: Asker, path: str, **headers: str) -> httpx.Response:
    return asker.get(path, headers=headers)


@pytest.mark.parametrize(("path", "media_type"), FILES.items(), ids=list(FILES))
def test_a_file_is_served_to_anybody(asker: Asker, path: str, media_type: str) -> None:
    answer = get(asker, path, origin="https://elsewhere.example")
    assert answer.status_code == 200
    assert answer.content == (STATIC / path.rpartition("/")[2]).read_bytes()
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

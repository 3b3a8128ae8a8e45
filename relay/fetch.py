"""One GET of a document, as long as it may be and no longer. For what the operator has named: redirects are not followed.

The time it may take is the caller's to limit, since it may be shared with other waits.
"""

import ssl
from functools import cache

import certifi
import httpx

# Not compressed: a few bytes could unfold to any number.
HEADERS = {"accept": "application/json", "accept-encoding": "identity"}


class FetchError(Exception):
    """Why there is no document. Names no URL, which may hold a password."""


@cache
def tls() -> ssl.SSLContext:
    """Trusts what browsers do, and what the system, or SSL_CERT_FILE, says beside. The first time it takes some 50 ms."""
    context = ssl.create_default_context(cafile=certifi.where())
    context.load_default_certs()
    return context


async def fetch(client: httpx.AsyncClient, url: httpx.URL, most_bytes: int) -> bytes:
    """The body of a 200. Raises FetchError, TimeoutError."""
    body = bytearray()
    try:
        async with client.stream("GET", url, headers=HEADERS, follow_redirects=False, timeout=None) as answer:
            if answer.status_code != 200:
                raise FetchError(f"it answers {answer.status_code}")
            async for piece in answer.aiter_raw():
                body += piece
                if len(body) > most_bytes:
                    raise FetchError(f"it answers more than {most_bytes} bytes")
    except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
        raise FetchError(type(error).__name__) from error
    return bytes(body)

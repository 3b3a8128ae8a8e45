"""Requests to upstreams, which go no further than their source allows.

A source's URL, and a name that an upstream's owner resolves as he likes, must not open what the relay alone can reach
(server-side request forgery). So names are resolved here, addresses that are not public are dropped unless the source says
`private = true`, and the connection goes to the address that was checked, never to the name again. A redirect is followed on the
same host alone, where the source's headers belong. Proxies and cookies aren't used; answers have a bound, packed ones too.
"""

import asyncio
import ipaddress
import re
import socket
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

import relay
from relay.fetch import tls
from relay.updates.addresses import is_public
from relay.updates.feed import ANSWER_BYTES_MAX, FeedError
from relay.updates.sources import Source

PORTS = {"http": 80, "https": 443}
CONNECT_S = 5.0
ADDRESSES_MAX = 4  # of a host that are tried
REDIRECTS_MAX = 3
RETRY_AFTER_MAX_S = 3600.0
GZIP = 16 + zlib.MAX_WBITS


@asynccontextmanager
async def open_client(source: Source) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"user-agent": f"edge-relay/{relay.__version__}", **dict(source.headers)}
    timeout = httpx.Timeout(source.timeout_ms / 1000, connect=CONNECT_S)
    trusted = await asyncio.to_thread(tls)  # some 50 ms, the first time
    async with httpx.AsyncClient(headers=headers, timeout=timeout, trust_env=False, verify=trusted) as client:
        yield client


@asynccontextmanager
async def answer_of(client: httpx.AsyncClient, source: Source, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
    """The answer of the source's URL, or of where it is redirected to, its body unread. Raises FeedError."""
    url = httpx.URL(source.url)
    try:
        for _ in range(REDIRECTS_MAX + 1):
            response = await send(client, url, headers, private=source.private)
            try:
                if not response.has_redirect_location:
                    yield response
                    return
                url = redirected(url, response.headers["location"])
            finally:
                await response.aclose()
    except httpx.TimeoutException as error:
        raise FeedError(f"is slow: {type(error).__name__}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise FeedError(f"can't be read: {error or type(error).__name__}") from error
    raise FeedError(f"redirects more than {REDIRECTS_MAX} times")


async def send(client: httpx.AsyncClient, url: httpx.URL, headers: dict[str, str], *, private: bool) -> httpx.Response:
    """A request to one of the host's addresses: the first that takes a connection."""
    name = url.raw_host.decode()
    extensions = {} if is_address(name) else {"sni_hostname": name}
    failure: httpx.HTTPError | None = None
    client.cookies.clear()
    for address in await allowed_addresses(name, url.port or PORTS[url.scheme], private=private):
        own = {**headers, "host": url.netloc.decode()}
        request = client.build_request("GET", url.copy_with(host=address), headers=own, extensions=extensions)
        try:
            return await client.send(request, stream=True, follow_redirects=False)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            failure = error
    assert failure
    raise failure


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def allowed_addresses(name: str, port: int, *, private: bool) -> list[str]:
    """Raises FeedError where there is none."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise FeedError(f"has no address: {error}") from error
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    allowed = [address for address in addresses if "%" not in address and (private or is_public(address))]
    if not allowed:
        raise FeedError(f"is at {', '.join(addresses[:3])}, an address of a private network: only private = true allows that")
    return allowed[:ADDRESSES_MAX]


def redirected(url: httpx.URL, location: str) -> httpx.URL:
    """Where a redirect leads. Raises FeedError if that is another host, or one that is less safe."""
    try:
        target = url.join(location)
    except httpx.InvalidURL as error:
        raise FeedError("redirects to what is no URL") from error
    same = (target.scheme, target.raw_host, target.port) == (url.scheme, url.raw_host, url.port)
    safer = (url.scheme, url.port, target.scheme, target.port) == ("http", None, "https", None) and target.raw_host == url.raw_host
    if not same and not safer:
        raise FeedError(f"redirects to elsewhere, {target.scheme}://{target.netloc.decode()[:200]}: set url to that, if it is right")
    return target


def check_status(response: httpx.Response) -> None:
    """Raises FeedError for all but a 200."""
    if response.status_code == 200:
        return
    asked = response.headers.get("retry-after", "")
    wait_s = min(float(asked), RETRY_AFTER_MAX_S) if re.fullmatch(r"[0-9]{1,9}", asked) else None
    raise FeedError(f"answers {response.status_code}", wait_s)


async def read_body(response: httpx.Response) -> bytes:
    """Raises FeedError if it is larger than we take, packed or not."""
    packing = response.headers.get("content-encoding", "identity").strip().lower()
    if packing not in ("identity", "", "gzip", "x-gzip"):
        raise FeedError(f"answers with the Content-Encoding {packing[:80]!r}, which it wasn't asked for")
    unpacker = zlib.decompressobj(GZIP) if "gzip" in packing else None
    body = bytearray()
    try:
        async for piece in response.aiter_raw():
            # One byte more than there may be, so that it shows; never all of what a small piece may hold.
            body += unpacker.decompress(piece, ANSWER_BYTES_MAX + 1 - len(body)) if unpacker else piece
            if len(body) > ANSWER_BYTES_MAX:
                raise FeedError(f"answers more than {ANSWER_BYTES_MAX >> 20} MiB")
    except zlib.error as error:
        raise FeedError(f"answers gzip that is none: {error}") from error
    if unpacker and body and not unpacker.eof:
        raise FeedError("answers gzip that ends in the middle")
    return bytes(body)

"""`relay demo`: the whole relay with nothing to configure, and made-up roulette numbers to look at."""

import argparse
import asyncio
import random
import secrets
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from os import environ
from shlex import quote
from shutil import which

from relay.errors import LogUnavailable
from relay.logs import set_up_logs
from relay.publishing import Publisher
from relay.server import serve
from relay.settings import Settings, read_settings
from relay.terminal import make_token

TOPIC = "rounds/ROULETTE/123"
SPIN_S = 2.0
DAY_S = 86400
RED = frozenset({1, 3, 5, 7, 9, 12, 14, 16, 18, 19, 21, 23, 25, 27, 30, 32, 34, 36})


def demo() -> None:
    """Until a signal ends it. Binds 127.0.0.1 alone, with a secret of its own and data that end with it."""
    for name in ("RELAY_VALKEY_URL", "RELAY_JWT_PUBLIC_KEY_FILE"):  # made-up events don't belong into a log that is in use
        environ.pop(name, None)
    environ.setdefault("RELAY_JWT_SECRET", secrets.token_urlsafe(48))
    environ.setdefault("SSE_ENCRYPTION_KEY", secrets.token_urlsafe(48))
    environ["RELAY_HOST"] = "127.0.0.1"
    environ.setdefault("RELAY_DEMO_PAGE", "1")
    if not environ.get("RELAY_PORT") and not environ.get("PORT"):
        environ["RELAY_PORT"] = str(free_port(8080))
    with tempfile.TemporaryDirectory(prefix="edge-relay-demo-") as directory:
        environ["RELAY_DATA_DIR"] = directory
        settings = read_settings()
        set_up_logs(settings.log_format)
        print(introduction(settings), flush=True)
        serve(settings, alongside=made_up_roulette)


def free_port(wanted: int) -> int:
    """The port, if it is free; else one that is."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def introduction(settings: Settings) -> str:
    reader = token(settings, sub="demo-reader", subscribe=["**"])
    publisher = token(settings, sub="demo-publisher", publish=["**"])
    url = f"http://127.0.0.1:{settings.port}"
    return f"""Edge Relay demo: made-up roulette numbers on {TOPIC}, one each {SPIN_S:g} s. Open this in a browser:
  {url}/#token={reader}&publisher={publisher}

A subscriber's token, good for a day:
  TOKEN={reader}

A live stream, the newest three events first:
  curl -N -H "Authorization: Bearer $TOKEN" '{url}/stream/{TOPIC}/v1/live?k=3'

The same as a page; ask again with cursor=<its cursor>:
  curl -H "Authorization: Bearer $TOKEN" '{url}/stream/{TOPIC}/v1/poll?k=3'

Publish an event of your own (a publisher's token):
  curl -H "Authorization: Bearer {publisher}" -H 'Content-Type: application/json' \\
       -d '{{"event":"update","data":{{"hello":"world"}}}}' '{url}/stream/{TOPIC}'

In the terminal:
  RELAY_DATA_DIR={settings.data_dir} {command()} tail {TOPIC}

Ctrl-C ends it.
"""


def command() -> str:
    """How to call `relay` from a shell that may not have it on its path."""
    return "relay" if which("relay") else f"{quote(sys.executable)} -m relay"


def token(settings: Settings, *, sub: str, subscribe: list[str] | None = None, publish: list[str] | None = None) -> str:
    options = argparse.Namespace(sub=sub, subscribe=subscribe or [], publish=publish or [], admin=[], inactive=False, ttl=DAY_S)
    return make_token(options, settings)


@contextmanager
def made_up_roulette() -> Iterator[None]:
    """Publishes a number now and then, from a thread of the launcher."""
    ended = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(spin(ended)), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(SPIN_S)


async def spin(ended: threading.Event) -> None:
    async with Publisher() as publisher:
        while not ended.is_set():
            try:
                await publisher.publish(TOPIC, spun(random.randrange(37)))
            except LogUnavailable:
                pass  # a made-up number more or less
            await asyncio.to_thread(ended.wait, SPIN_S)


def spun(number: int) -> dict[str, object]:
    color = "green" if not number else "red" if number in RED else "black"
    return {"update_type": "new_number", "number": {"value": number, "color": color}}

"""`relay demo`: the whole relay with nothing to configure: from a made-up provider by the update job into the log, and to readers."""

import argparse
import secrets
import socket
import sys
from os import environ
from shlex import quote
from shutil import which

from relay.logs import set_up_logs
from relay.roulette import SPIN_S, TABLE, made_up_provider
from relay.server import serve, temporary_directory
from relay.settings import Settings, read_settings
from relay.terminal import make_token

TOPIC = f"rounds/ROULETTE/{TABLE}"
DAY_S = 86400
DATA_PREFIX = "edge-relay-demo-"
SOURCE = """\
[[source]]
name = "made-up-roulette"
kind = "http"
url = "{url}"
private = true
items = "/spins"
key = "/id"
topic = "rounds/ROULETTE/{{/table}}"
data = "/update"
interval_ms = 500
"""


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
    with temporary_directory(DATA_PREFIX) as directory, made_up_provider() as provider:
        sources = directory / "sources.toml"
        sources.write_text(SOURCE.format(url=provider))
        environ["RELAY_SOURCES"] = str(sources)
        environ["RELAY_DATA_DIR"] = str(directory)
        settings = read_settings()
        set_up_logs(settings.log_format)
        print(introduction(settings, provider), flush=True)
        serve(settings)


def free_port(wanted: int) -> int:
    """The port, if it is free; else one that is."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def introduction(settings: Settings, provider: str) -> str:
    reader = token(settings, sub="demo-reader", subscribe=["**"])
    publisher = token(settings, sub="demo-publisher", publish=["**"])
    url = f"http://127.0.0.1:{settings.port}"
    return f"""Edge Relay demo: made-up roulette numbers on {TOPIC}, one each {SPIN_S:g} s. Open this in a browser:
  {url}/#token={reader}&publisher={publisher}
Its upstream, which the update job watches as {settings.sources} says, is a made-up provider: {provider}

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

"""`client.js` behind a proxy that nobody set up for streams: nginx with its defaults, and deaf to the relay's word against them."""

import os
import pwd
import signal
import string
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.asking import Asker
from tests.browser.conftest import OpenTab
from tests.infra.nginx import program
from tests.servers import Relay, free_port, stop, topic, wait_until_listening
from tests.waiting import LIMIT_S, wait_for

pytestmark = pytest.mark.anyio

CONF = Path(__file__).with_name("nginx.conf")
BUFFERS = "proxy_ignore_headers X-Accel-Buffering;"
# When streams are looked at again is known to the page, for all of its streams.
SOON = {"probeMs": 500, "probeMaxMs": 1000, "helloMs": 1000}
# Streams and answers that wait have no time; others have all that a busy machine takes.
SHORT = """
    error_page 418 = @short;
    if ($request_uri ~ "/live|[?&]wait=") { return 418; }
"""
SHORT_LOCATION = """
    location @short {
        proxy_pass %s;
        proxy_set_header Host $http_host;
        proxy_ignore_headers X-Accel-Buffering;
        proxy_read_timeout 1s;
    }
"""
PATIENT_MS = 30_000
MORE = """
limits => {
  window.ways = [];
  window.more = new client.RelayStream({topics: ['a/b/c'], token: '', share: false, limits});
  more.addEventListener('state', event => ways.push(event.detail.transport));
}
"""


class Nginx:
    def __init__(self, folder: Path, relay: Relay) -> None:
        self.folder, self.relay, self.port = folder, relay, free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def write(self, more: str, beside: str = "") -> None:
        user = f"user {pwd.getpwuid(0).pw_name};" if os.getuid() == 0 else ""
        conf = string.Template(CONF.read_text()).substitute(
            folder=self.folder, user=user, port=self.port, relay=self.relay.url, more=more, beside=beside
        )
        (self.folder / "nginx.conf").write_text(conf)

    def change(self, more: str) -> None:
        self.write(more)
        self.process.send_signal(signal.SIGHUP)

    @contextmanager
    def run(self, more: str, beside: str = "") -> Iterator["Nginx"]:
        self.write(more, beside)
        command = [program(), "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until_listening(self.port, self.process)
            yield self
        finally:
            stop(self.process, signal.SIGTERM)


@pytest.fixture
def nginx(tmp_path: Path, relay: Relay) -> Nginx:
    return Nginx(tmp_path, relay)


async def test_behind_a_proxy_that_buffers_events_come_by_polls_and_over_a_stream_once_it_lets_one_through(
    open_tab: OpenTab, nginx: Nginx, asker: Asker
) -> None:
    own = topic()
    asker.publish(own, 1)
    with nginx.run(BUFFERS):
        tab = await open_tab(nginx.url, [own], k=1, limits=SOON)
        await tab.is_open("long-poll")
        assert "no hello" in await tab.get("stream.reason")
        asker.publish(own, 2, 3)
        await tab.has([1, 2, 3])
        # The page knows by now: another stream doesn't try in vain.
        await tab.page.evaluate(MORE, SOON)
        await tab.until("more.state === 'ended'")
        assert set(await tab.get("ways")) == {"long-poll"}
        nginx.change("proxy_buffering off; add_header X-Buffers no always;")
        wait_for("nginx works by that", lambda: "x-buffers" in httpx.get(f"{nginx.url}/healthz", timeout=LIMIT_S).headers)
        # What comes late from now on isn't held back.
        await tab.get(f"(stream._reading.limits.helloMs = {PATIENT_MS}, 0)")
        await tab.is_open("sse")
        asker.publish(own, 4)
        await tab.has([1, 2, 3, 4])
        await tab.get("stream.close()")  # else nginx waits for it


async def test_behind_a_proxy_with_its_defaults_the_relay_s_own_word_is_enough(open_tab: OpenTab, nginx: Nginx, asker: Asker) -> None:
    own = topic()
    with nginx.run(""):
        tab = await open_tab(nginx.url, [own])
        await tab.is_open("sse")
        asker.publish(own, 1)
        await tab.has([1])
        await tab.get("stream.close()")


async def test_where_streams_and_waiting_answers_are_cut_off_short_polls_are_left(
    open_tab: OpenTab, nginx: Nginx, relay: Relay, asker: Asker
) -> None:
    own = topic()
    asker.publish(own, 0)
    with nginx.run(SHORT, SHORT_LOCATION % relay.url):
        tab = await open_tab(nginx.url, [own], limits={"helloMs": 500, "heldMs": 800, "backoffMs": 100})
        await tab.is_open("poll")
        assert "cut off" in await tab.get("stream.reason")
        asker.publish(own, 1)
        await tab.has([1])

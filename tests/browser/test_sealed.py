"""Sealed events in the browser: opened over every transport, by a native EventSource too, and refused if they are something else."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.async_api import Route

from tests.asking import Asker, asking
from tests.browser.conftest import OpenTab
from tests.conftest import SHARED_ENV
from tests.servers import Relay, token, topic
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("transport", ["sse", "event-source", "long-poll", "poll"])
async def test_sealed_events_are_opened(open_tab: OpenTab, relay: Relay, asker: Asker, transport: str) -> None:
    own, other = topic(), topic()
    asker.publish(own, {"number": 1})
    for topics in ([own], [own, other]):
        tab = await open_tab(relay.url, topics, version="v2", transport=transport, k=1)
        await tab.has([{"number": 1}])
        assert (await tab.get("all"))[0]["topic"] == own
    asker.publish(other, None)
    await tab.has([{"number": 1}, None])


async def test_large_events_are_inflated_up_to_a_limit(open_tab: OpenTab, relay: Relay, asker: Asker) -> None:
    own, value = topic(), ["red", "black"] * 500
    tab = await open_tab(relay.url, [own], version="v2")
    strict = await open_tab(relay.url, [own], version="v2", share=False, limits={"inflatedBytes": len(json.dumps(value)) // 2})
    for each in (tab, strict):
        await each.is_open()
    asker.publish(own, value)
    await tab.has([value])
    await strict.until("notices.length === 1")
    assert (await strict.get("notices[0]"))[1]["reason"] == "malformed"


async def test_tabs_share_a_sealed_stream_too(open_tab: OpenTab, relay: Relay, asker: Asker) -> None:
    own = topic()
    tabs = [await open_tab(relay.url, [own], version="v2") for _ in range(2)]
    for tab in tabs:
        await tab.until("stream.state === 'open'")
    asker.publish(own, *range(10))
    for tab in tabs:
        await tab.has(list(range(10)))


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    """A relay whose keys last a second."""
    with asking(Relay(tmp_path_factory.mktemp("hasty"), "", SHARED_ENV | {"RELAY_KEY_EPOCH_SECONDS": "1"})) as asker:
        yield asker


async def test_events_of_each_new_key_are_opened(open_tab: OpenTab, hasty: Asker) -> None:
    own = topic()
    url = str(hasty.client.base_url).rstrip("/")
    tab = await open_tab(url, [own], version="v2")
    await tab.is_open()
    opened: list[int] = []
    number = 0
    deadline = time.monotonic() + LIMIT_S
    while opened[-1:] != [number] or len([path for path in tab.asked if path.startswith("/stream/keys?")]) < 3:
        assert time.monotonic() < deadline
        number += 1
        hasty.publish(own, number)
        await tab.until(f"got.length + notices.length === {number}")
        opened, refused = await tab.get("[got, notices.map(([, {n}]) => n)]")
        assert sorted(opened + refused) == list(range(1, number + 1))
    # A page that stands still for longer than a key lasts finds it gone, however often it asks.
    assert {detail["reason"] for _, detail in await tab.get("notices")} <= {"unknown_key"}


PATTERN = """
async ([path, url, token]) => {
  const { decryptData, openWith } = await import(path);
  window.got = []; window.notices = []; window.states = [];
  openWith({ url, token });
  const source = new EventSource(`${url}&token=${token}`);
  source.addEventListener("update", async (event) => { const data = await decryptData(event.data); got.push(data); });
}
"""


async def test_a_native_event_source_opens_its_events_with_one_function(open_tab: OpenTab, relay: Relay, asker: Asker) -> None:
    own, other = topic(), topic()
    for path in (f"/stream/{own}/v2/live?k=100", f"/stream/v2/live?topic={own}&topic={other}&k=100"):
        tab = await open_tab(relay.url)
        asker.publish(own, *range(5))
        already = len(asker.log(own))
        await tab.page.evaluate(PATTERN, [f"{relay.url}/stream/client.js", relay.url + path, token()])
        await tab.until(f"got.length >= {already}")
        asker.publish(own, "last")
        await tab.until("got[got.length - 1] === 'last'")
        assert await tab.get("got") == asker.log(own)


async def test_what_is_not_what_was_asked_for_is_refused_and_told(open_tab: OpenTab, relay: Relay, asker: Asker) -> None:
    """Somebody between answers with events that the relay did seal: of another topic, of another place, and an old one again."""
    own, other = topic(), topic()
    asker.publish(own, "old")
    asker.publish(other, "foreign")
    asker.publish(own, "new")
    old, new = asker.page(f"/stream/{own}/v2/poll?cursor=earliest")["events"]
    (foreign,) = asker.page(f"/stream/{other}/v2/poll?cursor=earliest")["events"]
    page = asker.page(f"/stream/{own}/v2/poll?cursor=earliest")
    forged: list[dict[str, Any]] = [
        {**foreign, "topic": own},
        {**new, "data": old["data"]},
        {**old, "data": old["data"][:-4] + "AAAA"},
        new,
        old,
        new,
    ]

    async def forge(route: Route) -> None:
        await route.fulfill(json=page | {"events": forged})

    tab = await open_tab(relay.url)
    await tab.page.route(re.compile(r"/poll\?"), forge)
    await tab.start([own], version="v2", transport="poll", limits={"backoffMs": 10})
    await tab.until("notices.length >= 4")
    told = [(name, detail["reason"]) for name, detail in json.loads(await tab.get("JSON.stringify(notices)"))]
    assert await tab.get("got") == ["new"]
    assert told[:4] == [("refused", reason) for reason in ("unknown_key", "other_id", "forged", "old_id")]


async def test_an_event_of_another_topic_that_is_read_too_is_refused(open_tab: OpenTab, relay: Relay, asker: Asker) -> None:
    own, other = topic(), topic()
    asker.publish(own, 1)
    asker.publish(other, 2)
    query = f"topic={own}&topic={other}"
    page = asker.page(f"/stream/v2/poll?{query}&cursor=earliest")
    one, two = page["events"]

    async def forge(route: Route) -> None:
        await route.fulfill(json=page | {"events": [{**two, "topic": own}, {**one, "n": 7}, one]})

    tab = await open_tab(relay.url)
    await tab.page.route(re.compile(r"/poll\?"), forge)
    await tab.start([own, other], version="v2", transport="poll")
    await tab.until("got.length === 1")
    # It comes with each page, the next of which the tab may have asked for by now.
    told = await tab.get("notices.map(([name, {reason}]) => reason)")
    assert told[:2] == ["other_topic", "other_n"]
    assert await tab.get("got") == [1]

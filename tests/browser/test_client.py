"""`client.js` in a browser, against relays behind nothing: what it needs of the browser, and what may break."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.asking import Asker
from tests.browser.conftest import OpenTab
from tests.conftest import SHARED_ENV
from tests.servers import Relay, Valkey, token, topic

pytestmark = pytest.mark.anyio

NO_STREAMS = ("window.ReadableStream",)
SOON = {"limits": {"backoffMs": 200}}
LIFE_S, RENEWED_S = 3600, 3  # of a token, and how long after it was made it is in the last fifth of its time


@pytest.fixture
def mortal(tmp_path: Path, valkey: Valkey) -> Iterator[Relay]:
    """A relay that a test may kill. When it is told to stop it has the time for it, also on a busy machine."""
    process = Relay(tmp_path, valkey.url, {**SHARED_ENV, "RELAY_DRAIN_SECONDS": "10"})
    try:
        yield process.start()
    finally:
        process.kill()


async def test_events_come_over_sse_with_the_token_in_a_header(open_tab: OpenTab, relay: Relay, asker: Asker) -> None:
    own = topic()
    asker.publish(own, 1, 2, 3)
    tab = await open_tab(relay.url)
    await tab.start([own], k=2)
    await tab.is_open()
    await tab.has([2, 3])
    (id,) = asker.publish(own, {"number": 25})
    await tab.has([2, 3, {"number": 25}])
    assert await tab.get("stream.cursor") == id
    assert f"/stream/{own}/v1/live?k=2" in tab.asked
    assert not any("token" in path for path in tab.asked)


async def test_an_event_has_its_topic_id_number_and_time(open_tab: OpenTab, relay: Relay, asker: Asker) -> None:
    own, other = topic(), topic()
    began_ms = int(time.time() * 1000)
    ids = [id for here in (own, other) for id in asker.publish(here, {"of": here})]
    tab = await open_tab(relay.url)
    for topics, transport in [
        ([own], "sse"),
        ([own], "event-source"),  # which hears the default name, whatever the others are
        ([own], "poll"),
        ([own, other], "sse"),
        ([own, other], "poll"),
    ]:
        await tab.start(topics, cursor="earliest", transport=transport, name="event")
        await tab.until(f"all.length === {len(topics)}")
        for here, id, event in zip(topics, ids, await tab.get("all"), strict=False):
            assert began_ms <= event.pop("ts") <= time.time() * 1000
            n = int(id.split(".")[2].partition("-")[0])
            assert event == {"topic": here, "id": id, "name": "update", "n": n, "data": {"of": here}}
        await tab.get("stream.close()")


@pytest.mark.parametrize(
    ("without", "transport"), [(NO_STREAMS, "event-source"), ((*NO_STREAMS, "window.EventSource"), "long-poll")], ids=["fetch", "both"]
)
async def test_in_a_browser_that_cannot_stream_so_events_come_in_another_way(
    open_tab: OpenTab, relay: Relay, asker: Asker, without: tuple[str, ...], transport: str
) -> None:
    own = topic()
    asker.publish(own, 1, 2)
    tab = await open_tab(relay.url, [own], without=without, k=1)
    await tab.is_open(transport)
    asker.publish(own, 3, 4)
    await tab.has([2, 3, 4])
    await tab.get("stream.reconnect()")
    asker.publish(own, 5)
    await tab.has([2, 3, 4, 5])


async def test_an_option_that_is_undefined_counts_as_absent(open_tab: OpenTab, relay: Relay, asker: Asker) -> None:
    own = topic()
    asker.publish(own, 1)
    tab = await open_tab(relay.url, [own])
    await tab.is_open()
    url = f"{relay.url}/stream/{own}/v1/live?k=1&token={token()}"
    options = f"{{url: {url!r}, token: undefined, version: undefined, k: undefined, share: false}}"
    await tab.get(f"(window.second = new client.RelayStream({options}), second.addEventListener('update', e => got.push(e.data)), 0)")
    await tab.has([1])


async def test_an_event_source_has_a_ticket_in_its_url_and_never_the_token(open_tab: OpenTab, relay: Relay, asker: Asker) -> None:
    own = topic()
    tab = await open_tab(relay.url, [own], without=NO_STREAMS)
    await tab.is_open("event-source")
    await tab.get("stream.reconnect()")
    asker.publish(own, 1)
    await tab.has([1])
    given = [parse_qs(urlsplit(path).query)["token"][0] for path in tab.asked if "/live" in path]
    assert len(given) >= 2
    assert all(re.fullmatch(r"[\w-]{43}", one) for one in given), "256 random bits, and no JWT"
    assert tab.asked.count("/stream/ticket") >= 1


async def test_an_event_source_hears_names_that_are_listened_for_later(open_tab: OpenTab, relay: Relay, asker: Asker) -> None:
    own = topic()
    tab = await open_tab(relay.url, [own], without=NO_STREAMS)
    await tab.is_open("event-source")
    await tab.get("(window.ends = [], stream.addEventListener('closed', event => ends.push(event.data)), 0)")
    asker.post(f"/stream/{own}", {"event": "closed", "data": 1})
    await tab.until("ends.length === 1")


async def test_an_event_source_that_is_refused_finds_out_why(open_tab: OpenTab, relay: Relay) -> None:
    tab = await open_tab(relay.url, [topic()], without=NO_STREAMS, token=token(subscribe=[]))
    await tab.until("notices.length === 1")
    assert await tab.get("notices[0][1].reason") == "topic_not_granted"


async def test_without_webcrypto_open_events_come_and_sealed_ones_are_told_to_be_impossible(
    open_tab: OpenTab, relay: Relay, asker: Asker
) -> None:
    own = topic()
    asker.publish(own, 1)
    tab = await open_tab(relay.url, [own], without=("window.crypto",), k=1)
    await tab.is_open()
    await tab.has([1])
    await tab.start([own], version="v2")
    await tab.until("notices.length === 1")
    assert await tab.get("[notices[0][0], notices[0][1].reason, stream.state]") == ["end", "no_webcrypto", "ended"]


@pytest.mark.slow  # a relay starts three times
async def test_nothing_is_lost_or_repeated_when_the_relay_is_killed_or_stops(open_tab: OpenTab, mortal: Relay, asker: Asker) -> None:
    """One that stops says so, and its word on when to come back is kept."""
    own = topic()
    tabs = [await open_tab(mortal.url, [own], without=without, **SOON) for without in ((), NO_STREAMS)]
    for tab, transport in zip(tabs, ("sse", "event-source"), strict=True):
        await tab.is_open(transport)
    asker.publish(own, 1, 2)
    for tab in tabs:
        await tab.has([1, 2])
    mortal.kill()
    for tab in tabs:
        await tab.until("stream.state === 'waiting'")
    asker.publish(own, 3, 4)
    mortal.start()
    asker.publish(own, 5)
    for tab, transport in zip(tabs, ("sse", "event-source"), strict=True):
        await tab.has([1, 2, 3, 4, 5])
        await tab.is_open(transport)
    mortal.stop()
    asker.publish(own, 6)
    for tab in tabs:
        await tab.until("states.some(({state, reason}) => state === 'waiting' && reason === 'drain')")
    mortal.start()
    for tab in tabs:
        await tab.has([1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize("transport", ["sse", "long-poll", "poll"])
async def test_nothing_is_lost_or_repeated_when_the_network_goes_away(
    open_tab: OpenTab, relay: Relay, asker: Asker, transport: str
) -> None:
    own = topic()
    asker.publish(own, 0)  # polls of a topic whose rate is known come sooner
    tab = await open_tab(relay.url, [own], transport=transport, **SOON)
    await tab.is_open(transport)
    asker.publish(own, 1)
    await tab.has([1])
    await tab.page.context.set_offline(True)
    asker.publish(own, 2, 3)
    await tab.get("stream.reconnect()")
    await tab.until("stream.state === 'waiting'")
    await tab.page.context.set_offline(False)
    asker.publish(own, 4)
    await tab.has([1, 2, 3, 4])


async def test_the_cursor_is_carried_over_all_transports(open_tab: OpenTab, relay: Relay, asker: Asker) -> None:
    own, other = topic(), topic()
    tab = await open_tab(relay.url)
    cursor = "earliest"
    for number, transport in enumerate(["sse", "poll", "event-source", "long-poll", "sse"]):
        asker.publish(own, number)
        asker.publish(other, -number)
        await tab.start([own, other], cursor=cursor, transport=transport)
        await tab.has([number, -number])
        await tab.until("stream.state === 'open'")
        cursor = await tab.get("(stream.close(), stream.cursor)")


async def test_a_silent_connection_is_replaced(open_tab: OpenTab, relay: Relay, asker: Asker) -> None:
    """The shared relay's heartbeat is a second, so a connection is dead long before its first one."""
    own = topic()
    tab = await open_tab(relay.url, [own], limits={"silence": 0.02})
    await tab.until("states.filter(({state}) => state === 'open').length > 1")
    asker.publish(own, 1)
    await tab.has([1])


# Tokens


async def test_a_token_is_renewed_in_the_middle_before_it_ends(open_tab: OpenTab, relay: Relay, asker: Asker) -> None:
    own = topic()
    issued_s = int(time.time() - 5 * (LIFE_S - RENEWED_S) + LIFE_S)
    old = token(ttl_s=LIFE_S, iat=issued_s)  # the relay would let it go on for all of the hour
    tab = await open_tab(relay.url, [own], tokens=[old, token()], limits={"renewMs": LIFE_S * 1000})
    await tab.is_open()
    asker.publish(own, 1)
    await tab.until("asked === 2 && stream.state === 'open'")
    asker.publish(own, 2)
    await tab.has([1, 2])
    assert await tab.get("asked") == 2


async def test_a_token_that_ended_is_renewed_at_the_first_refusal(open_tab: OpenTab, relay: Relay, asker: Asker) -> None:
    own = topic()
    asker.publish(own, 1)
    for transport in ("sse", "event-source", "poll"):
        tab = await open_tab(relay.url, [own], tokens=[token(ttl_s=-60), token()], cursor="earliest", transport=transport)
        await tab.has([1])


async def test_a_token_that_is_refused_after_it_was_renewed_is_the_end(open_tab: OpenTab, relay: Relay) -> None:
    tab = await open_tab(relay.url, [topic()], tokens=[token(secret="another-secret-of-32-bytes-or-more"), "nonsense"])
    await tab.until("notices.length === 1")
    assert await tab.get("[notices[0][0], notices[0][1].status, notices[0][1].reason]") == ["end", 401, "bad_token"]
    assert await tab.get("[asked, stream.state]") == [2, "ended"]


@pytest.mark.parametrize(
    ("given", "status", "reason"),
    [({"status": "inactive"}, 402, "not_subscribed"), ({"subscribe": []}, 403, "topic_not_granted")],
    ids=["402", "403"],
)
async def test_a_final_refusal_is_the_end(open_tab: OpenTab, relay: Relay, given: dict[str, str], status: int, reason: str) -> None:
    for transport in ("sse", "poll"):
        tab = await open_tab(relay.url, [topic()], token=token(**given), transport=transport)  # type: ignore[arg-type]
        await tab.until("notices.length === 1")
        assert await tab.get("[notices[0][0], notices[0][1].status, notices[0][1].reason]") == ["end", status, reason]


async def test_an_application_without_a_token_for_a_moment_is_asked_again(open_tab: OpenTab, relay: Relay, asker: Asker) -> None:
    own = topic()
    asker.publish(own, 1)
    tab = await open_tab(relay.url)
    await tab.get("window.token = null")
    options = {"topics": [own], "cursor": "earliest", "limits": {"backoffMs": 100}}
    script = """
    async ([path, options]) => {
      const { RelayStream } = await import(path);
      window.got = []; window.notices = []; window.states = []; window.tries = 0;
      options.token = async () => { tries++; if (!window.token) throw new Error("not signed in"); return window.token; };
      window.stream = new RelayStream(options);
      stream.addEventListener("update", event => got.push(event.data));
    }
    """
    await tab.page.evaluate(script, [f"{relay.url}/stream/client.js", options])
    await tab.until("tries > 1")
    await tab.get(f"window.token = {token()!r}")
    await tab.has([1])


# Many topics


async def test_topics_that_do_not_fit_a_request_are_split(open_tab: OpenTab, relay: Relay, asker: Asker) -> None:
    topics = [topic() for _ in range(130)]
    tab = await open_tab(relay.url)
    await tab.start(topics, k=1, share=False)
    await tab.is_open()
    for number, here in enumerate(topics):
        asker.publish(here, number)
    await tab.until("got.length === 130")
    assert sorted(await tab.get("got")) == list(range(130))
    live = [urlsplit(path) for path in tab.asked if "/live?" in path]
    assert {path.query.count("topic=") for path in live} == {100, 30}


# Resets and gaps


async def test_a_lost_log_is_told_as_reset_and_what_is_retained_follows(open_tab: OpenTab, relay: Relay, asker: Asker) -> None:
    own = topic()
    asker.publish(own, 1, 2)
    for transport in ("sse", "poll"):
        tab = await open_tab(relay.url, [own], cursor="other.1795498178580-0.0-ejwv", transport=transport)
        await tab.until("got.length === 2")
        assert await tab.get("notices.map(([name]) => name)") == ["reset", "gap"]
        assert await tab.get("notices[1][1].lost") is None

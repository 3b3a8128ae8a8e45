"""One connection for all tabs of an origin, and what becomes of it when the tab that has it goes."""

from collections.abc import Iterator

import pytest

from tests.asking import Asker, asking
from tests.browser.conftest import OpenTab, Tab
from tests.conftest import SHARED_ENV
from tests.servers import Relay, token, topic
from tests.waiting import wait_for

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    """A fleet of one, with no clients but ours."""
    with asking(Relay(tmp_path_factory.mktemp("quiet"), "", SHARED_ENV)) as asker:
        yield asker


def connections(quiet: Asker) -> int:
    return int(quiet.get("/stream/status").json()["connections"])


def url_of(quiet: Asker) -> str:
    return str(quiet.client.base_url).rstrip("/")


async def open_two(open_tab: OpenTab, quiet: Asker, own: str, **options: object) -> tuple[Tab, Tab]:
    leader = await open_tab(url_of(quiet), [own], **options)
    await leader.is_open()
    follower = await open_tab(url_of(quiet), [own], **options)
    await follower.until("stream.state === 'open' && stream.reason.includes('another tab')")
    return leader, follower


async def test_two_tabs_have_one_connection_and_both_get_every_event_once(open_tab: OpenTab, quiet: Asker) -> None:
    own = topic()
    quiet.publish(own, 1)
    leader, follower = await open_two(open_tab, quiet, own, k=5)
    wait_for("those of earlier tests are gone", lambda: connections(quiet) == 1)
    quiet.publish(own, *range(2, 50))
    for tab in (leader, follower):
        await tab.has(list(range(1, 50)))
    # It may move without an event, and is told to the other tab then.
    while (cursor := await leader.get("stream.cursor")) != await follower.get("stream.cursor"):
        assert cursor


@pytest.mark.parametrize("how", ["closed", "navigated away", "hung"])
async def test_a_tab_that_goes_hands_over_without_loss(open_tab: OpenTab, quiet: Asker, how: str) -> None:
    own = topic()
    leader, follower = await open_two(open_tab, quiet, own, k=5)
    heir = await open_tab(url_of(quiet)) if how == "hung" else follower
    quiet.publish(own, 1)
    await follower.has([1])
    debugger = await leader.page.context.new_cdp_session(leader.page)
    if how == "closed":
        await leader.page.close()
    elif how == "navigated away":
        await leader.page.goto("about:blank")
    else:  # without a word, as one that computes for ever
        await debugger.send("Debugger.enable")
        await debugger.send("Debugger.pause")
        # One that is less patient comes only now: on a busy machine it would take over from a tab that is well.
        await heir.start([own], k=5, limits={"leaderMs": 1500})
    quiet.publish(own, 2)
    await follower.has([1, 2])
    await heir.is_open()
    await heir.until("!stream.reason.includes('another tab')")
    quiet.publish(own, 3)
    for tab in (follower, heir):
        await tab.has([1, 2, 3])
    if how == "hung":
        await debugger.send("Debugger.resume")
        quiet.publish(own, 4)
        for tab in (leader, follower, heir):
            await tab.has([1, 2, 3, 4])
    wait_for("one connection is left", lambda: connections(quiet) == 1)


# Chromium freezes no page that is shown, and shows all pages that it is driven by; so the events are made.
FREEZE, THAW = "document.dispatchEvent(new Event('freeze'))", "document.dispatchEvent(new Event('resume'))"


async def test_a_tab_that_is_to_be_frozen_hands_over_first(open_tab: OpenTab, quiet: Asker) -> None:
    own = topic()
    leader, follower = await open_two(open_tab, quiet, own)
    await leader.get(FREEZE)
    await follower.until("!stream.reason.includes('another tab')")
    quiet.publish(own, 1)
    await follower.has([1])
    assert await leader.get("got") == []
    await leader.get(THAW)
    await leader.has([1])
    wait_for("one connection is left", lambda: connections(quiet) == 1)


async def test_a_page_that_comes_back_goes_on_where_it_was(open_tab: OpenTab, quiet: Asker) -> None:
    own = topic()
    tab = await open_tab(url_of(quiet), [own])
    await tab.is_open()
    quiet.publish(own, 1)
    await tab.has([1])
    await tab.get("window.dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))")
    wait_for("it has let go of its connection", lambda: connections(quiet) == 0)
    quiet.publish(own, 2)
    await tab.get("window.dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))")
    await tab.has([1, 2])


async def test_tabs_of_different_users_topics_or_filters_share_nothing(open_tab: OpenTab, quiet: Asker) -> None:
    own = topic()
    tabs = [
        await open_tab(url_of(quiet), [own], token=token("ada")),
        await open_tab(url_of(quiet), [own], token=token("bob")),
        await open_tab(url_of(quiet), [own, topic()], token=token("ada")),
        await open_tab(url_of(quiet), [own], token=token("ada"), events=["update"]),
        await open_tab(url_of(quiet), [own], token=token("ada"), share=False),
    ]
    for tab in tabs:
        await tab.is_open()
    wait_for("each has one", lambda: connections(quiet) == len(tabs))
    held = await tabs[0].get("navigator.locks.query().then(({held}) => held.map(({name}) => name))")
    assert len(held) == len(tabs) - 1
    assert not any("ada" in name or "bob" in name for name in held), "the names hold a hash of who it is"
    quiet.publish(own, 1)
    for tab in tabs:
        await tab.has([1])


async def test_a_token_of_the_same_user_that_is_newer_shares_the_connection(open_tab: OpenTab, quiet: Asker) -> None:
    own = topic()
    leader = await open_tab(url_of(quiet), [own], token=token("ada", ttl_s=3600))
    await leader.is_open()
    follower = await open_tab(url_of(quiet), [own], token=token("ada", ttl_s=7200))
    await follower.until("stream.reason.includes('another tab')")


async def test_a_hole_in_what_another_tab_tells_is_filled(open_tab: OpenTab, quiet: Asker) -> None:
    """A follower to which some messages never come reads the pages that have them."""
    own = topic()
    leader, follower = await open_two(open_tab, quiet, own)
    await follower.get(
        """(() => {
          const take = Object.getOwnPropertyDescriptor(MessageEvent.prototype, "data").get;
          let dropped = 0;
          Object.defineProperty(MessageEvent.prototype, "data", { get() {
            const data = take.call(this);
            return data && data.items && data.items.length && dropped++ < 2 ? { from: "nobody", term: 0, seq: 0 } : data;
          } });
          return 0;
        })()"""
    )
    for number in range(5):
        quiet.publish(own, number)
        await leader.has(list(range(number + 1)))
    await follower.has([0, 1, 2, 3, 4])

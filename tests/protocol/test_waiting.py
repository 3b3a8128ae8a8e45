"""Long polls: what wakes them and what doesn't, in the relay and in the polling function."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest

from tests.protocol.doors import TRIES
from tests.protocol.world import WAIT_S, Scene
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["relay", "function"])
def url(request: pytest.FixtureRequest, scenes: Callable[[int], Scene]) -> str:
    world = scenes(1).world
    return world.first.url if request.param == "relay" else world.function.url


class Poll:
    """A poll that waits at the server. Whose wait is over before the test is ready, asks again."""

    def __init__(self, scene: Scene, url: str, letters: str, **query: str) -> None:
        self.scene, self.server = scene, url
        self.fields = {"wait": WAIT_S, **query, "topic": [scene.topic(letter) for letter in letters]}
        self.ask()

    def ask(self) -> None:
        self.answer = asyncio.create_task(self.scene.http.get(f"{self.server}/stream/v1/poll", params=self.fields))

    async def waits(self) -> "Poll":
        for _ in range(TRIES):
            if await self.scene.begins_to_wait(self.answer, self.server):
                return self
            assert not (await self.page())["events"]
            self.ask()
        raise AssertionError("polls don't wait")

    async def woken_by(self, events: str, *, hidden: Sequence[str] = ()) -> dict[str, Any]:
        """The page that it is answered when these are published, and not before: the hidden ones don't wake it."""
        for _ in range(TRIES):
            await self.waits()
            for each in hidden:
                await self.scene.publish(self.scene.world.first, each)
            await self.waits()
            await self.scene.publish(self.scene.world.first, events)
            page = await self.page()
            if page["events"]:
                return page
            self.ask()
        raise AssertionError("nothing wakes it")

    async def found(self) -> dict[str, Any]:
        """The first page with something in it."""
        for _ in range(TRIES):
            page = await self.page()
            if page["events"]:
                return page
            self.ask()
        raise AssertionError("nothing wakes it")

    async def page(self) -> dict[str, Any]:
        async with asyncio.timeout(LIMIT_S):
            return dict((await self.scene.woken(self.answer, self.server)).raise_for_status().json())


def labels(page: dict[str, Any]) -> list[str]:
    return [event["data"]["label"] for event in page["events"]]


def newest(scene: Scene, letter: str) -> list[str]:
    return [scene.records[letter][-1].label]


async def test_an_event_wakes_a_poll_and_a_hidden_one_does_not(scenes: Callable[[int], Scene], url: str) -> None:
    scene = scenes(1)
    page = await Poll(scene, url, "A", events="spin").woken_by("A:spin", hidden=["A A:other", "B:spin A"])
    assert (labels(page), page["resume"], page["more"], page["poll_after_ms"]) == (newest(scene, "A"), "new", False, 0)


async def test_each_of_several_topics_wakes_a_poll(scenes: Callable[[int], Scene], url: str) -> None:
    scene = scenes(1)
    await scene.publish(scene.world.first, "C B A")
    cursor = scene.records["A"][0].id
    for event in ("B", "C", "A"):
        page = await Poll(scene, url, "ABC", cursor=cursor).woken_by(event)
        assert (labels(page), page["resume"]) == ([f"{event}2"], "exact")
        cursor = page["cursor"]


async def test_a_poll_of_several_shards_is_woken_by_each(scenes: Callable[[int], Scene]) -> None:
    scene = scenes(3)
    for server in (scene.world.first.url, scene.world.function.url):
        page = await Poll(scene, server, "ABC", cursor="now", wait="0").page()
        for event in ("C", "A", "B"):
            page = await Poll(scene, server, "ABC", cursor=page["cursor"]).woken_by(event)
            assert (len(page["events"]), labels(page)[0][0]) == (1, event)


async def test_what_is_there_is_not_waited_for(scenes: Callable[[int], Scene], url: str) -> None:
    scene = scenes(1)
    await scene.publish(scene.world.first, "A A A")
    page = await Poll(scene, url, "A", cursor="earliest").page()
    assert labels(page) == ["A1", "A2", "A3"]
    page = await Poll(scene, url, "A", k="1").page()
    assert (labels(page), page["resume"]) == (["A3"], "new")


async def test_bad_news_is_not_waited_for(scenes: Callable[[int], Scene], url: str) -> None:
    scene = scenes(1)
    await scene.publish(scene.world.first, "A A A")
    await scene.trim("A", 0)
    page = await Poll(scene, url, "A", cursor=scene.records["A"][0].id).page()
    assert (page["resume"], page["events"], page["gap"]["lost"]) == ("gap", [], 2)
    page = await Poll(scene, url, "A", cursor="nosuchlog.1795486597000-90117").page()
    assert (page["resume"], page["events"]) == ("reset", [])


# From waits that a quick machine is done with at once, to one that is long enough on any.
WAITS = ("0.5", "2", "8", WAIT_S)


async def test_a_poll_that_nothing_wakes_moves_its_cursor_past_what_was_hidden(scenes: Callable[[int], Scene], url: str) -> None:
    scene = scenes(1)
    await scene.publish(scene.world.first, "A:spin")
    begin = scene.records["A"][0].id
    for wait in WAITS:
        answer = Poll(scene, url, "A", wait=wait, events="spin", cursor=begin).answer
        waited = await scene.begins_to_wait(answer, url)
        await scene.publish(scene.world.first, "A A")
        waited = waited and await scene.waits(url)
        page = (await answer).raise_for_status().json()
        assert (page["events"], page["resume"], page["more"], page["gap"]) == ([], "exact", False, None)
        if waited:
            break
    await scene.trim("A", 0)
    page = await Poll(scene, url, "A", wait="0", events="spin", cursor=page["cursor"]).page()
    assert (page["resume"], page["gap"]) == ("exact", None)


async def test_with_an_etag_the_poll_waits_before_it_says_that_nothing_is_new(scenes: Callable[[int], Scene], url: str) -> None:
    scene = scenes(1)
    await scene.publish(scene.world.first, "A")
    query = {"topic": scene.topic("A"), "cursor": scene.records["A"][0].id}

    def ask(etag: str, wait: str) -> "asyncio.Task[httpx.Response]":
        query["wait"] = wait
        return asyncio.create_task(scene.http.get(f"{url}/stream/v1/poll", params=query, headers={"if-none-match": etag}))

    first = await ask("", "0.05")
    assert first.status_code == 200
    etag = first.headers["etag"]
    for wait in WAITS:
        second = ask(etag, wait)
        waited = await scene.begins_to_wait(second, url)
        answer = await second
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
        if waited:
            break
    assert waited
    for _ in range(TRIES):
        third = ask(etag, WAIT_S)
        if await scene.begins_to_wait(third, url):
            await scene.publish(scene.world.first, "A")
            break
    assert labels((await scene.woken(third, url)).raise_for_status().json()) == ["A2"]


async def test_many_polls_are_woken_by_one_event(scenes: Callable[[int], Scene], url: str) -> None:
    scene = scenes(1)
    polls = [Poll(scene, url, "A") for _ in range(20)]
    for poll in polls:
        await poll.waits()
    await scene.publish(scene.world.first, "A")
    # A poll that hadn't begun to wait begins behind the event: the next one wakes it.
    done = asyncio.gather(*(poll.found() for poll in polls))
    while not done.done():
        await scene.publish(scene.world.first, "A")
    await done


async def test_a_poll_whose_client_left_waits_no_more(scenes: Callable[[int], Scene], url: str) -> None:
    scene = scenes(1)
    poll = await Poll(scene, url, "A").waits()
    poll.answer.cancel()
    async with asyncio.timeout(LIMIT_S):
        while await scene.waits(url):
            pass

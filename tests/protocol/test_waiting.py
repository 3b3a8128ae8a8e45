"""Long polls: what wakes them and what doesn't, in the relay and in the polling function."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.protocol.world import Scene
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["relay", "function"])
def url(request: pytest.FixtureRequest, scenes: Callable[[int], Scene]) -> str:
    world = scenes(1).world
    return world.first.url if request.param == "relay" else world.function.url


class Poll:
    """A poll that waits at the server."""

    def __init__(self, scene: Scene, url: str, letters: str, **query: str) -> None:
        fields = {**query, "topic": [scene.topic(letter) for letter in letters]}
        self.scene, self.server = scene, url
        self.answer = asyncio.create_task(scene.http.get(f"{url}/stream/v1/poll", params=fields))

    async def waits(self) -> "Poll":
        async with asyncio.timeout(LIMIT_S):
            while not await self.scene.waits(self.server):
                assert not self.answer.done(), self.answer
        return self

    async def page(self) -> dict[str, Any]:
        async with asyncio.timeout(LIMIT_S):
            return dict((await self.answer).raise_for_status().json())


def labels(page: dict[str, Any]) -> list[str]:
    return [event["data"]["label"] for event in page["events"]]


async def test_an_event_wakes_a_poll_and_a_hidden_one_does_not(scenes: Callable[[int], Scene], url: str) -> None:
    scene = scenes(1)
    poll = await Poll(scene, url, "A", wait="25", events="spin").waits()
    await scene.publish(scene.world.first, "A A:other")
    await scene.publish(scene.world.first, "B:spin A")
    await poll.waits()
    await scene.publish(scene.world.first, "A:spin")
    page = await poll.page()
    assert (labels(page), page["resume"], page["more"], page["poll_after_ms"]) == (["A4"], "new", False, 0)


async def test_each_of_several_topics_wakes_a_poll(scenes: Callable[[int], Scene], url: str) -> None:
    scene = scenes(1)
    await scene.publish(scene.world.first, "C B A")
    cursor = scene.records["A"][0].id
    for event in ("B", "C", "A"):
        poll = await Poll(scene, url, "ABC", wait="25", cursor=cursor).waits()
        await scene.publish(scene.world.first, event)
        page = await poll.page()
        assert (labels(page), page["resume"]) == ([f"{event}2"], "exact")
        cursor = page["cursor"]


async def test_a_poll_of_several_shards_is_woken_by_each(scenes: Callable[[int], Scene]) -> None:
    scene = scenes(3)
    for server in (scene.world.first.url, scene.world.function.url):
        page = await Poll(scene, server, "ABC", cursor="now").page()
        for event in ("C", "A", "B"):
            poll = await Poll(scene, server, "ABC", wait="25", cursor=page["cursor"]).waits()
            await scene.publish(scene.world.first, event)
            page = await poll.page()
            assert (len(page["events"]), labels(page)[0][0]) == (1, event)


async def test_what_is_there_is_not_waited_for(scenes: Callable[[int], Scene], url: str) -> None:
    scene = scenes(1)
    await scene.publish(scene.world.first, "A A A")
    page = await Poll(scene, url, "A", wait="25", cursor="earliest").page()
    assert labels(page) == ["A1", "A2", "A3"]
    page = await Poll(scene, url, "A", wait="25", k="1").page()
    assert (labels(page), page["resume"]) == (["A3"], "new")


async def test_bad_news_is_not_waited_for(scenes: Callable[[int], Scene], url: str) -> None:
    scene = scenes(1)
    await scene.publish(scene.world.first, "A A A")
    await scene.trim("A", 0)
    page = await Poll(scene, url, "A", wait="25", cursor=scene.records["A"][0].id).page()
    assert (page["resume"], page["events"], page["gap"]["lost"]) == ("gap", [], 2)
    page = await Poll(scene, url, "A", wait="25", cursor="nosuchlog.1795486597000-90117").page()
    assert (page["resume"], page["events"]) == ("reset", [])


async def test_a_poll_that_nothing_wakes_moves_its_cursor_past_what_was_hidden(scenes: Callable[[int], Scene], url: str) -> None:
    scene = scenes(1)
    await scene.publish(scene.world.first, "A:spin")
    begin = scene.records["A"][0].id
    poll = await Poll(scene, url, "A", wait="0.5", events="spin", cursor=begin).waits()
    await scene.publish(scene.world.first, "A A")
    page = await poll.page()
    assert (page["events"], page["resume"], page["more"], page["gap"]) == ([], "exact", False, None)
    await scene.trim("A", 0)
    page = await Poll(scene, url, "A", events="spin", cursor=page["cursor"]).page()
    assert (page["resume"], page["gap"]) == ("exact", None)


async def test_with_an_etag_the_poll_waits_before_it_says_that_nothing_is_new(scenes: Callable[[int], Scene], url: str) -> None:
    scene = scenes(1)
    await scene.publish(scene.world.first, "A")
    query = {"topic": scene.topic("A"), "wait": "0.3", "cursor": scene.records["A"][0].id}

    async def ask(etag: str) -> httpx.Response:
        return await scene.http.get(f"{url}/stream/v1/poll", params=query, headers={"if-none-match": etag})

    first = await ask("")
    second = asyncio.create_task(ask(first.headers["etag"]))
    async with asyncio.timeout(LIMIT_S):
        while not await scene.waits(url):
            assert not second.done()
    answer = await second
    assert (first.status_code, answer.status_code, answer.content, answer.headers["etag"]) == (200, 304, b"", first.headers["etag"])
    query["wait"] = "25"
    third = asyncio.create_task(ask(first.headers["etag"]))
    async with asyncio.timeout(LIMIT_S):
        while not await scene.waits(url):
            assert not third.done()
    await scene.publish(scene.world.first, "A")
    assert labels((await third).raise_for_status().json()) == ["A2"]


async def test_many_polls_are_woken_by_one_event(scenes: Callable[[int], Scene], url: str) -> None:
    scene = scenes(1)
    polls = [Poll(scene, url, "A", wait="25") for _ in range(20)]
    for poll in polls:
        await poll.waits()
    await scene.publish(scene.world.first, "A")
    # A poll that hadn't begun to wait begins behind the event: the next one wakes it.
    done = asyncio.gather(*(poll.page() for poll in polls))
    while not done.done():
        await scene.publish(scene.world.first, "A")
    assert all(page["events"] for page in await done)


async def test_a_poll_whose_client_left_waits_no_more(scenes: Callable[[int], Scene], url: str) -> None:
    scene = scenes(1)
    poll = await Poll(scene, url, "A", wait="25").waits()
    poll.answer.cancel()
    async with asyncio.timeout(LIMIT_S):
        while await scene.waits(url):
            pass

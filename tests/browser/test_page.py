"""The demo and debugger page, with a real relay behind it: what it shows, how it breaks, and who can use it."""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, expect

from relay.endpoints.pages import POLICY, STATIC
from tests.asking import Asker
from tests.browser.conftest import LIMIT_MS, new_context
from tests.conftest import SHARED_ENV
from tests.servers import Relay, Valkey, token, topic

pytestmark = pytest.mark.anyio
expect.set_options(timeout=LIMIT_MS)

NUMBERS = [17, 0, 32, 5]
TRANSPORTS = {"sse": "SSE", "long-poll": "Long poll", "poll": "Poll"}

# From now on the page's clock stands still, but for what `later` adds.
COUNT_SAID = """
window.said = 0;
window.later = 0;
const stopped = Date.now();
Date.now = () => stopped + later;
new MutationObserver(() => (said += 1)).observe(document.querySelector("#said"), { childList: true });
"""

OpenPage = Callable[..., Awaitable[Page]]
Module = Callable[[str], Path]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[Relay]:
    """A relay whose page is on."""
    process = Relay(tmp_path_factory.mktemp("shown"), valkey.url, {**SHARED_ENV, "RELAY_DEMO_PAGE": "1"}).start()
    yield process
    process.kill()


@pytest.fixture(scope="module")
def publisher(shown: Relay) -> Iterator[Asker]:
    with Asker(shown.url) as asker:
        yield asker


@pytest.fixture
async def open_page(browser: Browser, shown: Relay) -> AsyncIterator[OpenPage]:
    """Opens the page as a link to it does. Whatever it throws, logs as an error or may not load fails the test."""
    wrong: list[str] = []
    contexts = []

    async def open_page(fragment: dict[str, str], **context: Any) -> Page:
        contexts.append(await new_context(browser, **{"locale": "en-US", **context}))
        page = await contexts[-1].new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if is_wrong(message) else None)
        await page.goto(f"{shown.url}/#{'&'.join(f'{name}={value}' for name, value in fragment.items())}")
        return page

    yield open_page
    for opened in contexts:
        await opened.close()
    assert wrong == []


def is_wrong(message: ConsoleMessage) -> bool:
    """Not that the browser tells of each answer that is a refusal."""
    return message.type == "error" and "Failed to load resource" not in message.text


def number(value: int) -> dict[str, Any]:
    return {"update_type": "new_number", "number": {"value": value, "color": "green" if not value else "red" if value % 2 else "black"}}


async def shows(page: Page, numbers: list[int]) -> None:
    """These numbers, the newest first."""
    await expect(page.locator("#newest li")).to_have_text([re.compile(rf"^{value}\b") for value in reversed(numbers)])


async def is_live(page: Page, transport: str = "sse") -> None:
    await expect(page.locator("#state-text")).to_have_text("Live" if transport == "sse" else "Polling")
    await expect(page.locator("#transport")).to_have_text(TRANSPORTS[transport])


def test_without_its_setting_there_is_no_page(asker: Asker) -> None:
    for path in ("/", "/page/page.js", "/page/index.html"):
        assert asker.get(path).status_code == 404


def test_its_files_may_load_nothing_but_each_other(publisher: Asker) -> None:
    answer = publisher.get("/", headers={})
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == POLICY
    assert "default-src 'none'" in POLICY
    assert "unsafe" not in POLICY
    assert not re.search(r"<script(?![^>]* src=)|<style|\bstyle=|\bon[a-z]+=|https?:", answer.text)
    for path in (STATIC / "page").iterdir():
        if path.name != "index.html":
            assert publisher.get(f"/page/{path.name}", headers={}).content == path.read_bytes()
    assert publisher.get("/page/..%2Fclient.js", headers={}).status_code in (400, 404)


async def test_it_shows_numbers_as_they_come_and_hides_the_token(open_page: OpenPage, shown: Relay, publisher: Asker) -> None:
    here = topic()
    publisher.publish(here, *map(number, NUMBERS))
    secrets = {"token": token("reader"), "publisher": token("publisher")}
    page = await open_page({"topic": here, **secrets})
    await shows(page, NUMBERS)
    await is_live(page)
    assert page.url == f"{shown.url}/"
    publisher.publish(here, number(36), {"other": "data"}, number(21))
    await shows(page, [*NUMBERS, 36, 21])
    await expect(page.locator("#count")).to_have_text(str(len(NUMBERS) + 3))
    await expect(page.locator("#last")).to_have_text(re.compile(r"Last number:\s+21\s+red"))
    await expect(page.locator("#count-green")).to_have_text("1")
    assert await page.locator("#chart rect").count() == len({*NUMBERS, 36, 21})
    await expect(page.locator("#events li").first).to_contain_text('"value":21')
    await expect(page.locator("#frames")).to_contain_text("event: hello")
    content = await page.content()
    assert [name for name, secret in secrets.items() if secret in content] == []
    await page.reload()
    await shows(page, [*NUMBERS, 36, 21])


async def test_the_newest_fifty_are_kept_and_screen_readers_are_not_flooded(open_page: OpenPage, publisher: Asker) -> None:
    here = topic()
    page = await open_page({"topic": here, "token": token()})
    await is_live(page)
    await page.evaluate(COUNT_SAID)
    numbers = [value % 37 for value in range(120)]
    for start in range(0, 120, 12):
        publisher.publish(here, *map(number, numbers[start : start + 12]))
    await shows(page, numbers[-50:])
    assert await page.evaluate("window.said") == 1
    await page.evaluate("window.later = 15001")
    publisher.publish(here, number(7))
    await page.wait_for_function("window.said === 2")


async def test_what_breaks_the_line_loses_nothing(open_page: OpenPage, publisher: Asker) -> None:
    here = topic()
    page = await open_page({"topic": here, "token": token()})
    await is_live(page)
    publisher.publish(here, number(1))
    await shows(page, [1])
    await page.get_by_role("button", name="Cut the connection").click()
    publisher.publish(here, number(2))
    await shows(page, [1, 2])
    offline = page.get_by_role("button", name="Offline")
    await offline.click()
    await expect(page.locator("#state-text")).to_have_text("Waiting to reconnect")
    publisher.publish(here, number(3), number(4))
    await offline.click()
    await shows(page, [1, 2, 3, 4])
    await page.get_by_role("button", name="Poll only").click()
    await is_live(page, "poll")
    await expect(page.locator("#why")).to_have_text("You asked for it")
    publisher.publish(here, number(5))
    await shows(page, [1, 2, 3, 4, 5])
    await page.get_by_role("button", name="Poll only").click()
    await is_live(page)
    await expect(page.locator("#gaps")).to_have_text("0")
    await expect(page.locator("#count")).to_have_text("5")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_it_goes_by_the_transport_that_is_chosen(open_page: OpenPage, publisher: Asker, transport: str) -> None:
    here = topic()
    publisher.publish(here, number(7))
    page = await open_page({"topic": here, "token": token(), "transport": transport})
    await is_live(page, transport)
    await shows(page, [7])


async def test_it_opens_what_is_sealed_and_shows_how_it_came(open_page: OpenPage, publisher: Asker) -> None:
    here = topic()
    publisher.publish(here, *map(number, NUMBERS))
    page = await open_page({"topic": here, "token": token(), "version": "v2"})
    await shows(page, NUMBERS)
    publisher.publish(here, number(21))
    await shows(page, [*NUMBERS, 21])
    await expect(page.locator("#events")).to_contain_text('"value":21')
    frames = page.locator("#frames")
    await expect(frames).to_contain_text("data: Fe26.2*")
    await expect(frames).not_to_contain_text('"value":21')


async def test_it_publishes(open_page: OpenPage, publisher: Asker) -> None:
    here = topic()
    page = await open_page({"topic": here, "token": token(publish=[]), "publisher": token(subscribe=[])})
    await is_live(page)
    await page.get_by_role("button", name="Publish").click()
    await expect(page.locator("#published")).to_have_text(re.compile(r"^Published as number \d+\.$"))
    await shows(page, [25])
    await page.get_by_label("Data (JSON)").fill("{")
    await page.get_by_role("button", name="Publish").click()
    await expect(page.locator("#published")).to_have_text("This is no JSON.")
    assert publisher.log(here) == [{"update_type": "new_number", "number": {"value": 25, "color": "red"}}]


async def test_it_says_why_a_stream_ends(open_page: OpenPage, publisher: Asker) -> None:
    page = await open_page({"topic": topic(), "token": token(subscribe=["other/**"])})
    await expect(page.locator("#state-text")).to_have_text("Ended: The token doesn't grant this topic")
    await expect(page.locator("#said")).to_have_text("Ended: The token doesn't grant this topic")
    await page.get_by_label("Topic").fill("not a topic")
    await page.get_by_role("button", name="Connect", exact=True).click()
    assert await page.get_by_label("Topic").evaluate("input => input.validationMessage")
    await expect(page.locator("#state-text")).to_have_text("Not connected")


async def test_it_speaks_portuguese_to_who_does(open_page: OpenPage) -> None:
    page = await open_page({"topic": topic(), "token": token()}, locale="pt-BR")
    await expect(page.locator("#state-text")).to_have_text("Ao vivo")
    assert await page.evaluate("document.documentElement.lang") == "pt"
    words = await page.evaluate("import('/page/words.js').then(({words}) => Object.keys(words))")
    used = await page.evaluate("[...document.querySelectorAll('[data-word]')].map(element => element.dataset.word)")
    assert set(used) <= set(words)


def test_both_languages_have_the_same_words() -> None:
    source = (STATIC / "page/words.js").read_text()
    english, portuguese = source.split("const PORTUGUESE")
    keys = [
        set(re.findall(r"(?:^|[{,])\s*\"?([\w-]+)\"?: [\"(`{]", part.partition("reasons: {")[0], re.MULTILINE))
        for part in (english, portuguese)
    ]
    assert keys[0] == keys[1]


def test_the_reasons_that_are_translated_are_given() -> None:
    """Those that are sentences; the others are codes of the relay."""
    source = (STATIC / "page/words.js").read_text()
    sentences = re.findall(r"\"([^\"]+ [^\"]+)\": \"", source)
    assert len(sentences) > 5
    client = (STATIC / "client.js").read_text()
    assert [sentence for sentence in sentences if f'"{sentence}"' not in client] == []


LOOKS: dict[str, dict[str, Any]] = {
    "light": {},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "locale": "pt-BR"},
    "phone in the dark": {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"},
}


@pytest.mark.parametrize("look", LOOKS)
async def test_axe_finds_no_violation(open_page: OpenPage, publisher: Asker, module: Module, look: str) -> None:
    here = topic()
    publisher.publish(here, *map(number, NUMBERS))
    page = await open_page({"topic": here, "token": token()}, **LOOKS[look])
    await shows(page, NUMBERS)
    await page.get_by_role("button", pressed=False).first.click()  # a pressed one has colours of its own
    await page.evaluate(module("axe-core/axe.min.js").read_text())
    found = await page.evaluate("axe.run()")
    told = [(violation["id"], [node["html"] for node in violation["nodes"]]) for violation in found["violations"]]
    assert told == []
    assert len(found["passes"]) > 20
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut off at the side"


async def test_it_is_used_by_keyboard_alone(open_page: OpenPage, publisher: Asker) -> None:
    here = topic()
    page = await open_page({})
    reached = []

    async def press(*keys: str) -> str:
        for key in keys:
            await page.keyboard.press(key)
        element: str = await page.evaluate("document.activeElement.name || document.activeElement.id || document.activeElement.innerText")
        reached.append(element)
        return element

    assert await press("Tab") == "topic"
    await press("Control+A")
    await page.keyboard.type(here)
    assert await press("Tab") == "token"
    await page.keyboard.type(token())
    assert await press("Enter") == "token"
    await is_live(page)
    publisher.publish(here, number(9))
    await shows(page, [9])
    for _ in range(10):
        if await press("Tab") == "cut":
            break
    await press("Enter")
    publisher.publish(here, number(10))
    await shows(page, [9, 10])
    assert await press("Tab", "Space") == "offline"
    await expect(page.locator("#state-text")).to_have_text("Waiting to reconnect")
    await press("Space")
    await is_live(page)
    for name in ("force", "event", "publisher", "data", "Publish"):
        assert await press("Tab") == name
    expected = {
        "topic",
        "token",
        "version",
        "transport",
        "Connect",
        "disconnect",
        "cut",
        "offline",
        "force",
        "event",
        "publisher",
        "data",
        "Publish",
    }
    assert expected <= set(reached)
    outlined = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outlined == "solid"
    panes = [await press("Tab") for _ in range(4)]  # events, pause, clear, frames: those which scroll can be scrolled by keys
    assert panes[1:3] == ["pause", "clear"], json.dumps(panes)

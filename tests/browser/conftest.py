"""A real browser for tests: Debian's Chromium, driven by Playwright."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

from tests.browser import node
from tests.needs import need, need_package
from tests.servers import token
from tests.waiting import LIMIT_S

MODULES = Path(__file__).parent.parent / "node_modules"
LIMIT_MS = LIMIT_S * 1000
ELSEWHERE = "relay.test"
# What `client.js` takes for a way that holds back, or for a dead connection, is on a busy machine just slow. The relays of the tests
# have a heartbeat of a second, so the module's own limits are changed where it makes them; what a test gives itself counts more.
PATIENT = {"helloMs": LIMIT_MS, "answerMs": LIMIT_MS, "leaderMs": 2 * LIMIT_MS, "silence": LIMIT_S}
PATIENCE = f"""
(() => {{
  const freeze = Object.freeze;
  Object.freeze = (made) => freeze(made && made.helloMs ? {{ ...made, ...{json.dumps(PATIENT)} }} : made);
}})();
"""


@pytest.fixture(scope="session", autouse=True)
def node_ends() -> Iterator[None]:
    yield
    node.stop()


@pytest.fixture(scope="session")
async def browser(anyio_backend: str) -> AsyncIterator[Browser]:
    """One for all tests: a page of its own, with its storage, costs a test some milliseconds."""
    path = need("Chromium")
    async with async_playwright() as playwright:
        # By that name a relay isn't of this machine, to which a browser speaks without TLS as if it had some.
        browser = await playwright.chromium.launch(
            executable_path=path, args=[f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1"], timeout=LIMIT_MS
        )
        yield browser
        await browser.close()


async def new_context(browser: Browser, **options: Any) -> BrowserContext:
    """As of a user who has the patience of the tests."""
    context = await browser.new_context(**options)
    context.set_default_timeout(LIMIT_MS)
    await context.add_init_script(PATIENCE)
    return context


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    """An empty page. What throws in it and isn't caught fails the test."""
    context = await new_context(browser)
    page = await context.new_page()
    thrown: list[str] = []
    page.on("pageerror", lambda error: thrown.append(str(error)))
    yield page
    await context.close()
    assert thrown == []


@pytest.fixture(scope="session")
def module() -> Callable[[str], Path]:
    """Where a file of a package of npm is, as `module("acorn/bin/acorn")`."""
    return need_package


# What a page under test keeps of its stream: events, notices, and the states it went through.
START = """
async ([path, options, tokens, name, patience]) => {
  const client = await import(path);
  if (client.LIMITS.silence !== patience) throw new Error("the limits are not those of the tests");
  window.client = client;
  window.got = []; window.notices = []; window.states = []; window.asked = 0;
  if (tokens) options.token = () => tokens[Math.min(window.asked++, tokens.length - 1)];
  const stream = window.stream = new client.RelayStream(options);
  window.all = [];
  stream.addEventListener(name, ({topic, id, name, n, ts, data}) => { all.push({topic, id, name, n, ts, data}); got.push(data); });
  for (const name of ["gap", "reset", "refused", "end"])
    stream.addEventListener(name, event => notices.push([name, event.detail]));
  stream.addEventListener("state", event => states.push(event.detail));
}
"""


class Tab:
    """A page of a relay's origin, in which a `RelayStream` runs."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.asked: list[str] = []  # the paths of its requests
        page.on("request", lambda request: self.asked.append(request.url.removeprefix(url)))

    async def start(
        self, topics: list[str], *, name: str = "update", tokens: list[str] | None = None, token: str = token(), **options: Any
    ) -> None:
        """Listens for events of this name. `tokens`: a function gives these, one after the other; the last one again and again."""
        chosen = {"topics": topics, **options} | ({} if tokens else {"token": token})
        await self.page.evaluate(START, [f"{self.url}/stream/client.js", chosen, tokens, name, PATIENT["silence"]])

    async def get(self, expression: str) -> Any:
        return await self.page.evaluate(expression)

    async def until(self, expression: str) -> None:
        """Returns when it is true in the page."""
        try:
            await self.page.wait_for_function(expression)
        except Exception as error:
            seen = json.dumps(await self.get("({got, notices, states})"), indent=1)
            raise AssertionError(f"never so: {expression}\n{seen}") from error

    async def is_open(self, transport: str = "sse") -> None:
        await self.until(f"stream.state === 'open' && stream.transport === {json.dumps(transport)}")

    async def has(self, values: list[Any]) -> None:
        """These events came, in this order, and no others."""
        await self.until(f"got.length >= {len(values)}")
        assert await self.get("got") == values
        assert await self.get("notices") == []


OpenTab = Callable[..., Awaitable[Tab]]


@pytest.fixture
async def open_tab(browser: Browser) -> AsyncIterator[OpenTab]:
    """Opens a tab at a relay, and starts a stream of these topics; with `without`, in a browser that lacks these.

    Tabs of one test are of one context, as those of one user are. What throws in them and isn't caught fails the test.
    """
    context = await new_context(browser)
    thrown: list[str] = []

    async def open_tab(url: str, topics: list[str] | None = None, *, without: tuple[str, ...] = (), **options: Any) -> Tab:
        page = await context.new_page()
        page.on("pageerror", lambda error: thrown.append(str(error)))
        for name in without:
            await page.add_init_script(f"delete {name};")
        tab = Tab(page, url)
        await page.goto(f"{url}/healthz")
        if topics:
            await tab.start(topics, **options)
        return tab

    yield open_tab
    await context.close()
    assert thrown == []

"""The recipes for pages, run as an application has them: bundled, in a browser, against a relay."""

import asyncio
import json
import os
import secrets
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, Route, expect

from tests.asking import Asker
from tests.browser.conftest import LIMIT_MS, MODULES, new_context
from tests.needs import need_package
from tests.servers import Relay, token
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.anyio
expect.set_options(timeout=LIMIT_MS)

RECIPES = Path(__file__).parent.parent.parent / "infra/recipes"
PAGE = """<!doctype html><title>recipe</title><div id="app"></div><script type="module" src="/app.js"></script>"""

REACT = """
import { createElement as h, StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";
import { useRelayStream, useRouletteStream } from "{recipes}/react.js";

function Roulette({ game }) {
  const { numbers, isConnected } = useRouletteStream(game, TOKEN, { version: "VERSION" });
  return h("section", null, h("p", null, String(isConnected)), h("ol", null, numbers.map(({ value }, at) => h("li", { key: at }, value))));
}
function Refused() {
  const { error } = useRelayStream("rounds/ROULETTE/refused", { token: () => "none" });
  return h("i", null, error?.reason);
}
function App() {
  const [game, setGame] = useState("GAME");
  window.play = setGame;
  return h(StrictMode, null, game ? h(Roulette, { game }) : null, h(Refused));
}
createRoot(document.getElementById("app")).render(h(App));
"""
VUE = """
import { createApp, defineComponent, h, ref } from "vue";
import { useRelayStream } from "{recipes}/vue.js";

const game = ref("GAME");
window.play = (name) => (game.value = name);
const Roulette = defineComponent(() => {
  const options = { token: TOKEN, version: "VERSION", k: 50, names: ["update"] };
  const { events, isConnected } = useRelayStream(() => `rounds/ROULETTE/${game.value}`, options);
  return () => h("section", [h("p", String(isConnected.value)), h("ol", events.value.map(({ data }) => h("li", data.number.value)))]);
});
const Refused = defineComponent(() => {
  const { error } = useRelayStream("rounds/ROULETTE/refused", { token: "none" });
  return () => h("i", error.value?.reason);
});
createApp(() => [game.value ? h(Roulette) : null, h(Refused)]).mount("#app");
"""
NATIVE = """
import { follow } from "{recipes}/native.js";

let source = null;
window.play = (game) => {
  source?.close();
  document.getElementById("app").innerHTML = "<ol></ol>";
  const item = (text) => Object.assign(document.createElement("li"), { textContent: text });
  const show = (data) => document.querySelector("ol").prepend(item(data.number.value));
  if (game) source = follow(`rounds/ROULETTE/${game}`, { token: TOKEN, version: "VERSION", k: 50, show });
};
play("GAME");
"""

Build = Callable[..., Awaitable[Page]]


def bundle(esbuild: str, source: Path) -> str:
    options = ["--bundle", "--format=esm", "--external:/stream/client.js", '--define:process.env.NODE_ENV="development"']
    environ = {**os.environ, "NODE_PATH": str(MODULES)}
    built = subprocess.run([esbuild, source, *options], env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert built.returncode == 0, built.stderr
    return built.stdout


@pytest.fixture
async def run_app(browser: Browser, relay: Relay, tmp_path: Path) -> AsyncIterator[Build]:
    """Bundles a program with what it imports, as its users do, and runs it on a page of the relay's origin."""
    wrong: list[str] = []
    esbuild = str(need_package(".bin/esbuild"))
    context = await new_context(browser)

    async def run_app(program: str, game: str) -> Page:
        source = tmp_path / "app.js"
        source.write_text(program.replace("{recipes}", str(RECIPES)).replace("TOKEN", json.dumps(token())).replace("GAME", game))
        bundled = await asyncio.to_thread(bundle, esbuild, source)
        files = {"/app.html": (PAGE, "text/html"), "/app.js": (bundled, "text/javascript")}

        async def answer(route: Route) -> None:
            body, content_type = files[route.request.url.removeprefix(relay.url)]
            await route.fulfill(body=body, content_type=content_type)

        await context.route(f"{relay.url}/app.*", answer)
        page = await context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        await page.goto(f"{relay.url}/app.html")
        return page

    yield run_app
    await context.close()
    assert wrong == []


def spins(game: str, *numbers: int) -> list[dict[str, Any]]:
    return [{"topic": f"rounds/ROULETTE/{game}", "data": {"update_type": "new_number", "number": {"value": number}}} for number in numbers]


async def shows(page: Page, *numbers: int) -> None:
    """The newest first."""
    await expect(page.locator("li")).to_have_text([str(number) for number in reversed(numbers)])


@pytest.mark.parametrize(("name", "version"), [("react", "v2"), ("vue", "v1"), ("native", "v1"), ("native", "v2")])
async def test_a_recipe_shows_the_newest_numbers_once_and_leaves_when_it_is_told(
    run_app: Build, relay: Relay, asker: Asker, name: str, version: str
) -> None:
    program = {"react": REACT, "vue": VUE, "native": NATIVE}[name].replace("VERSION", version)
    one, two = secrets.token_hex(6), secrets.token_hex(6)
    asker.post("/stream/publish", spins(one, 1, 2, 3) + spins(two, 30))
    page = await run_app(program, one)
    await shows(page, 1, 2, 3)
    asker.post("/stream/publish", spins(one, 4, 5))
    await shows(page, 1, 2, 3, 4, 5)
    if name != "native":
        await expect(page.locator("p")).to_have_text("true")
        await expect(page.locator("i")).to_have_text("bad_token")
        many = [number % 37 for number in range(60)]
        asker.post("/stream/publish", spins(one, *many))
        await shows(page, *many[-50:])
    await page.evaluate("game => play(game)", two)
    await shows(page, 30)
    asker.post("/stream/publish", spins(one, 6) + spins(two, 31))
    await shows(page, 30, 31)
    async with page.expect_event("requestfailed", lambda request: f"{two}/{version}/live" in request.url):
        await page.evaluate("play('')")
    await expect(page.locator("li")).to_have_count(0)

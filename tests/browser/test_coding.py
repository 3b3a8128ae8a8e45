"""Compressed streams in a browser's own EventSource."""

import json

import pytest
from playwright.async_api import Page, Response

from tests.asking import Asker
from tests.browser.conftest import ELSEWHERE
from tests.servers import Relay, token, topic

pytestmark = pytest.mark.anyio

LARGE = {"colours": ["red", "black"] * 500}
START = """
url => {
  window.got = []; window.hellos = [];
  window.source = new EventSource(url);
  source.addEventListener("hello", event => hellos.push(JSON.parse(event.data).resume));
  source.addEventListener("update", event => got.push(event.data));
}
"""


@pytest.mark.parametrize(("host", "coding"), [("127.0.0.1", "zstd"), (ELSEWHERE, "gzip")])
async def test_events_come_one_by_one_and_are_resumed(page: Page, relay: Relay, asker: Asker, host: str, coding: str) -> None:
    """Without TLS, a browser takes zstd from its own machine alone."""
    own, values = topic(), list[object]()
    codings: list[str | None] = []

    def look(response: Response) -> None:
        if "/live" in response.url:
            codings.append(response.headers.get("content-encoding"))

    page.on("response", look)
    await page.goto(f"http://{host}:{relay.port}/healthz")
    url = f"/stream/{own}/v1/live?token={token()}"
    await page.evaluate(START, url)
    for count, value in enumerate([LARGE, 1, LARGE], 1):
        await page.wait_for_function("hellos.length === 1")
        asker.publish(own, value)
        await page.wait_for_function(f"got.length === {count}")
        values.append(value)
    assert [json.loads(data) for data in await page.evaluate("got")] == values
    cursor = asker.page(f"/stream/{own}/v1/poll?cursor=earliest")["cursor"]
    await page.evaluate("source.close()")
    asker.publish(own, LARGE)
    await page.evaluate(START, f"{url}&cursor={cursor}")
    await page.wait_for_function("got.length === 1")
    assert [json.loads(data) for data in await page.evaluate("got")] == [LARGE]
    assert await page.evaluate("hellos") == ["exact"]
    assert codings == [coding, coding]

"""`poller.js` in a real browser from which everything newer than ECMAScript 5 and XMLHttpRequest was removed.

The page's script writes lines into its document, which are looked at from outside: Playwright's own scripts run beside the
page's, where nothing was removed.
"""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.async_api import Page, Route, expect

import fallback
from tests.asking import Asker, asking
from tests.browser.conftest import LIMIT_MS
from tests.needs import need
from tests.servers import Relay, Valkey, token, topic

pytestmark = pytest.mark.anyio

POLLER = Path(fallback.__file__).parent / "static/poller.js"
README = Path(__file__).parent.parent.parent / "README.md"
BYTES_MAX = 3000

# What a browser of 2010 had; all other names go, and those of the language's own objects too.
REMOVE = """
var LANGUAGE = 'Object Function Array String Boolean Number Date RegExp Error EvalError RangeError ReferenceError SyntaxError ' +
  'TypeError URIError JSON Math NaN Infinity undefined parseInt parseFloat isNaN isFinite decodeURI decodeURIComponent ' +
  'encodeURI encodeURIComponent eval';
var BROWSER = 'window self document location navigator setTimeout clearTimeout setInterval clearInterval XMLHttpRequest ' +
  'addEventListener removeEventListener onerror alert console top parent';
var METHODS = {
  Object: 'create keys defineProperty defineProperties getOwnPropertyNames getOwnPropertyDescriptor getPrototypeOf freeze ' +
    'isFrozen seal isSealed preventExtensions isExtensible',
  Array: 'isArray', String: 'fromCharCode', Number: 'MAX_VALUE MIN_VALUE NaN NEGATIVE_INFINITY POSITIVE_INFINITY',
  Date: 'now parse UTC', Function: '',
  'Object.prototype': 'constructor toString toLocaleString valueOf hasOwnProperty isPrototypeOf propertyIsEnumerable',
  'Array.prototype': 'constructor length concat every filter forEach indexOf join lastIndexOf map pop push reduce reduceRight ' +
    'reverse shift slice some sort splice toString',
  'String.prototype': 'constructor length charAt charCodeAt concat indexOf lastIndexOf localeCompare match replace search slice ' +
    'split substring substr toLowerCase toString toUpperCase trim valueOf',
  'Function.prototype': 'constructor length name apply bind call toString arguments caller'
};
(function () {
  function strip(object, kept) {
    Object.getOwnPropertyNames(object).forEach(function (name) {
      if ((' ' + kept + ' ').indexOf(' ' + name + ' ') >= 0) return;
      try { delete object[name]; } catch (error) {}
    });
  }
  Object.keys(METHODS).forEach(function (path) {
    var object = path.split('.').reduce(function (object, part) { return object[part]; }, window);
    strip(object, 'length name prototype ' + METHODS[path]);
  });
  strip(window, LANGUAGE + ' ' + BROWSER + ' LANGUAGE BROWSER METHODS REMOVED');
})();
"""
# Of an answer that it gives up, which on a busy machine is just slow.
PATIENCE = f"""
(function (setTimeout) {{
  window.setTimeout = function (act, ms) {{ return setTimeout(act, ms === 45000 ? {LIMIT_MS:.0f} : ms); }};
}})(window.setTimeout);
"""
PAGE = """<!doctype html><title>old</title><ol id="lines"></ol>
<script>
%s
function line(text) {
  var item = document.createElement('li');
  item.textContent = text;
  document.getElementById('lines').appendChild(item);
}
line([window.fetch, window.Promise, window.EventSource, window.Map, window.Symbol, window.AbortController, window.crypto,
      window.URL, [].find, Object.assign, ''.startsWith].join(''));
</script>
%s"""
LOADED = '<script src="/stream/poller.js"></script>\n<script>%s</script>'
# Tells everything that it is told.
TELLING = """
var poller = new RelayPoller(%s, {
  cursor: %s, token: %s,
  onevent: function (event) { line('event ' + JSON.stringify(event.data)); },
  ongap: function (gap) { line('gap ' + gap.lost); },
  onreset: function (gaps) { line('reset ' + gaps.length); },
  onfail: function (failure) { line('fail ' + failure.status + ' ' + Math.floor(failure.again_ms / 1000)); },
  onend: function (problem) { line('end ' + problem.code); }
});
"""


class Lines:
    """What a page has written, in order."""

    def __init__(self, page: Page) -> None:
        self.items = page.locator("#lines li")

    async def are(self, *expected: str) -> None:
        await expect(self.items).to_have_text(list(expected), timeout=LIMIT_MS)


async def open_old(page: Page, url: str, body: str) -> Lines:
    """Opens a page of the relay's origin in an old browser."""

    async def answer(route: Route) -> None:
        await route.fulfill(body=PAGE % (PATIENCE + REMOVE, body), content_type="text/html")

    await page.route(f"{url.rstrip('/')}/old.html", answer)
    await page.goto(f"{url.rstrip('/')}/old.html")
    lines = Lines(page)
    await expect(lines.items.first).to_have_text("", timeout=LIMIT_MS)
    return lines


def telling(url: str, *, cursor: str = "", token_: str = "") -> str:
    """`token_` is JavaScript."""
    return LOADED % (TELLING % (json.dumps(url), json.dumps(cursor), token_ or json.dumps(token())))


def test_it_is_ecmascript_5_and_small(module: Callable[[str], Path]) -> None:
    node = need("Node")
    parsed = subprocess.run([node, module("acorn/bin/acorn"), "--ecma5", "--silent", POLLER], capture_output=True, text=True, check=False)
    assert parsed.returncode == 0, parsed.stderr
    assert POLLER.stat().st_size < BYTES_MAX
    newer = subprocess.run(
        [node, module("acorn/bin/acorn"), "--ecma5", "--silent"], input="let a", capture_output=True, text=True, check=False
    )
    assert newer.returncode != 0


async def test_the_example_of_the_readme_shows_each_event_once(page: Page, relay: Relay, asker: Asker) -> None:
    here = topic()
    (example,) = [
        text for text in re.findall(r"^```html\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE) if "RelayPoller" in text
    ]
    example = example.replace("rounds/ROULETTE/123", here)
    around = f"<script>var token = {json.dumps(token())}; function show(event) {{ line(event.data.number.value); }}</script>"
    asker.publish(here, *({"number": {"value": value}} for value in (7, 8)))
    lines = await open_old(page, relay.url, around + example)
    await lines.are("", "7", "8")
    for value in (9, 10, 11):
        asker.publish(here, {"number": {"value": value}})
    await lines.are("", "7", "8", "9", "10", "11")


async def test_it_goes_on_where_it_was_when_its_relay_was_away(page: Page, tmp_path: Path, valkey: Valkey, asker: Asker) -> None:
    here = topic()
    mortal = Relay(tmp_path, valkey.url)
    with asking(mortal):
        asker.publish(here, 1)
        lines = await open_old(page, mortal.url, telling(f"/stream/{here}/v1/poll?wait=20&limit=2", cursor="earliest"))
        await lines.are("", "event 1")
        mortal.kill()
        asker.publish(here, 2, 3, 4, 5, 6)  # three pages of two
        await expect(lines.items.nth(2)).to_have_text("fail 0 1", timeout=LIMIT_MS)
        mortal.start()
        await expect(lines.items.last).to_have_text("event 6", timeout=LIMIT_MS)
        told = (await page.locator("#lines").inner_text()).split("\n")
        # One that has just started may not have found its log yet.
        assert [line for line in told if line and not line.startswith(("fail 0", "fail 503"))] == [
            f"event {value}" for value in range(1, 7)
        ]


async def test_it_tells_a_gap_and_a_reset(page: Page, relay: Relay, valkey: Valkey, asker: Asker) -> None:
    here = topic()
    first, *_ = asker.publish(here, 1, 2, 3, 4)
    valkey.ask("XTRIM", f"{{relay:0}}:topic:{here}", "MAXLEN", "=", "1")
    url = f"/stream/{here}/v1/poll"
    lines = await open_old(page, relay.url, telling(url, cursor=first))
    await lines.are("", "gap 2", "event 4")
    epoch, _, rest = first.partition(".")
    other = f"{'0' if epoch[0] != '0' else '1'}{epoch[1:]}.{rest}"
    lines = await open_old(page, relay.url, telling(url, cursor=other))
    await lines.are("", "reset 1", "event 4")
    url = f"/stream/v1/poll?topic={here}&topic={topic()}"
    lines = await open_old(page, relay.url, telling(url, cursor=other))
    await lines.are("", "reset 2", "event 4")


async def test_it_waits_as_long_as_a_full_relay_says(page: Page, tmp_path: Path, valkey: Valkey) -> None:
    here = topic()
    with asking(Relay(tmp_path, valkey.url, {"RELAY_MAX_STREAMS_PER_SUB": "1"})) as full, full.live(f"/stream/{here}/v1/live"):
        async with page.expect_response(lambda answer: answer.status == 429) as refusal:
            lines = await open_old(page, str(full.client.base_url), telling(f"/stream/{here}/v1/poll?wait=20"))
        least = int((await (await refusal.value).all_headers())["retry-after"])
        assert least > 1
        first = lines.items.nth(1)
        await expect(first).to_have_text(re.compile("^fail 429 "), timeout=LIMIT_MS)
        assert least <= int((await first.inner_text()).split()[-1]) <= 1.5 * least


async def test_it_asks_for_a_new_token_once_and_ends_at_what_is_final(page: Page, relay: Relay, asker: Asker) -> None:
    here = topic()
    url = f"/stream/{here}/v1/poll"
    asker.publish(here, 1)
    bad, good = json.dumps(token(ttl_s=-3600)), json.dumps(token())
    renewing = "function (use) { line('token'); use(window.asked ? %s : %s); window.asked = true; }"
    lines = await open_old(page, relay.url, telling(url, cursor="earliest", token_=renewing % (good, bad)))
    await lines.are("", "token", "token", "event 1")
    lines = await open_old(page, relay.url, telling(url, token_=renewing % (bad, bad)))
    await lines.are("", "token", "token", "end token_expired")
    lines = await open_old(page, relay.url, telling(url, token_=bad))
    await lines.are("", "end token_expired")
    lines = await open_old(page, relay.url, telling(url.replace("v1", "v9")))
    await lines.are("", "end unknown_version")


async def test_a_page_that_throws_misses_nothing_and_one_that_stops_hears_nothing(page: Page, relay: Relay, asker: Asker) -> None:
    here = topic()
    asker.publish(here, 1, 2, 3)
    script = """
    window.onerror = function (message) { line(message); return true; };
    var poller = new RelayPoller(%s, {
      cursor: 'earliest', token: %s,
      onevent: function (event) {
        line('event ' + event.data);
        if (event.data === 2) { poller.stop(); line('stopped'); }
        throw new Error('oops ' + event.data);
      },
      onpage: function () { line('page'); }
    });
    """
    lines = await open_old(page, relay.url, LOADED % (script % (json.dumps(f"/stream/{here}/v1/poll?wait=20"), json.dumps(token()))))
    await lines.are("", "event 1", "event 2", "stopped", "Uncaught Error: oops 1", "Uncaught Error: oops 2")

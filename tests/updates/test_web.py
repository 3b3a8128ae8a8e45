"""Sources of the kind `http`, on a real server that tells the truth, and on one that lies in every way."""

import time
from collections.abc import Iterator

import pytest

from tests.servers import Valkey, topic
from tests.updates.conftest import Watch, leave_alone
from tests.updates.jobs import SECRET, JobProcess, data
from tests.updates.upstreams import Answer, Handler, Upstream, gzipped, shows, upstream
from tests.waiting import wait_for

# What is new


def test_a_new_item_and_a_revised_one_are_events_and_an_unchanged_one_is_not(watch: Watch, up: Upstream) -> None:
    watched = watch()
    up.shows({"id": "a", "v": 1}, {"id": "b", "v": 2})
    assert watched.data() == [{"id": "a", "v": 1}, {"id": "b", "v": 2}]
    up.shows({"id": "a", "v": 3}, {"id": "b", "v": 2, "changed": "without a new version"}, {"id": "c", "v": 1})
    assert watched.data()[2:] == [{"id": "c", "v": 1}, {"id": "a", "v": 3}]
    up.shows({"id": "a", "v": 3}, {"id": "b", "v": 2})
    assert len(watched.data()) == 4


def test_without_a_version_an_item_is_an_event_once(watch: Watch, up: Upstream) -> None:
    watched = watch(version=None)
    up.shows({"id": 1, "x": 1}, {"id": 2})
    up.shows({"id": 1, "x": 2}, {"id": "1"}, {"id": 1.5})
    assert watched.data() == [{"id": 1, "x": 1}, {"id": 2}, {"id": "1"}, {"id": 1.5}]


def test_the_topic_the_name_and_the_data_come_from_the_item(watch: Watch, up: Upstream, valkey: Valkey) -> None:
    kind = topic().split("/")[2]
    watch(topic=f"tests/{kind}/{{/where/0/net}}", event="q-{/e~1x}", data="/inner", key="/where/0/id")
    up.says(
        Answer(b'{"items": [{"where": [{"net": "ci", "id": 1}], "v": 1, "e/x": "Z", "inner": {"n": 1.10, "big": 12345678901234567890}}]}')
    )
    entry = valkey.ask("XRANGE", f"{{relay:0}}:topic:tests/{kind}/ci", "-", "+")[0][1]
    # To the letter: no number is read and written again.
    assert (entry[b"e"], entry[b"d"]) == (b"q-Z", b'{"n": 1.10, "big": 12345678901234567890}')


def test_where_versions_are_numbers_the_oldest_is_first(watch: Watch, up: Upstream) -> None:
    watched = watch()
    up.shows(*({"id": number, "v": 100 - number} for number in range(10)))
    assert [item["v"] for item in watched.data()] == list(range(91, 101))


def test_where_they_are_none_the_upstream_gives_the_order_or_its_reverse(watch: Watch, up: Upstream) -> None:
    one, other = watch(), watch(newest_first=True)
    up.shows(*({"id": number, "v": f"v{number}"} for number in (3, 1, 2)))
    wait_for("both have looked", lambda: one.status().get("appended") == other.status().get("appended") == 3)
    assert [item["id"] for item in one.data()] == [3, 1, 2]
    assert [item["id"] for item in other.data()] == [2, 1, 3]


def test_ndjson_has_an_item_a_line(watch: Watch, up: Upstream) -> None:
    watched = watch(format="ndjson", items=None)
    up.says(Answer(b'{"id":1,"v":1}\r\n\n{"id":2,\n{"id":2,"v":1}', headers={"Content-Type": "application/x-ndjson"}))
    assert watched.data() == [{"id": 1, "v": 1}, {"id": 2, "v": 1}]
    assert watched.status()["skipped"] >= 1


def test_an_array_by_itself_and_behind_a_byte_order_mark(watch: Watch, up: Upstream) -> None:
    watched = watch(items=None)
    up.says(Answer(b'\xef\xbb\xbf[{"id":1,"v":1}]'))
    assert watched.data() == [{"id": 1, "v": 1}]


def test_packed_answers_are_read(watch: Watch, up: Upstream) -> None:
    watched = watch()
    up.says(gzipped(shows({"id": 1, "v": 1}).body))
    assert watched.data() == [{"id": 1, "v": 1}]


def test_it_asks_for_what_it_does_not_have(watch: Watch, up: Upstream) -> None:
    watched = watch()
    up.shows({"id": 1, "v": 1}, etag='W/"1"', **{"Last-Modified": "Tue, 06 Feb 2018 10:00:00 GMT"})
    assert up.asked[-1]["if-none-match"] == 'W/"1"'
    assert up.asked[-1]["if-modified-since"] == "Tue, 06 Feb 2018 10:00:00 GMT"
    assert up.asked[-1]["user-agent"].startswith("edge-relay/")
    before = watched.status()["items_seen"]
    up.shows({"id": 1, "v": 1}, {"id": 2, "v": 1}, etag='W/"2"')
    assert watched.data() == [{"id": 1, "v": 1}, {"id": 2, "v": 1}]
    assert watched.status()["items_seen"] == before + 2
    assert "if-modified-since" not in up.asked[-1]


def test_headers_and_the_url_have_what_is_secret_from_the_environment(watch: Watch, up: Upstream, job: JobProcess) -> None:
    watched = watch(url=up.url + "?key=${SECRET}", headers={"Authorization": "Bearer ${SECRET}", "X-A": "b"})
    up.shows({"v": 1})
    assert up.asked[-1]["authorization"] == f"Bearer {SECRET}"
    assert up.asked[-1]["x-a"] == "b"
    assert up.asked[-1][":path"].endswith(f"?key={SECRET}")
    watched.tells("can't become events")
    assert SECRET not in job.log()


def test_cookies_are_not_kept(watch: Watch, up: Upstream) -> None:
    watch()
    up.shows({"id": 1, "v": 1}, **{"Set-Cookie": "a=b"})
    assert "cookie" not in up.asked[-1]


def test_a_redirect_on_the_same_host_is_followed(watch: Watch, up: Upstream) -> None:
    def redirect(handler: Handler) -> None:
        if handler.path == "/feed":
            handler.send_response(302)
            handler.send_header("Location", "/other")
            body = b""
        else:
            handler.send_response(200)
            body = shows({"id": 1, "v": 1}).body
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    watched = watch()
    up.says(Answer(write=redirect))
    wait_for("it is there", lambda: watched.data() == [{"id": 1, "v": 1}])


# Memory


def test_what_is_shown_for_longer_than_a_key_lives_is_remembered(watch: Watch, up: Upstream, valkey: Valkey) -> None:
    watched = watch()
    up.shows({"id": 1, "v": 1}, {"id": 2, "v": 1})
    forget_keys(valkey, watched.topic)
    up.shows({"id": 2, "v": 1}, {"id": 3, "v": 1}, {"id": 1, "v": 1})
    assert [item["id"] for item in watched.data()] == [1, 2, 3]


def test_an_upstream_that_shows_nothing_for_a_moment_makes_no_event_of_what_is_back(watch: Watch, up: Upstream, valkey: Valkey) -> None:
    watched = watch()
    up.shows({"id": 1, "v": 1}, {"id": 2, "v": 1})
    up.shows()
    forget_keys(valkey, watched.topic)
    up.shows({"id": 1, "v": 1}, {"id": 2, "v": 1}, {"id": 3, "v": 1})
    assert [item["id"] for item in watched.data()] == [1, 2, 3]


def test_what_was_appended_and_not_remembered_is_known_by_its_key(watch: Watch, up: Upstream, valkey: Valkey) -> None:
    watched = watch()
    up.shows({"id": 1, "v": 1}, {"id": 2, "v": 1})
    leave_alone(watched)
    valkey.ask("DEL", f"{{relay:0}}:seen:{watched.name}", f"{{relay:0}}:place:{watched.name}")
    watch(name=watched.name, topic=watched.topic, newest_first=True)  # another definition of the same source
    up.shows({"id": 1, "v": 1}, {"id": 2, "v": 1}, {"id": 3, "v": 1})
    assert [item["id"] for item in watched.data()] == [1, 2, 3]
    assert watched.status()["duplicates"] == 2


def forget_keys(valkey: Valkey, topic: str) -> None:
    keys = valkey.ask("KEYS", f"{{relay:0}}:idem:{topic} *")
    assert keys
    valkey.ask("DEL", *keys)


# Lies


def truth() -> Answer:
    return shows({"id": "true", "v": 1})


def forever(handler: Handler) -> None:
    """An answer that never ends."""
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b'{"items": [' + b" " * (1 << 20))
    except OSError:
        handler.close_connection = True


def trickle(handler: Handler) -> None:
    """A byte now and then, so that no read is ever slow."""
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b" ")
            time.sleep(0.02)
    except OSError:
        handler.close_connection = True


def half(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"items": [{"id": 1, "v": 1}]}')
    handler.close_connection = True


def nonsense(handler: Handler) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n" * 3)
    handler.close_connection = True


def to(location: str) -> Answer:
    return Answer(status=302, headers={"Location": location})


JSON = {"Content-Type": "application/json"}
LIES: dict[str, tuple[Answer, str]] = {
    "HTML": (Answer(b"<!DOCTYPE html><title>Maintenance</title>", headers={"Content-Type": "text/html"}), "'text/html' that is no JSON"),
    "nothing": (Answer(b""), "no JSON"),
    "half of it": (Answer(write=half), "can't be read"),
    "half of the JSON": (Answer(b'{"items": [{"id": 1, "v": 1}, {"id"', headers=JSON), "no JSON"),
    "bytes that are no text": (Answer(b'{"items": [{"id": "\xff", "v": 1}]}', headers=JSON), "item 1"),
    "no such array": (Answer(b'{"results": []}', headers=JSON), "nothing at /items"),
    "an object for an array": (Answer(b'{"items": {"id": 1}}', headers=JSON), "no array at /items"),
    "a deep nest": (Answer(b'{"items": ' + b"[" * 100_000, headers=JSON), "no JSON"),
    "an error": (Answer(b'{"items": []}', status=500), "answers 500"),
    "an answer to nothing asked": (Answer(status=304), "answers 304"),
    "no content": (Answer(status=204), "answers 204"),
    "an answer without end": (Answer(write=forever), "more than 16 MiB"),
    "a bomb": (gzipped(b" " * (200 << 20)), "more than 16 MiB"),
    "gzip that is none": (Answer(b"{}", headers={"Content-Encoding": "gzip"}), "gzip that is none"),
    "gzip that ends early": (Answer(gzipped(b"[]" * 1000).body[:-9], headers={"Content-Encoding": "gzip"}), "in the middle"),
    "a packing that nobody asked for": (Answer(b"x", headers={"Content-Encoding": "br"}), "Content-Encoding 'br'"),
    "no HTTP at all": (Answer(write=nonsense), "can't be read"),
    "a redirect to another host": (to("http://localhost:1/feed"), "redirects to elsewhere, http://localhost:1"),
    "a redirect to another port": (to("http://127.0.0.1:1/feed"), "redirects to elsewhere"),
    "a redirect to a file": (to("file:///etc/passwd"), "redirects to elsewhere"),
    "a redirect in a circle": (to("/feed"), "redirects more than 3 times"),
    "too many items": (Answer(b'{"items": [%b]}' % b",".join([b"1"] * 100_001), headers=JSON), "100000 at most"),
    "items that are none": (Answer(b'{"items": [1, null, [], "a"]}', headers=JSON), "4 of 4 items"),
    "items without keys": (shows({"v": 1}, {"id": None, "v": 1}, {"id": {}, "v": 1}, {"id": "", "v": 1}), "4 of 4 items"),
    "items without versions": (shows({"id": 1}, {"id": 2, "v": True}), "no text and no number at /v, its version"),
    "items that are too large": (shows({"id": 1, "v": 1, "x": "x" * 70_000}), "65536 at most"),
}  # fmt: skip


@pytest.mark.parametrize(("lie", "told"), LIES.values(), ids=LIES)
def test_a_lie_costs_a_line_of_the_log_and_nothing_else(watch: Watch, up: Upstream, lie: Answer, told: str) -> None:
    watched = watch()
    up.says(truth())
    up.says(lie)
    assert "[STREAM JOB] WARNING" in watched.tells(told)
    up.shows({"id": "true", "v": 1}, {"id": "more", "v": 2})
    assert [item["id"] for item in watched.data()] == ["true", "more"]
    status = watched.status()
    assert status["error"] is None
    assert status["errors"] + status["skipped"] >= 1


def test_a_byte_now_and_then_is_no_answer(watch: Watch, up: Upstream) -> None:
    """On a busy machine the truth may take too long, too, now and then."""
    watched = watch(timeout_ms=1500)
    up.answer = Answer(write=trickle)
    assert "[STREAM JOB] WARNING" in watched.tells("is slow: no whole answer after 1500 ms")
    up.answer = truth()
    wait_for("it is there", lambda: [item["id"] for item in watched.data()] == ["true"])
    wait_for("it is well", lambda: watched.status()["error"] is None)
    assert watched.status()["errors"] >= 1


@pytest.fixture
def healthy() -> Iterator[Upstream]:
    with upstream() as server:
        yield server


def test_one_that_hangs_holds_up_no_other(watch: Watch, up: Upstream, healthy: Upstream) -> None:
    watch()
    other = watch(url=healthy.url)
    up.answer = Answer(write=trickle)
    healthy.shows({"id": 1, "v": 1})
    healthy.shows({"id": 2, "v": 1})
    assert len(other.data()) == 2


def test_items_that_are_right_become_events_beside_those_that_are_not(watch: Watch, up: Upstream, valkey: Valkey) -> None:
    kind = topic().split("/")[2]
    watched = watch(topic=f"tests/{kind}/{{/t}}", event="{/e}")
    good = {"id": "good", "v": 1, "t": "a", "e": "ok"}
    bad = [
        {"t": t, "e": e}
        for t, e in [("a/b", "ok"), ("..", "ok"), ("", "ok"), ("é", "ok"), ("x" * 129, "ok"), (None, "ok"), ("a", "hello"), ("a", "a b")]
    ]
    up.shows(*({"id": number, "v": 1, **item} for number, item in enumerate(bad)), good, {"id": 99, "v": 1, "t": "a", "e": "gap"})
    assert data(valkey, f"tests/{kind}/a") == [good]
    assert watched.status()["skipped"] >= len(bad) + 1
    assert "9 of 10 items" in watched.tells("can't become events")


def test_duplicates_another_order_and_a_clock_that_goes_back_make_no_events(watch: Watch, up: Upstream) -> None:
    watched = watch()
    new, old = {"id": 1, "v": 2000}, {"id": 1, "v": 1000}
    up.shows(old, old, {"id": 2, "v": 5}, old, **{"Last-Modified": "Tue, 06 Feb 2018 10:00:00 GMT"})
    up.shows({"id": 2, "v": 5}, new, **{"Last-Modified": "Tue, 06 Feb 2018 09:00:00 GMT"})
    up.shows(old, {"id": 2, "v": 5}, **{"Last-Modified": "Mon, 05 Feb 2018 09:00:00 GMT"})  # as an old copy in some cache
    up.shows(new, {"id": 2, "v": 5})
    assert watched.data() == [{"id": 2, "v": 5}, old, new]


def test_text_of_the_upstream_forges_no_line_of_the_log(watch: Watch, up: Upstream) -> None:
    watched = watch(topic="tests/case/{/t}")
    up.shows({"id": 1, "v": 1, "t": "a\n[STREAM JOB] INFO all is well"})
    assert "a\\n[STREAM JOB]" in watched.tells("can't become events")


def test_it_comes_back_when_the_upstream_asks_it_to(watch: Watch, up: Upstream) -> None:
    watched = watch()
    up.answer = Answer(status=429, headers={"Retry-After": "2"})
    line = watched.tells("answers 429")
    assert float(line.rpartition(" in ")[2].removesuffix(" s")) >= 2


# Networks


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "[fe80::1]", "0.0.0.0"])
def test_an_address_of_a_private_network_is_not_even_connected_to(watch: Watch, up: Upstream, host: str) -> None:
    watched = watch(url=f"http://{host}:{up.server_port}/feed", private=None)
    watched.tells("address of a private network")
    assert up.asked == []


def test_a_proxy_of_the_environment_is_not_used(watch: Watch, up: Upstream, job: JobProcess) -> None:
    assert {"HTTP_PROXY", "ALL_PROXY"} <= set(job.env)
    watched = watch()
    up.shows({"id": 1, "v": 1})
    assert watched.data() == [{"id": 1, "v": 1}]

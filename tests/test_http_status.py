"""How a relay is: for people, for balancers, for Prometheus; and who sees what of it."""

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

import relay as relay_package
from relay.fleet import Figures, Kept, find_differences
from relay.keys import Keyring
from relay.log import open_log
from relay.status_page import page
from tests.asking import AUTH, Asker, asking, bearer, check_problem
from tests.servers import DEFAULT_RETENTION, SEAL_KEY, Relay, Valkey, topic
from tests.waiting import LIMIT_S, wait_for

DAY_MS = 86_400_000
METRICS_TOKEN = "a-token-of-prometheus"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, valkey: Valkey) -> Iterator[Asker]:
    """A relay of two workers whose metrics ask for a token."""
    env = {"RELAY_METRICS_TOKEN": METRICS_TOKEN, "RELAY_WORKERS": "2"}
    with asking(Relay(tmp_path_factory.mktemp("guarded"), valkey.url, env)) as asker:
        yield asker


@pytest.mark.parametrize(("path", "expected"), [("/healthz", {"status": "alive"}), ("/readyz", {"status": "ready", "valkey": "here"})])
def test_a_relay_is_alive_and_ready_and_says_so_to_anybody(asker: Asker, path: str, expected: dict[str, str]) -> None:
    answer = asker.get(path, headers={})
    assert (answer.status_code, answer.json()) == (200, expected)
    assert answer.headers["cache-control"] == "no-store"


# Status

INSIDES = ("host", "pid", "fleet", "valkey_server", "busiest_topics", "source", "sources", "fingerprint", "shards", "retention", "warnings")


@pytest.mark.parametrize(
    "headers", [{}, AUTH, bearer(admin=["revoke"]), bearer(admin=["status "])], ids=["nobody", "a reader", "revoke", "nearly"]
)
def test_without_its_grant_the_status_shows_totals_alone(asker: Asker, headers: dict[str, str]) -> None:
    own = topic()
    with asker.live(f"/stream/{own}/v1/live", headers=bearer("the-subject")) as stream:
        stream.next()
        answer = asker.get("/stream/status", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    status = answer.json()
    assert status["version"] == relay_package.__version__
    assert status["connections"] >= 1
    assert status["valkey"] == "here"
    assert not set(INSIDES) & set(status)
    assert own not in answer.text
    assert "the-subject" not in answer.text


def test_with_its_grant_the_status_shows_topics_and_hosts(asker: Asker) -> None:
    own = topic()
    with asker.live(f"/stream/{own}/v1/live", headers=bearer("the-subject")) as stream:
        stream.next()
        status = asker.page("/stream/status", headers=bearer(admin=["status"]))
        assert {"topic": own, "connections": 1} in status["busiest_topics"]
    assert {"host", "pid", "valkey_server", "retention", "shards", "sources"} <= set(status)
    assert status["valkey_server"]["maxmemory_policy"] == "noeviction"
    assert status["fingerprint"] == status["fleet"][0]["fingerprint"] == Keyring((SEAL_KEY,)).fingerprint()


def test_with_its_grant_the_status_tells_what_is_kept_of_topics(asker: Asker) -> None:
    own, empty = sorted([topic(), topic()])
    began_s = time.time()
    ids = asker.publish(own, *range(5))
    headers = bearer(admin=["status"])
    kept, nothing = asker.page(f"/stream/status?topic={own}&topic={empty}", headers=headers)["retained"]
    assert (kept["topic"], kept["events"], kept["first_n"] + 4, kept["oldest"], kept["newest"]) == (own, 5, kept["last_n"], ids[0], ids[-1])
    assert 0 <= kept["oldest_age_ms"] <= (time.time() - began_s) * 1000 + 1
    assert kept["bytes"] > 0
    assert nothing == {**dict.fromkeys(kept), "topic": empty, "events": 0, "bytes": 0}
    assert own in asker.get(f"/stream/status?topic={own}", headers={**headers, "accept": "text/html"}).text
    assert "retained" not in asker.page("/stream/status", headers=headers)
    for other in ({}, AUTH):
        check_problem(asker.get(f"/stream/status?topic={own}", headers=other), 403, "status_not_granted")
    check_problem(asker.get("/stream/status?topic=x", headers=headers), 400, "bad_topic")
    many = "&".join(f"topic=a/b/{number}" for number in range(101))
    check_problem(asker.get(f"/stream/status?{many}", headers=headers), 400, "bad_topic")


def test_the_status_refuses_what_any_door_refuses(asker: Asker) -> None:
    check_problem(asker.get("/stream/status", headers={"authorization": "Bearer x"}), 401, "bad_token")
    check_problem(asker.get("/stream/status", headers=bearer(ttl_s=-60, admin=["status"])), 401, "token_expired")
    check_problem(asker.get("/stream/status", headers={"origin": "https://evil.example"}), 403, "origin_refused")


def test_the_status_counts_what_is_open(asker: Asker) -> None:
    def own_figures() -> Any:
        """Of the fleet, others may be on this Valkey, or have been a moment ago."""
        return asker.page("/stream/status", headers=bearer(admin=["status"]))["fleet"][0]

    own, before = topic(), own_figures()
    with asker.live(f"/stream/{own}/v1/live") as stream:
        stream.next()
        asker.publish(own, 1)
        stream.next()
        during = own_figures()
    assert during["events"] > before["events"]
    assert during["deliveries"] > before["deliveries"]
    assert during["connected"] is True


def test_a_browser_gets_the_status_as_a_page_that_loads_and_runs_nothing(asker: Asker) -> None:
    own = topic()
    with asker.live(f"/stream/{own}/v1/live") as stream:
        stream.next()
        answer = asker.get("/stream/status", headers={**bearer(admin=["status"]), "accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert own in answer.text
    assert "<script" not in answer.text
    for accept in ("*/*", "application/json", ""):
        assert asker.get("/stream/status", headers={"accept": accept}).headers["content-type"] == "application/json"


def test_a_page_shows_what_it_is_given_as_text() -> None:
    text = page(
        {"version": "<b>", "lag_ms": None, "connected": True, "fleet": [{"host": "<script>", "pid": 1}], "tail": {"a&b": []}}
    ).decode()
    assert "<b>" not in text
    assert "<script>" not in text
    assert "a&amp;b" in text


def test_a_page_shows_warnings_first_and_whole() -> None:
    text = page({"version": "0.1.0", "warnings": ["one & two", "three"]}).decode()
    assert "<ul><li>one &amp; two</li><li>three</li></ul>" in text
    assert text.index("three") < text.index("version")
    assert "warnings" not in page({"version": "0.1.0", "warnings": []}).decode()


def test_each_process_answers_for_the_fleet(tmp_path: Path) -> None:
    server = Valkey(tmp_path / "valkey").start()
    relays = [Relay(tmp_path / "relay", server.url, env) for env in ({}, {"SSE_ENCRYPTION_KEY": SEAL_KEY})]
    own, found = topic(), list[Any]()
    try:
        with asking(relays[0]) as first, asking(relays[1]) as second:
            with first.live(f"/stream/{own}/v1/live") as one, second.live(f"/stream/{own}/v1/live") as other:
                one.next()
                other.next()
                for asker in (first, second):
                    wait_for("both are counted", partial(both_are_told, asker, found))
                    status = found.pop()
                    assert status["connections"] == 2
                    assert len({each["pid"] for each in status["fleet"]}) == 2
                    (warning,) = status["warnings"]
                    assert f"different keys ({Keyring((SEAL_KEY,)).fingerprint()}, none)" in warning
            relays[1].stop()
            wait_for("it says that it ends", partial(counts, first, "processes", 1))
            server.kill()
            wait_for("it is alone", partial(counts, first, "valkey", "away"))
            alone = first.page("/stream/status", headers=bearer(admin=["status"]))
            assert (alone["processes"], alone["warnings"]) == (1, [])
    finally:
        server.kill()


def both_are_told(asker: Asker, found: list[Any]) -> bool:
    """With a stream each. One that stood still for some seconds is missing for a while."""
    status = asker.page("/stream/status", headers=bearer(admin=["status"]))
    if [each["connections"] for each in status["fleet"]] != [1, 1]:
        return False
    found.append(status)
    return True


ALIKE = Figures("a", 1, "0.1.0", fingerprint="f", retention=Kept(60, 10, 100))


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({}, []),
        ({"host": "b", "connections": 7, "draining": True}, []),
        ({"kind": "job", "fingerprint": ""}, []),
        ({"retention": None}, []),
        ({"version": "0.2.0"}, ["different versions: 0.1.0, 0.2.0"]),
        ({"fingerprint": ""}, ["different keys (f, none)"]),
        ({"fingerprint": "e"}, ["different keys (e, f)"]),
        ({"retention": Kept(60, 11, 100)}, ["RELAY_RETENTION_"]),
        ({"version": "0.2.0", "retention": Kept(61, 10, 100)}, ["different versions", "RELAY_RETENTION_"]),
    ],
)
def test_where_processes_differ_is_told(other: dict[str, Any], told: list[str]) -> None:
    found = find_differences([ALIKE, msgspec.structs.replace(ALIKE, **other), ALIKE])
    assert len(found) == len(told)
    assert all(part in warning for part, warning in zip(told, found, strict=True))


def counts(asker: Asker, name: str, value: object) -> bool:
    return bool(asker.page("/stream/status")[name] == value)


@pytest.mark.anyio
async def test_a_process_that_says_nothing_more_is_forgotten(valkey: Valkey) -> None:
    async with asyncio.timeout(LIMIT_S), open_log(valkey.url, 1, DEFAULT_RETENTION, LIMIT_S) as log:
        await log.report("killed", b"{}", DAY_MS)
        await log.report("alive", b"{}", DAY_MS)
        assert {"killed", "alive"} <= set(await log.reports(DAY_MS))
        while "killed" in await log.reports(1):
            pass
        await log.retract("alive")
        assert "alive" not in await log.reports(DAY_MS)


# Metrics


def test_metrics_are_what_prometheus_reads(asker: Asker) -> None:
    own = topic()
    asker.publish(own, 1)
    asker.page(f"/stream/{own}/v1/poll?cursor=earliest")
    answer = asker.get("/metrics", headers={})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["cache-control"] == "no-store"
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert {"relay_connections", "relay_published", "relay_polls", "relay_publish_to_socket_seconds", "relay_log_up"} <= set(families)
    published = {sample.labels["outcome"]: sample.value for sample in families["relay_published"].samples}
    assert published["new"] >= 1


def test_no_label_comes_from_outside(asker: Asker) -> None:
    own = topic()
    asker.post(f"/stream/{own}", {"event": "an-event-name-of-a-test", "data": "some-data-of-a-test"}, headers=bearer("a-subject-of-a-test"))
    text = asker.get("/metrics", headers={}).text
    for foreign in (own, own.split("/")[2], "an-event-name-of-a-test", "some-data-of-a-test", "a-subject-of-a-test"):
        assert foreign not in text


def test_metrics_can_be_guarded(guarded: Asker) -> None:
    check_problem(guarded.get("/metrics", headers={}), 401, "no_token")
    for wrong in (f"Bearer {METRICS_TOKEN}x", METRICS_TOKEN, "Bearer é", f"Bearer {METRICS_TOKEN[:-1]}", *AUTH.values()):
        answer = guarded.get("/metrics", headers={"authorization": wrong.encode()})
        check_problem(answer, 401, answer.json()["code"])
    assert guarded.get("/metrics", headers={"authorization": f"Bearer {METRICS_TOKEN}"}).status_code == 200
    assert guarded.get("/healthz", headers={}).status_code == 200
    assert guarded.get("/readyz", headers={}).status_code == 200


def test_metrics_sum_up_the_workers(guarded: Asker) -> None:
    own = topic()
    one = {"topic": own, "data": 1}
    for _ in range(8):  # over connections of their own, which either worker takes
        with Asker(str(guarded.client.base_url)) as asker:
            assert asker.post("/stream/publish", [one] * 10).status_code == 200
    text = guarded.get("/metrics", headers={"authorization": f"Bearer {METRICS_TOKEN}"}).text
    assert 'relay_published_total{outcome="new"} 80.0' in text.splitlines()


# The description


def test_the_description_is_json_without_a_page(asker: Asker) -> None:
    answer = asker.get("/schema/openapi.json", headers={})
    assert answer.status_code == 200
    assert "json" in answer.headers["content-type"]
    assert answer.json()["openapi"].startswith("3.")

"""The job in many processes: one looks at a source at a time, and whatever ends it, each item is in the log once."""

import json
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.updates.job import now_ms
from tests.asking import Asker, asking, bearer
from tests.servers import Relay, Valkey, topic
from tests.updates.jobs import LOADED, JobProcess, data, leader, status, toml
from tests.updates.upstreams import Answer, Handler, Upstream, shows, upstream
from tests.waiting import LIMIT_S, wait_for

FEED = Path(__file__).parent.parent / "data" / "quakes.geojson"


@pytest.fixture
def up() -> Iterator[Upstream]:
    with upstream() as server:
        yield server


class Jobs:
    """Processes that all would look at one source."""

    def __init__(self, folder: Path, valkey: Valkey, source: str, name: str) -> None:
        self.folder, self.valkey, self.source, self.name = folder, valkey, source, name
        self.started: list[JobProcess] = []

    def start(self) -> JobProcess:
        job = JobProcess(self.folder, self.valkey.url, self.source, name=f"job-{len(self.started)}").start()
        self.started.append(job)
        return job

    def leading(self, other_than: JobProcess | None = None) -> JobProcess:
        """The one that has the lease, once one has that isn't this one."""
        found: list[JobProcess] = []

        def look() -> bool:
            holder = leader(self.valkey, self.name)
            found[:] = [job for job in self.started if job.process and f":{job.process.pid}:" in holder and job is not other_than]
            return bool(found)

        wait_for("one leads", look)
        return found[0]

    def end(self) -> None:
        for job in self.started:
            job.kill()
        for job in self.started:
            assert "Traceback" not in job.log(), job.log()


@pytest.fixture
def jobs(tmp_path: Path, valkey: Valkey, up: Upstream) -> Iterator[Jobs]:
    name = topic().replace("/", "-")
    found = Jobs(tmp_path, valkey, toml(name=name, url=up.url, topic=topic_of(name)), name)
    try:
        yield found
    finally:
        found.end()


def topic_of(name: str) -> str:
    return name.replace("-", "/")


def jobs_of_fleet(valkey: Valkey) -> set[int]:
    """The processes that say of themselves that they are an update job alone."""
    reports = valkey.ask("HGETALL", "{relay:0}:fleet").values()
    said = [json.loads(report.partition(b" ")[2]) for report in reports]
    return {figures["pid"] for figures in said if figures["kind"] == "job"}


def test_a_leader_that_stops_is_replaced_at_once_and_one_that_is_killed_soon(jobs: Jobs, up: Upstream, valkey: Valkey) -> None:
    jobs.start()
    first = jobs.leading()
    up.shows({"id": 1, "v": 1}, etag='"1"')
    jobs.start()
    assert first.process
    pid = first.process.pid
    wait_for("the fleet is told of it", lambda: pid in jobs_of_fleet(valkey))
    assert first.stop() == 0
    assert pid not in jobs_of_fleet(valkey)
    assert f":{pid}:" not in leader(valkey, jobs.name)  # it has left its lease, whose life isn't over
    second = jobs.leading(first)
    # It goes on from where the first was: the upstream's answer is known to it.
    wait_for("it has looked", lambda: up.asked[-1].get("if-none-match") == '"1"')
    jobs.start()
    second.kill()
    jobs.leading(second)
    up.shows({"id": 1, "v": 1}, {"id": 2, "v": 1})
    assert data(valkey, topic_of(jobs.name)) == [{"id": 1, "v": 1}, {"id": 2, "v": 1}]


def test_a_leader_that_is_paused_is_replaced_and_writes_nothing_when_it_goes_on(jobs: Jobs, up: Upstream, valkey: Valkey) -> None:
    asked, answered = threading.Event(), threading.Event()

    def late(handler: Handler) -> None:
        """Answers something else, and only when the one who asked has been replaced."""
        asked.set()
        assert answered.wait(LIMIT_S)
        body = shows({"id": "late", "v": 1}).body
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    jobs.start()
    first = jobs.leading()
    up.shows({"id": 1, "v": 1})
    up.answer = Answer(write=late)
    assert asked.wait(LIMIT_S)
    first.pause()
    known = first.log().count("looks at it no longer")
    up.answer = shows({"id": 2, "v": 1})
    answered.set()  # it is in the paused one's socket now
    jobs.start()
    jobs.leading(first)
    up.shows({"id": 2, "v": 1}, {"id": 3, "v": 1})
    first.resume()
    wait_for("it knows that it was replaced", lambda: first.log().count("looks at it no longer") > known)
    up.shows({"id": 3, "v": 1}, {"id": 4, "v": 1})
    assert [item["id"] for item in data(valkey, topic_of(jobs.name))] == [1, 2, 3, 4]


def revision(quake: dict[str, Any]) -> tuple[str, int]:
    return quake["id"], quake["properties"]["updated"]


def test_each_quake_and_each_revision_is_in_the_log_once_whoever_is_killed(tmp_path: Path, valkey: Valkey, up: Upstream) -> None:
    """The feed's real answer in growing pieces, newest first as it gives them, in which quakes get revised; the process that looks at
    it is killed and replaced five times meanwhile: as it asks, or with a part of its events in the log and none remembered."""
    chance = random.Random(5)
    quakes: list[dict[str, Any]] = json.loads(FEED.read_bytes())["features"][::-1]
    mark = topic().split("/")[2]
    keys = {"items": "/features", "version": "/properties/updated", "event": "quake", "topic": f"quakes/{mark}/{{/properties/net}}"}
    jobs = Jobs(tmp_path, valkey, toml(name=mark, url=up.url, **keys), mark)
    topics = {f"quakes/{mark}/{quake['properties']['net']}" for quake in quakes}
    expected: Counter[tuple[str, int]] = Counter()
    shown: list[dict[str, Any]] = []

    def in_log() -> Counter[tuple[str, int]]:
        return Counter(revision(item) for name in topics for item in data(valkey, name))

    def grow(part: list[dict[str, Any]]) -> None:
        for place in chance.sample(range(len(shown)), min(25, len(shown))):
            quake = shown[place]
            properties = {**quake["properties"], "updated": quake["properties"]["updated"] + chance.randrange(1, 10_000)}
            shown[place] = {**quake, "properties": properties}
        shown.extend(part)
        expected.update({revision(item): 1 for item in shown if revision(item) not in expected})

    def look(victim: JobProcess | None, *, when_it_asks: bool) -> None:
        before = len(in_log())
        if victim and when_it_asks:
            up.answer = Answer(write=lambda _: victim.kill())
            wait_for("it asks, and is killed", lambda: victim.process and victim.process.poll() is not None)
        up.answer = Answer(json.dumps({"type": "FeatureCollection", "features": shown[::-1]}).encode())
        if victim:
            wait_for("some of it is in the log", lambda: len(in_log()) > before)
            victim.kill()
            jobs.start()
        wait_for("all of it is in the log", lambda: len(in_log()) >= len(expected))

    try:
        jobs.start()
        jobs.start()
        for step in range(10):
            grow(quakes[step * 40 : step * 40 + 40])
            look(jobs.leading() if step % 2 else None, when_it_asks=step % 4 == 1)
        assert len(shown) == 400
        assert in_log() == expected
        for name in topics:
            updated: dict[str, int] = {}
            for item in data(valkey, name):  # each quake's revisions, in their order
                assert updated.get(item["id"], 0) < item["properties"]["updated"]
                updated[item["id"]] = item["properties"]["updated"]
        assert status(valkey, mark)["appended"] <= len(expected)
    finally:
        jobs.end()


# In relays


@pytest.fixture
def relay(tmp_path: Path, valkey: Valkey, up: Upstream) -> Iterator[Relay]:
    """Of two workers, with a source."""
    path = tmp_path / "sources.toml"
    # A lease that is lost by no stall, and the time to leave it: a worker that takes too long to stop is killed.
    env = {"RELAY_SOURCES": str(path), "RELAY_WORKERS": "2", "RELAY_LEASE_SECONDS": str(LIMIT_S), "RELAY_DRAIN_SECONDS": str(LIMIT_S)}
    process = Relay(tmp_path, valkey.url, env)
    name = f"relay-{process.port}"
    path.write_text(toml(name=name, url=up.url, topic=f"tests/relay/{process.port}"))
    try:
        yield process
    finally:
        if process.process:
            process.kill()
    if process.process:
        assert "Traceback" not in process.log(), process.log()


def test_one_worker_of_a_relay_looks_and_any_of_them_tells_how_it_goes(relay: Relay, up: Upstream, valkey: Valkey) -> None:
    name, began_ms = f"relay-{relay.port}", now_ms()
    with asking(relay) as asker:
        up.shows({"id": 1, "v": 1}, {"v": 2})
        assert data(valkey, f"tests/relay/{relay.port}") == [{"id": 1, "v": 1}]
        for _ in range(6):  # over connections of their own, which either worker takes
            with Asker(relay.url) as other:
                told = {one["name"]: one for one in other.page("/stream/status", headers=bearer(admin=["status"]))["sources"]}[name]
                assert told["leader"] == leader(valkey, name)
                assert (told["kind"], told["appended"], told["error"], told["duplicates"]) == ("http", 1, None, 0)
                assert told["items_seen"] >= 2
                assert told["skipped"] >= 1
                assert 0 <= told["lag_ms"] < LIMIT_S * 1000
                assert began_ms <= told["last_look"] <= now_ms()
                assert name not in other.get("/stream/status").text
        metrics = asker.get("/metrics", headers={}).text.splitlines()
        assert f'relay_source_items_total{{outcome="appended",source="{name}"}} 1.0' in metrics
        wait_for("the metrics say who leads", lambda: f'relay_source_leads{{source="{name}"}} 1.0' in asker.get("/metrics").text)
    assert relay.log().count("looks at it now") == 1


def answers_from_two(relay: Relay) -> bool:
    """Whether new connections, which either worker takes, are answered by both."""
    pids = set()
    for _ in range(8):
        with Asker(relay.url) as asker:
            pids.add(asker.page("/stream/status", headers=bearer(admin=["status"]))["pid"])
    return len(pids) == 2


def test_at_a_hangup_a_relay_reads_the_file_again_and_keeps_its_streams(relay: Relay, up: Upstream, valkey: Valkey) -> None:
    path = Path(relay.env["RELAY_SOURCES"])
    own = topic()
    with asking(relay) as asker, upstream() as second:
        assert relay.process
        up.shows({"id": 1, "v": 1}, etag='"1"')
        wait_for("both workers serve", lambda: answers_from_two(relay))
        asked = len(up.asked)
        with asker.live(f"/stream/{own}/v1/live") as stream:
            stream.next()
            both = path.read_text() + toml(name=f"more-{relay.port}", url=second.url, topic=own)
            path.write_text(both)
            relay.process.send_signal(1)
            wait_for("both workers have read it", lambda: relay.log().count(f"2{LOADED}") == 2)
            second.shows({"id": 7, "v": 1})
            assert stream.next().json() == {"id": 7, "v": 1}
            # A file with mistakes changes nothing.
            path.write_text(both + "[[source]]\n")
            relay.process.send_signal(1)
            wait_for("both workers have read this too", lambda: relay.log().count("source 3: kind is missing") == 2)
            second.shows({"id": 8, "v": 1})
            assert stream.next().json() == {"id": 8, "v": 1}
        up.shows({"id": 1, "v": 1}, {"id": 2, "v": 1})
        assert [item["id"] for item in data(valkey, f"tests/relay/{relay.port}")] == [1, 2]
        assert len(up.asked) > asked
        assert relay.stop() == 0
    assert not leader(valkey, f"relay-{relay.port}")  # it has left its lease, whose life isn't over


def test_a_relay_with_mistakes_in_its_sources_does_not_start(relay: Relay) -> None:
    Path(relay.env["RELAY_SOURCES"]).write_text('[[source]]\nname = "a"\nkind = "http"\n')
    done = run("serve", relay.environ())
    assert done.returncode == 2
    assert "source 1 (a): url is missing" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_job_without_sources_or_a_log_is_told(relay: Relay) -> None:
    environ = {name: value for name, value in relay.environ().items() if name != "RELAY_VALKEY_URL"}
    for missing, told in (("RELAY_SOURCES", "RELAY_SOURCES is not set"), ("RELAY_VALKEY_URL", "no relay runs in")):
        done = run("job", {name: value for name, value in environ.items() if name != missing})
        assert done.returncode == 2
        assert told in done.stderr


def run(command: str, environ: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "relay", command], env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )

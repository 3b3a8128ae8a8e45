"""`relay serve` as a process: how it ends, and that a second one in its place is refused."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from relay import app
from relay.app import Relay as Parts
from relay.auth import Identity
from relay.settings import read_settings
from tests.asking import Asker, asking, check_bye, check_problem, start_waiting_poll
from tests.servers import Relay, Valkey, free_port, topic, wait_until_listening
from tests.waiting import LIMIT_S, wait_for

SERVE = [sys.executable, "-m", "relay", "serve"]
# Not how long it takes, since the first stream is ended at once: what a busy machine may take, before a worker is killed.
SLOW_STOP = {"RELAY_DRAIN_SECONDS": str(LIMIT_S)}


def run(*arguments: str, env: dict[str, str], limit_s: float = LIMIT_S) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "relay", *arguments], env=env, capture_output=True, text=True, timeout=limit_s, check=False
    )


@pytest.mark.parametrize(("number", "log_format", "topics"), [(signal.SIGTERM, "text", 1), (signal.SIGINT, "json", 2)])
def test_a_relay_that_is_stopped_says_bye_with_the_streams_place(
    tmp_path: Path, valkey: Valkey, number: signal.Signals, log_format: str, topics: int
) -> None:
    relay = Relay(tmp_path, valkey.url, {**SLOW_STOP, "RELAY_LOG_FORMAT": log_format})
    own = topic()
    with asking(relay) as asker:
        with asker.live(f"/stream/{own}/v1/live" if topics == 1 else f"/stream/v1/live?topic={own}&topic={topic()}") as stream:
            hello = stream.next()
            (id,) = asker.publish(own, 1)
            event = stream.next()
            assert relay.process
            relay.process.send_signal(number)
            (bye,) = stream.rest()
            assert (bye.name, bye.json()["reason"]) == ("bye", "drain")
            assert bye.last_event_id == event.last_event_id != hello.last_event_id
            check_bye(stream, bye)
        if topics == 1:
            assert event.last_event_id == id
        assert relay.process.wait(LIMIT_S) == 0
    assert "Traceback" not in relay.log()
    lines = relay.log().splitlines()
    if log_format == "json":
        assert {json.loads(line)["service"] for line in lines} == {"STREAM"}
    else:
        assert [line for line in lines if not line.startswith("[STREAM")] == []


def test_a_relay_that_was_stopped_by_the_terminal_ends_once_it_goes_on(tmp_path: Path, valkey: Valkey) -> None:
    relay = Relay(tmp_path, valkey.url, SLOW_STOP)
    with asking(relay):
        assert relay.process
        relay.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, relay.process.pid, os.WSTOPPED)  # until it stands still
        relay.process.send_signal(signal.SIGTERM)
        relay.process.send_signal(signal.SIGCONT)
        assert relay.process.wait(LIMIT_S) == 0


def test_a_poll_that_waits_is_answered_when_the_relay_stops(tmp_path: Path, valkey: Valkey) -> None:
    relay = Relay(tmp_path, valkey.url, SLOW_STOP)
    own = topic()
    with asking(relay) as asker:
        (id,) = asker.publish(own, 1)
        poll, found = start_waiting_poll(asker, f"/stream/{own}/v1/poll?cursor={id}&wait=25")
        assert relay.stop() == 0
        poll.join(LIMIT_S)
        (page,) = found
        assert (page["events"], page["resume"], page["cursor"]) == ([], "exact", id)
    assert "Traceback" not in relay.log()


def test_without_streams_a_relay_ends_at_once(tmp_path: Path, valkey: Valkey) -> None:
    relay = Relay(tmp_path, valkey.url, {"RELAY_DRAIN_SECONDS": "600"}).start()
    assert relay.stop() == 0
    assert "Traceback" not in relay.log()


# Starting


def test_a_second_relay_on_the_same_port_is_refused(relay: Relay, tmp_path: Path) -> None:
    second = Relay(tmp_path, relay.valkey_url, port=relay.port)
    result = run("serve", env=second.environ())
    assert result.returncode == 2
    assert f"127.0.0.1:{relay.port}" in result.stderr
    assert "RELAY_PORT" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_that_is_taken_by_something_else_is_told(tmp_path: Path, valkey: Valkey) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run("serve", env=Relay(tmp_path, valkey.url, port=taken.getsockname()[1]).environ())
    assert result.returncode == 2
    assert "RELAY_PORT" in result.stderr


def test_a_second_relay_on_the_same_data_is_refused(tmp_path: Path) -> None:
    """Both with a Valkey of their own in one directory; the first one's events outlive it."""
    first = Relay(tmp_path)
    own = topic()
    with asking(first) as asker:
        asker.publish(own, 1)
        result = run("serve", env={**first.environ(), "RELAY_PORT": str(free_port())})
        assert result.returncode == 2
        assert "RELAY_DATA_DIR" in result.stderr
        assert "Traceback" not in result.stderr
        assert first.stop() == 0
        first.start()
        assert asker.log(own) == [1]
        assert first.stop() == 0
    assert "Traceback" not in first.log()


def test_another_number_of_shards_is_refused(tmp_path: Path, valkey: Valkey) -> None:
    result = run("serve", env={**Relay(tmp_path, valkey.url).environ(), "RELAY_SHARDS": "2"})
    assert result.returncode == 2
    assert "RELAY_SHARDS=1" in result.stderr


def test_mistakes_in_settings_are_each_told_and_end_it(tmp_path: Path) -> None:
    env = {**Relay(tmp_path).environ(), "RELAY_JWT_SECRET": "short-secret", "RELAY_WORKERS": "none", "RELAY_WORKER": "1"}
    result = run("serve", env=env)
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("relay: RELAY_") for line in lines)
    assert "short-secret" not in result.stderr


def test_a_misspelt_setting_is_told_of_at_the_start(tmp_path: Path, valkey: Valkey) -> None:
    relay = Relay(tmp_path, valkey.url, {"RELAY_RETENTION_SECOND": "5", "RELAY_PORT": ""})
    env = {name: value for name, value in relay.environ().items() if name != "RELAY_PORT"}
    process = subprocess.Popen(
        SERVE,
        env={**env, "PORT": str(relay.port)},  # as platforms say it
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stderr
        lines = [process.stderr.readline().decode() for _ in range(3)]  # the Valkey of the tests has its line too
        assert any("RELAY_RETENTION_SECOND is no setting" in line and "RELAY_RETENTION_SECONDS" in line for line in lines)
        assert any(f"http://127.0.0.1:{relay.port}" in line for line in lines)
        wait_until_listening(relay.port, process)
    finally:
        process.terminate()
        process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0


@pytest.mark.anyio
async def test_nobody_is_served_before_the_logs_end_and_the_denials_are_known(
    tmp_path: Path, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server takes requests once the application's lifespan has begun."""
    monkeypatch.setattr(app, "FIRST_LOOK_S", LIMIT_S)
    worker = Parts(read_settings(Relay(tmp_path, valkey.url).environ()))
    async with asyncio.timeout(LIMIT_S), worker.lifespan(worker.app().app):
        assert worker.hub.ready
        await worker.standing.denials(Identity("ada"), ["a/b/c"])  # else it raises


@pytest.mark.anyio
async def test_a_log_that_says_nothing_is_not_waited_for(tmp_path: Path, valkey: Valkey) -> None:
    silent = Valkey(tmp_path / "silent").start()
    silent.pause()
    worker = Parts(read_settings(Relay(tmp_path, silent.url).environ()))
    try:
        async with asyncio.timeout(LIMIT_S), worker.lifespan(worker.app().app):
            assert not worker.hub.ready
    finally:
        silent.kill()


def test_a_relay_whose_log_is_away_starts_and_waits_for_it(tmp_path: Path) -> None:
    valkey = Valkey(tmp_path / "valkey")
    relay = Relay(tmp_path / "relay", valkey.url)
    relay.directory.mkdir()
    with relay.log_path.open("wb") as log:
        relay.process = subprocess.Popen(SERVE, env=relay.environ(), stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until_listening(relay.port, relay.process)
        with Asker(relay.url) as asker:
            assert asker.get("/readyz").json() == {"status": "ready", "valkey": "away"}
            with asker.live(f"/stream/{topic()}/v1/live") as stream:
                (bye,) = stream.rest()
                assert bye.json()["reason"] == "unavailable"
            check_problem(asker.get(f"/stream/{topic()}/v1/poll"), 503, "unavailable")
            valkey.start()
            wait_for("the log is here", relay.is_ready)
            assert asker.publish(topic(), 1)
        assert relay.stop() == 0
        assert "Traceback" not in relay.log()
    finally:
        relay.kill()
        if valkey.process:
            valkey.kill()


def test_a_relay_takes_away_the_figures_that_a_killed_one_left(tmp_path: Path, valkey: Valkey) -> None:
    env = {"TMPDIR": str(tmp_path)}

    def folders() -> set[Path]:
        return set(tmp_path.glob("edge-relay-figures-*"))

    (tmp_path / "edge-relay-figures-is-a-file").touch()
    others = folders()
    with asking(Relay(tmp_path, valkey.url, env)):
        living = folders() - others
        killed = Relay(tmp_path, valkey.url, env)
        with asking(killed):
            left = folders() - living - others
        assert len(living) == len(left) == 1
        with asking(Relay(tmp_path, valkey.url, env)):
            assert living < folders()
            assert not left & folders()


def test_a_valkey_that_may_lose_events_is_told_at_the_start(tmp_path: Path) -> None:
    server = Valkey(tmp_path / "valkey", arguments=("--maxmemory-policy", "allkeys-lru")).start()
    try:
        with asking(relay := Relay(tmp_path, server.url, {"RELAY_SHARDS": "3"})):
            pass
    finally:
        server.kill()
    warnings = [line for line in relay.log().splitlines() if "WARNING" in line or "Valkey: " in line]
    assert [line for line in warnings if "maxmemory-policy is allkeys-lru" in line and "CONFIG SET maxmemory-policy noeviction" in line]
    assert len([line for line in warnings if "append-only file" in line]) == 1

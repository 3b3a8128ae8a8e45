"""The OpenAPI document: it is valid, it is whole, and it is what the server really answers."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import msgspec
import openapi_spec_validator
import pytest

from fallback.app import create_app
from relay.app import Relay as Parts
from relay.endpoints.publish import Body, Item
from relay.errors import Forbidden, Malformed, TooMany, Unauthorized
from relay.openapi import PATH, PROBLEMS
from relay.settings import read_settings
from tests.servers import SEAL_KEY, SECRET, Relay, Valkey, token
from tests.streams import Parser
from tests.waiting import LIMIT_S

ROOT = Path(__file__).parent.parent
METHODS = ("get", "post", "put", "patch", "delete", "head", "trace")
CONTROL_EVENTS = {"hello": "Hello", "gap": "Gap", "sync": "Sync", "bye": "Bye"}
JSON = {"content-type": "application/json"}


class Document:
    """The served document, with what it says of an operation and of a value."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content
        self.operations: dict[str, dict[str, Any]] = {}
        self.paths: dict[str, tuple[str, str]] = {}
        for path, item in content["paths"].items():
            for method in METHODS:
                if method in item:
                    self.operations[item[method]["operationId"]] = item[method]
                    self.paths[item[method]["operationId"]] = (method, path)

    def resolve(self, value: Any) -> Any:
        while "$ref" in value:
            found: Any = self.content
            for part in value["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            value = found
        return value

    def validate(self, schema: dict[str, Any], value: Any) -> None:
        whole = {**schema, "components": self.content["components"]}
        jsonschema.Draft202012Validator(whole).validate(value)

    def response(self, operation: str, status: int) -> dict[str, Any]:
        found: dict[str, Any] = self.resolve(self.operations[operation]["responses"][str(status)])
        return found

    def check(self, operation: str, answer: httpx.Response) -> None:
        """That an answer is one of those which the operation has."""
        response = self.response(operation, answer.status_code)
        for name, header in response.get("headers", {}).items():
            assert name.lower() in answer.headers, name
            schema = header["schema"]
            value = answer.headers[name]
            self.validate(schema, int(value) if schema.get("type") == "integer" else value)
        if not response.get("content"):
            assert answer.content == b""
            return
        media_type, content = next(iter(response["content"].items()))  # JSON, where a browser would get a page
        assert answer.headers["content-type"] == media_type
        if "json" in media_type:
            self.validate(content["schema"], answer.json())
            if media_type == "application/problem+json":
                self.check_problem(operation, answer.json(), answer.status_code)

    def check_problem(self, operation: str, problem: dict[str, Any], status: int) -> None:
        assert problem["status"] == status
        assert f"`{problem['code']}`" in self.response(operation, status)["description"]


@pytest.fixture(scope="session")
def document(relay: Relay) -> Document:
    answer = httpx.get(f"{relay.url}{PATH}", timeout=LIMIT_S)
    assert answer.status_code == 200
    return Document(answer.json())


@pytest.fixture
def parts() -> Parts:
    """The app in this process, with a log that it never asks."""
    return Parts(read_settings({"RELAY_JWT_SECRET": SECRET, "RELAY_VALKEY_URL": "valkey://127.0.0.1:1/0"}))


# The document by itself


def test_the_document_is_valid_openapi_3_1(document: Document) -> None:
    assert document.content["openapi"].startswith("3.1.")
    openapi_spec_validator.validate(document.content, cls=openapi_spec_validator.OpenAPIV31SpecValidator)


def test_every_route_is_in_the_document(document: Document, parts: Parts) -> None:
    described = {(path, method.upper()) for method, path in document.paths.values()}
    served = {
        (route.path_format, method)
        for route in parts.app().app.routes
        for handler in getattr(route, "route_handlers", ())
        for method in handler.http_methods
        if method != "OPTIONS" and not route.path.startswith("/schema")
    }
    assert described == served | {(PATH, "GET")}


def test_every_operation_is_described(document: Document) -> None:
    for name, operation in document.operations.items():
        assert operation["summary"], name
        assert len(operation["description"]) > 40, name
        assert set(operation["tags"]) <= {tag["name"] for tag in document.content["tags"]}, name
        for status, response in operation["responses"].items():
            assert document.resolve(response)["description"], (name, status)


def test_every_parameter_is_described_and_each_path_names_its_own(document: Document) -> None:
    for name, operation in document.operations.items():
        parameters = [document.resolve(parameter) for parameter in operation["parameters"]]
        assert all(parameter["description"] for parameter in parameters), name
        in_path = {parameter["name"] for parameter in parameters if parameter["in"] == "path"}
        assert in_path == {part[1:-1] for part in document.paths[name][1].split("/") if part.startswith("{")}, name


def examples(document: Document) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Every example with its schema, wherever the document has one."""

    def contents(where: str, holder: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], Any]]:
        for content in holder.get("content", {}).values():
            if "example" in content:
                yield where, content["schema"], content["example"]
            for example in content.get("examples", {}).values():
                yield where, content["schema"], example["value"]

    for name, operation in document.operations.items():
        yield from contents(name, operation.get("requestBody", {}))
        for status, response in operation["responses"].items():
            yield from contents(f"{name} {status}", document.resolve(response))
        for parameter in map(document.resolve, operation["parameters"]):
            if "example" in parameter:
                yield f"{name} {parameter['name']}", parameter["schema"], parameter["example"]
            if "default" in parameter["schema"]:
                yield f"{name} {parameter['name']}", parameter["schema"], parameter["schema"]["default"]
    for name, schema in document.content["components"]["schemas"].items():
        for example in schema.get("examples", []):
            yield name, schema, example


def test_every_example_validates_against_its_schema(document: Document) -> None:
    checked = set()
    for where, schema, example in examples(document):
        document.validate(schema, example)
        checked.add(where)
    bodies = {name for name, operation in document.operations.items() if "requestBody" in operation}
    answers = {
        f"{name} {status}"
        for name, operation in document.operations.items()
        for status, response in operation["responses"].items()
        if name != "openapi" and document.resolve(response).get("content")
    }
    assert bodies | answers <= checked, "each body and each answer has an example"


def test_the_example_of_a_stream_is_one(document: Document) -> None:
    parser = Parser()
    content = document.response("liveTopic", 200)["content"]["text/event-stream"]
    blocks = parser.feed(content["example"].encode())
    assert [block.name for block in blocks] == ["hello", "update", "bye"]
    for block in blocks:
        document.validate({"$ref": "#/components/schemas/Cursor"}, block.last_event_id)
        if block.name in CONTROL_EVENTS:
            document.validate({"$ref": f"#/components/schemas/{CONTROL_EVENTS[block.name]}"}, block.json())


@pytest.mark.parametrize(("name", "struct"), [("NewEvent", Body), ("NewItem", Item)])
def test_the_schema_of_a_body_has_the_members_that_are_decoded(document: Document, name: str, struct: type[msgspec.Struct]) -> None:
    schema = document.content["components"]["schemas"][name]
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    assert set(schema["properties"]) == set(fields)
    assert set(schema["required"]) == {name for name, field in fields.items() if field.required}
    assert schema["properties"]["event"]["default"] == fields["event"].default


# Raised with a code of their own each time.
NEVER_BARE = (Malformed, Unauthorized, Forbidden, TooMany)


def test_every_code_in_the_source_is_described_and_no_other() -> None:
    """Codes are written where errors are raised; this finds them there."""
    used = {kind.code for kind in PROBLEMS if kind not in NEVER_BARE}
    for path in [*ROOT.glob("relay/**/*.py"), *ROOT.glob("fallback/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Name) and node.func.id == "PublishError" and isinstance(node.args[1], ast.Constant):
                used.add(str(node.args[1].value))
            for keyword in node.keywords:
                if keyword.arg != "code":
                    continue
                if isinstance(keyword.value, ast.Constant):
                    used.add(str(keyword.value.value))
                elif ast.unparse(keyword.value) == "f'bad_{name}'":
                    used |= {"bad_k", "bad_limit", "bad_heartbeat"}
    assert {code for _, codes in PROBLEMS.values() for code in codes} == used


@pytest.mark.anyio
async def test_the_polling_function_serves_its_part_of_the_document(document: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_JWT_SECRET", SECRET)
    monkeypatch.setenv("RELAY_VALKEY_URL", "valkey://127.0.0.1:1/0")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=create_app()), base_url="http://function") as client:
        part = (await client.get(PATH)).json()
    openapi_spec_validator.validate(part, cls=openapi_spec_validator.OpenAPIV31SpecValidator)
    own = {path for path in document.content["paths"] if path.endswith("/poll")} | {"/stream/keys", "/stream/poller.js", PATH}
    assert part["paths"] == {path: document.content["paths"][path] for path in own}


def test_no_page_of_the_schema_path_loads_foreign_scripts(relay: Relay) -> None:
    for path in ("/schema", "/schema/openapi.json"):
        answer = httpx.get(relay.url + path, timeout=LIMIT_S)
        assert answer.headers["content-type"] == "application/vnd.oai.openapi+json"
        assert "cache-control" in answer.headers
    for path in ("/schema/redoc", "/schema/swagger", "/schema/elements", "/schema/index.html", "/schema/a/b"):
        answer = httpx.get(relay.url + path, timeout=LIMIT_S)
        assert answer.status_code == 404, path
        assert answer.headers["content-type"] == "application/problem+json", path
        assert answer.json()["code"] == "not_found", path


# What the server answers

TOPIC = "tests/openapi/1"
READABLE = {"authorization": f"Bearer {token()}"}
INACTIVE = {"authorization": f"Bearer {token(status='inactive')}"}
UNGRANTED = {"authorization": f"Bearer {token(subscribe=[], publish=[])}"}
ADMIN = {"authorization": f"Bearer {token(admin=['status'])}"}
REVOKER = {"authorization": f"Bearer {token(admin=['revoke'])}"}
GOOD = json.dumps({"data": 1})
ITEM = {"topic": TOPIC, "data": 1}
LARGE = json.dumps({"data": "x" * 80_000})

# Operation, status, path, and what else the request has.
READS: list[tuple[str, int, str, dict[str, Any]]] = [
    (operation, status, path + more, {"headers": headers})
    for operation, path in [
        ("liveTopic", f"/stream/{TOPIC}/v1/live?k=1"),
        ("live", f"/stream/v1/live?k=1&topic={TOPIC}&topic=tests/openapi/2"),
        ("pollTopic", f"/stream/{TOPIC}/v1/poll?k=1"),
        ("poll", f"/stream/v1/poll?k=1&topic={TOPIC}&topic=tests/openapi/2"),
    ]
    for status, more, headers in [
        (200, "", READABLE),
        (400, "&cursor=nonsense", READABLE),
        (401, "", {}),
        (402, "", INACTIVE),
        (403, "", UNGRANTED),
    ]
]
ANSWERS = [
    *READS,
    ("liveTopic", 404, f"/stream/{TOPIC}/v9/live", {"headers": READABLE}),
    ("live", 404, f"/stream/v9/live?topic={TOPIC}", {"headers": READABLE}),
    ("pollTopic", 404, f"/stream/{TOPIC}/v9/poll", {"headers": READABLE}),
    ("poll", 404, f"/stream/v9/poll?topic={TOPIC}", {"headers": READABLE}),
    ("publish", 201, f"/stream/{TOPIC}", {"content": GOOD, "headers": READABLE | JSON}),
    ("publish", 400, f"/stream/{TOPIC}", {"content": "{", "headers": READABLE | JSON}),
    ("publish", 401, f"/stream/{TOPIC}", {"content": GOOD, "headers": JSON}),
    ("publish", 403, f"/stream/{TOPIC}", {"content": GOOD, "headers": UNGRANTED | JSON}),
    ("publish", 413, f"/stream/{TOPIC}", {"content": LARGE, "headers": READABLE | JSON}),
    ("publish", 415, f"/stream/{TOPIC}", {"content": GOOD, "headers": READABLE | {"content-type": "text/plain"}}),
    ("publish", 422, f"/stream/{TOPIC}", {"content": '{"data":1,"event":"hello"}', "headers": READABLE | JSON}),
    ("publishBatch", 200, "/stream/publish", {"json": [ITEM, ITEM], "headers": READABLE}),
    ("publishBatch", 400, "/stream/publish", {"content": "[", "headers": READABLE | JSON}),
    ("publishBatch", 401, "/stream/publish", {"json": [ITEM]}),
    ("publishBatch", 403, "/stream/publish", {"json": [ITEM], "headers": UNGRANTED}),
    ("publishBatch", 413, "/stream/publish", {"json": [ITEM] * 1001, "headers": READABLE}),
    ("publishBatch", 415, "/stream/publish", {"content": "[]", "headers": READABLE | {"content-type": "text/plain"}}),
    ("publishBatch", 422, "/stream/publish", {"json": [ITEM, {**ITEM, "topic": "none"}], "headers": READABLE}),
    ("keys", 200, f"/stream/keys?topic={TOPIC}", {"headers": READABLE}),
    ("keys", 400, "/stream/keys?topic=none", {"headers": READABLE}),
    ("keys", 401, f"/stream/keys?topic={TOPIC}", {}),
    ("keys", 402, f"/stream/keys?topic={TOPIC}", {"headers": INACTIVE}),
    ("keys", 403, f"/stream/keys?topic={TOPIC}", {"headers": UNGRANTED}),
    ("ticket", 200, "/stream/ticket", {"headers": READABLE}),
    ("ticket", 200, "/stream/ticket", {"json": {"topics": [TOPIC]}, "headers": READABLE}),
    ("ticket", 400, "/stream/ticket", {"content": "{", "headers": READABLE | JSON}),
    ("ticket", 401, "/stream/ticket", {}),
    ("ticket", 403, "/stream/ticket", {"json": {"topics": [TOPIC]}, "headers": UNGRANTED}),
    ("ticket", 413, "/stream/ticket", {"content": LARGE, "headers": READABLE | JSON}),
    ("ticket", 415, "/stream/ticket", {"content": "{}", "headers": READABLE | {"content-type": "text/plain"}}),
    ("ticket", 422, "/stream/ticket", {"json": {"topics": []}, "headers": READABLE}),
    ("revoke", 200, "/stream/revoke", {"json": {"sub": "nobody"}, "headers": REVOKER}),
    ("revoke", 200, "/stream/revoke", {"json": {"sub": "nobody", "undo": True}, "headers": REVOKER}),
    ("revoke", 400, "/stream/revoke", {"content": "{", "headers": REVOKER | JSON}),
    ("revoke", 401, "/stream/revoke", {"json": {"sub": "nobody"}}),
    ("revoke", 403, "/stream/revoke", {"json": {"sub": "nobody"}, "headers": READABLE}),
    ("revoke", 413, "/stream/revoke", {"content": LARGE, "headers": REVOKER | JSON}),
    ("revoke", 415, "/stream/revoke", {"content": "{}", "headers": REVOKER | {"content-type": "text/plain"}}),
    ("revoke", 422, "/stream/revoke", {"json": {}, "headers": REVOKER}),
    ("status", 200, "/stream/status", {}),
    ("status", 200, "/stream/status", {"headers": ADMIN}),
    ("status", 400, "/stream/status?token=%FF", {}),
    ("status", 401, "/stream/status", {"headers": {"authorization": "Bearer nonsense"}}),
    ("status", 403, "/stream/status", {"headers": {"origin": "https://elsewhere.example"}}),
    ("healthz", 200, "/healthz", {}),
    ("readyz", 200, "/readyz", {}),
    ("metrics", 200, "/metrics", {}),
    ("client", 200, "/stream/client.js", {}),
    ("clientTypes", 200, "/stream/client.d.ts", {}),
    ("poller", 200, "/stream/poller.js", {}),
    ("openapi", 200, PATH, {}),
]
# Answers that take more than one request, or another relay: the tests below.
OTHERWISE = {
    ("publish", 200),
    ("publish", 408),
    ("publishBatch", 408),
    ("keys", 404),
    ("keys", 429),
    ("keys", 503),
    ("ticket", 408),
    ("ticket", 429),
    ("ticket", 503),
    ("revoke", 408),
    ("revoke", 429),
    ("revoke", 503),
    ("client", 304),
    ("clientTypes", 304),
    ("poller", 304),
    ("pollTopic", 304),
    ("poll", 304),
    ("pollTopic", 429),
    ("poll", 429),
    ("publish", 429),
    ("publishBatch", 429),
    ("metrics", 401),
    ("pollTopic", 503),
    ("poll", 503),
    ("publish", 503),
    ("publishBatch", 503),
    ("readyz", 503),
}


def ask(document: Document, url: str, operation: str, path: str, **request: Any) -> httpx.Response:
    """One answer, checked against the document. A stream is closed when its headers are there."""
    method = document.paths[operation][0].upper()
    with httpx.Client(base_url=url, timeout=LIMIT_S) as client, client.stream(method, path, **request) as answer:
        if answer.headers.get("content-type") == "text/event-stream":
            response = document.response(operation, answer.status_code)
            assert list(response["content"]) == ["text/event-stream"]
            for name, header in response["headers"].items():
                document.validate(header["schema"], answer.headers[name])
            return answer
        answer.read()
    document.check(operation, answer)
    return answer


@pytest.mark.parametrize(("operation", "status", "path", "request_"), ANSWERS, ids=[f"{a[0]}-{a[1]}" for a in ANSWERS])
def test_the_server_answers_as_described(
    document: Document, relay: Relay, operation: str, status: int, path: str, request_: dict[str, Any]
) -> None:
    assert ask(document, relay.url, operation, path, **request_).status_code == status


def test_every_documented_status_is_asked_for_here(document: Document) -> None:
    documented = {(name, int(status)) for name, operation in document.operations.items() for status in operation["responses"]}
    assert documented == {(operation, status) for operation, status, *_ in ANSWERS} | OTHERWISE


def test_a_known_key_is_answered_as_described(document: Document, relay: Relay) -> None:
    request: dict[str, Any] = {"content": GOOD, "headers": READABLE | JSON | {"idempotency-key": "again"}}
    first = ask(document, relay.url, "publish", "/stream/tests/openapi/known", **request)
    second = ask(document, relay.url, "publish", "/stream/tests/openapi/known", **request)
    assert [first.status_code, second.status_code] == [201, 200]


@pytest.mark.parametrize(("operation", "path"), [("pollTopic", f"/stream/{TOPIC}/v1/poll"), ("poll", f"/stream/v1/poll?topic={TOPIC}")])
def test_an_unchanged_page_is_answered_as_described(document: Document, relay: Relay, operation: str, path: str) -> None:
    at = {"cursor": "earliest", "topic": TOPIC} if operation == "poll" else {"cursor": "earliest"}
    first = ask(document, relay.url, operation, path, params=at, headers=READABLE)
    second = ask(document, relay.url, operation, path, params=at, headers=READABLE | {"if-none-match": first.headers["etag"]})
    assert second.status_code == 304


@pytest.mark.parametrize(
    ("operation", "path"), [("client", "/stream/client.js"), ("clientTypes", "/stream/client.d.ts"), ("poller", "/stream/poller.js")]
)
def test_an_unchanged_file_is_answered_as_described(document: Document, relay: Relay, operation: str, path: str) -> None:
    first = ask(document, relay.url, operation, path)
    assert ask(document, relay.url, operation, path, headers={"if-none-match": first.headers["etag"]}).status_code == 304


def test_limits_and_outages_are_answered_as_described(document: Document, tmp_path: Path) -> None:
    valkey = Valkey(tmp_path / "valkey")
    env = {"RELAY_MAX_STREAMS_PER_SUB": "1", "RELAY_PUBLISH_PER_SECOND": "1", "RELAY_METRICS_TOKEN": "a-token"} | {
        "SSE_ENCRYPTION_KEY": SEAL_KEY
    }
    small = Relay(tmp_path / "relay", valkey.url, env)
    polls = [("pollTopic", f"/stream/{TOPIC}/v1/poll"), ("poll", f"/stream/v1/poll?topic={TOPIC}")]
    try:
        valkey.start()
        small.start()
        assert ask(document, small.url, "metrics", "/metrics").status_code == 401
        with httpx.stream("GET", f"{small.url}/stream/{TOPIC}/v1/live", headers=READABLE, timeout=LIMIT_S) as stream:
            pieces = stream.iter_bytes()  # kept: the connection is closed with it
            next(pieces)
            for operation, path in polls:
                waiting = f"{path}{'&' if '?' in path else '?'}wait=1"
                assert ask(document, small.url, operation, waiting, headers=READABLE).status_code == 429
        hasty = {"authorization": f"Bearer {token('hasty')}"} | JSON
        ask(document, small.url, "publishBatch", "/stream/publish", json=[ITEM] * 1000, headers=hasty)
        assert ask(document, small.url, "publish", f"/stream/{TOPIC}", content=GOOD, headers=hasty).status_code == 429
        assert ask(document, small.url, "publishBatch", "/stream/publish", json=[ITEM], headers=hasty).status_code == 429
        valkey.kill()
        for operation, path in polls:
            assert ask(document, small.url, operation, path, headers=READABLE, params={"topic": TOPIC, "k": 1}).status_code == 503
        publication: dict[str, Any] = {"content": GOOD, "headers": READABLE | JSON}
        assert ask(document, small.url, "publish", f"/stream/{TOPIC}", **publication).status_code == 503
        assert ask(document, small.url, "publishBatch", "/stream/publish", json=[ITEM], headers=READABLE).status_code == 503
        assert ask(document, small.url, "ticket", "/stream/ticket", headers=READABLE).status_code == 503
        assert ask(document, small.url, "keys", f"/stream/keys?topic={TOPIC}", headers=READABLE).status_code == 503
        assert ask(document, small.url, "revoke", "/stream/revoke", json={"sub": "nobody"}, headers=REVOKER).status_code == 503
    finally:
        if small.process:
            small.kill()
        valkey.kill()


@pytest.mark.anyio
async def test_keys_that_there_are_not_and_too_many_requests_for_them_are_answered_as_described(
    document: Document, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def take(*_: object) -> float:
        return 3.0

    async def ask_for_keys(parts: Parts) -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=parts.app()), base_url="http://relay") as client:
            answer = await client.get(f"/stream/keys?topic={TOPIC}", headers=READABLE)
        document.check("keys", answer)
        return answer.status_code

    assert await ask_for_keys(parts) == 404
    env = {"RELAY_JWT_SECRET": SECRET, "RELAY_VALKEY_URL": "valkey://127.0.0.1:1/0", "RELAY_REQUESTS_PER_SECOND": "1"}
    sealing = Parts(read_settings({**env, "SSE_ENCRYPTION_KEY": SEAL_KEY}))
    monkeypatch.setattr(sealing.log, "take", take)
    assert await ask_for_keys(sealing) == 429


@pytest.mark.anyio
async def test_a_relay_that_stops_answers_readyz_as_described(document: Document, parts: Parts) -> None:
    parts.streams.draining = True
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=parts.app()), base_url="http://relay") as client:
        answer = await client.get("/readyz")
    assert answer.status_code == 503
    document.check("readyz", answer)


def test_control_events_are_as_described(document: Document, relay: Relay) -> None:
    """What a stream with a lost position says is valid by the schemas of its control events."""
    parser = Parser()
    seen: list[str] = []
    url = f"{relay.url}/stream/{TOPIC}/v1/live"
    with httpx.stream("GET", url, headers=READABLE | {"last-event-id": "nonsense"}, timeout=LIMIT_S) as stream:
        for piece in stream.iter_bytes():
            for block in parser.feed(piece):
                seen.append(block.name)
                if block.name in CONTROL_EVENTS:
                    document.validate({"$ref": f"#/components/schemas/{CONTROL_EVENTS[block.name]}"}, block.json())
            if "gap" in seen:
                break
    assert seen[:2] == ["hello", "gap"]

"""A function as AWS Lambda runs it: a handler, imported once, that gets one event after the other. Between two it may be frozen.

The events are those of AWS's documentation, with all their fields. They differ in what is decoded, joined and repeated:

- REST APIs (`rest`) leave the path encoded, decode the query, and keep the case of header names;
  https://docs.aws.amazon.com/apigateway/latest/developerguide/set-up-lambda-proxy-integrations.html
- HTTP APIs decode the path, in both of their formats (`http-1`, `http-2`), and the first decodes the query too;
  https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html
- function URLs (`url`) have the second format, and leave the path encoded.
  https://docs.aws.amazon.com/lambda/latest/dg/urls-invocation.html
"""

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from tests.servers import SECRET, Valkey
from tests.waiting import LIMIT_S

FOLDER = Path(__file__).parents[2] / "infra" / "functions"
SHAPES = ("rest", "http-1", "http-2", "url")
RUNTIME = """
import asyncio, importlib, json, sys, time
began = time.process_time()
handler = importlib.import_module("aws_lambda").handler
print(json.dumps({"import_s": time.process_time() - began}), flush=True)
for line in sys.stdin:
    answer = handler(json.loads(line), None)
    tasks = len(asyncio.all_tasks(asyncio.get_event_loop_policy().get_event_loop()))
    print(json.dumps({"answer": answer, "tasks": tasks}), flush=True)
"""
HEADERS = {"Host": "abcdef1234.execute-api.eu-west-1.amazonaws.com", "User-Agent": "curl/8.5.0", "X-Forwarded-For": "203.0.113.7"}
HEADERS |= {"X-Forwarded-Port": "443", "X-Forwarded-Proto": "https", "X-Amzn-Trace-Id": "Root=1-5f7b3f3e-0b0b0b0b0b0b0b0b0b0b0b0b"}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Instance:
    """A running instance."""

    process: "subprocess.Popen[str]"
    import_s: float = 0.0

    def ask(self, shape: str, target: str, headers: Mapping[str, str] = {}, method: str = "GET", body: bytes | None = None) -> Answer:
        self.send(event(shape, target, headers, method, body))
        return self.answer()

    def send(self, event: Mapping[str, Any]) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(event) + "\n")
        self.process.stdin.flush()

    def read(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise EOFError(f"the function ended with {self.process.wait(LIMIT_S)}")
        return json.loads(line)

    def answer(self) -> Answer:
        told = self.read()
        assert told["tasks"] == 0  # nothing goes on after an answer
        answer = told["answer"]
        several = answer.get("multiValueHeaders") or {}
        headers = {**(answer.get("headers") or {}), **{name: ", ".join(values) for name, values in several.items()}}
        body = base64.b64decode(answer["body"]) if answer["isBase64Encoded"] else answer.get("body", "").encode()
        return Answer(answer["statusCode"], headers, body)

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def run_instance(valkey_url: str, env: Mapping[str, str] = {}) -> Iterator[Instance]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    settings = {"RELAY_JWT_SECRET": SECRET, "RELAY_VALKEY_URL": valkey_url, "RELAY_VALKEY_SECONDS": f"{LIMIT_S:g}"}
    settings |= {"RELAY_PUBLIC_TOPICS": "public/**", **env}
    process = subprocess.Popen(
        [sys.executable, "-c", RUNTIME],
        env={**clean, **settings, "PYTHONPATH": str(FOLDER)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        instance = Instance(process)
        instance.import_s = instance.read()["import_s"]
        yield instance
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


def event(shape: str, target: str, headers: Mapping[str, str] = {}, method: str = "GET", body: bytes | None = None) -> dict[str, Any]:
    """A request as a gateway of this shape gives it to the function."""
    path, _, query = target.partition("?")
    values = parse_qs(query, keep_blank_values=True)
    sent = {**HEADERS, **headers}
    content = {"body": base64.b64encode(body).decode() if body else None, "isBase64Encoded": body is not None}
    match shape:
        case "rest" | "http-1":
            identity = {"sourceIp": "203.0.113.7", "userAgent": "curl/8.5.0", "accessKey": None, "accountId": None, "user": None}
            shown = path if shape == "rest" else unquote(path)
            return {
                **({} if shape == "rest" else {"version": "1.0"}),
                "resource": "/{proxy+}",
                "path": shown,
                "httpMethod": method,
                "headers": sent,
                "multiValueHeaders": {name: [value] for name, value in sent.items()},
                "queryStringParameters": {name: found[-1] for name, found in values.items()} or None,
                "multiValueQueryStringParameters": values or None,
                "pathParameters": {"proxy": shown.lstrip("/")},
                "stageVariables": None,
                "requestContext": {
                    "accountId": "123456789012",
                    "apiId": "abcdef1234",
                    "domainName": "abcdef1234.execute-api.eu-west-1.amazonaws.com",
                    "extendedRequestId": "request-id",
                    "httpMethod": method,
                    "identity": identity,
                    "path": f"/prod{shown}" if shape == "rest" else shown,
                    "protocol": "HTTP/1.1",
                    "requestId": "id=",
                    "requestTime": "04/Mar/2020:19:15:17 +0000",
                    "requestTimeEpoch": 1583349317135,
                    "resourceId": "123456",
                    "resourcePath": "/{proxy+}",
                    "stage": "prod" if shape == "rest" else "$default",
                },
                **content,
            }
        case "http-2" | "url":
            # Lower names; cookies by themselves; what is there twice joined by commas.
            cookies = [part.strip() for name, value in sent.items() if name.lower() == "cookie" for part in value.split(";")]
            lower = {name.lower(): value for name, value in sent.items() if name.lower() != "cookie"}
            domain = "abcdef1234.execute-api.eu-west-1.amazonaws.com" if shape == "http-2" else "abcdef1234.lambda-url.eu-west-1.on.aws"
            shown = path if shape == "url" else unquote(path)
            context = {
                "accountId": "123456789012",
                "apiId": "abcdef1234",
                "domainName": domain,
                "domainPrefix": "abcdef1234",
                "http": {
                    "method": method,
                    "path": shown,
                    "protocol": "HTTP/1.1",
                    "sourceIp": "203.0.113.7",
                    "userAgent": "curl/8.5.0",
                },
                "requestId": "id",
                "routeKey": "$default",
                "stage": "$default",
                "time": "12/Mar/2020:19:03:58 +0000",
                "timeEpoch": 1583348638390,
            }
            return {
                "version": "2.0",
                "routeKey": "$default",
                "rawPath": shown,
                "rawQueryString": query,
                **({"cookies": cookies} if cookies else {}),
                "headers": {**lower, "host": domain},
                **({"queryStringParameters": {name: ",".join(found) for name, found in values.items()}} if values else {}),
                "requestContext": context,
                **{name: value for name, value in content.items() if value is not None},
            }
        case _:
            raise ValueError(shape)


def connections(valkey: Valkey) -> int:
    """That others have open."""
    return len(valkey.ask("CLIENT LIST", b"TYPE", b"normal")) - 1

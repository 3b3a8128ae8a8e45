"""What the OpenAPI document allows and what it forbids, asked of a running relay: each answer must be one that it describes.

Schemathesis makes the requests. Of a stream, which has no end, it reads the first event.
"""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi import checks

from relay.openapi import PATH
from tests.asking import AUTH
from tests.hostile.conftest import BOUNDED
from tests.servers import Relay
from tests.streams import Parser
from tests.waiting import LIMIT_S

EXAMPLES = 15  # of each operation, both ways
WAIT_S = 0.05
NO_SHRINKING = (Phase.generate,)  # it may take five minutes, and a failure is printed as a line of curl anyway
WITH_INPUT = ("liveTopic", "live", "pollTopic", "poll", "publish", "publishBatch")
WITHOUT = ("keys", "ticket", "revoke", "status", "healthz", "readyz", "metrics", "openapi", "client", "clientTypes", "poller")
POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
# Not whether all that the document forbids is refused, and nothing else is: an empty field counts as absent, an unknown one is left
# alone, and that a cursor's shards must rise or a key was used before no schema can say.
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def schema(target: Relay) -> BaseSchema:
    config = SchemathesisConfig.from_dict({"max-stream-events": 1})
    return schemathesis.openapi.from_dict(httpx.get(target.url + PATH, timeout=LIMIT_S).json(), config=config)


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as opened:
        opened.headers["connection"] = "close"  # of a body that was refused something may be left on a connection
        yield opened


def test_every_operation_is_asked(schema: BaseSchema) -> None:
    operations: Any = schema.get_all_operations()
    assert sorted(one.ok().definition.raw["operationId"] for one in operations) == sorted(WITH_INPUT + WITHOUT)


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, mode) for name in WITH_INPUT for mode in (POSITIVE, NEGATIVE)] + [(name, POSITIVE) for name in WITHOUT],
    ids=str,
)
def test_the_relay_answers_as_described_whatever_is_asked(
    target: Relay, schema: Any, session: requests.Session, name: str, mode: schemathesis.GenerationMode
) -> None:
    operation = schema.find_operation_by_id(name)
    cases = operation.as_strategy(generation_mode=mode)

    @settings(BOUNDED, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None, phases=NO_SHRINKING)
    @given(cases, st.booleans())
    def ask(case: Any, known: bool) -> None:
        if case.query and case.query.get("wait"):
            case.query["wait"] = WAIT_S
        headers = dict(AUTH) if known else {}  # to which schemathesis adds its own
        answer = case.call(base_url=target.url, session=session, headers=headers, timeout=LIMIT_S, allow_redirects=False)
        if answer.status_code == 431:
            assert answer.content == b""  # from the server itself, as the document says of all operations
        elif answer.headers["content-type"] == ["text/event-stream"]:
            # The document describes the stream's text; Schemathesis would take that for the schema of each event.
            case.validate_response(answer, checks=CHECKS, excluded_checks=[checks.response_schema_conformance], headers=headers)
            assert [block.name for block in Parser().feed(answer.content + b"\n")] in (["hello"], ["bye"])
        else:
            case.validate_response(answer, checks=CHECKS, headers=headers)

    ask()

"""Answers that every door gives alike: JSON, and problem details (RFC 9457) for whatever goes wrong."""

import asyncio
import logging
import math
from typing import Any

import msgspec
from litestar import Request
from litestar.exceptions import HTTPException
from litestar.response import Response

from relay.coding import Coding
from relay.errors import (
    LogUnavailable,
    MethodNotAllowed,
    NotFound,
    Problem,
    TooLarge,
    Unavailable,
    Unprocessable,
)

PROBLEM_TYPE = "application/problem+json"
TOLD = "relay.problem"  # where in a request's scope the problem is that its client was told
RETRY_AFTER_S = 2
PACKED_MIN_BYTES = 500  # a smaller body fits into a packet, with its headers
PACKED_ASIDE_BYTES = 64 << 10  # a larger one would keep streams waiting for a millisecond and more

logger = logging.getLogger("relay")


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response[bytes]:
    content = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return Response(content, status_code=status, media_type="application/json", headers=headers)


async def pack(content: bytes, coding: Coding, headers: dict[str, str]) -> bytes:
    """A body as it goes over the wire; the headers are told how. Whether it is worth it or not, its `Vary` and `ETag` name the coding."""
    if not coding.name or len(content) < PACKED_MIN_BYTES:
        return content
    headers["content-encoding"] = coding.name
    return coding.pack(content) if len(content) <= PACKED_ASIDE_BYTES else await asyncio.to_thread(coding.pack, content)


def is_known(if_none_match: str, tag: str) -> bool:
    """Whether the client has what this ETag names (RFC 9110, section 13.1.2)."""
    return tag in [part.strip().removeprefix("W/") for part in if_none_match.split(",")]


def problem_headers(problem: Problem) -> dict[str, str]:
    headers = {"cache-control": "no-store", "content-type": PROBLEM_TYPE}
    if problem.temporary:
        headers["retry-after"] = str(math.ceil(problem.retry_after_s or RETRY_AFTER_S))
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"  # RFC 6750, section 3
    return headers


def problem_answer(problem: Problem, headers: dict[str, str] | None = None) -> Response[bytes]:
    return Response(
        problem.body(),
        status_code=problem.status,
        media_type=PROBLEM_TYPE,
        headers={**(headers or {}), **{k: v for k, v in problem_headers(problem).items() if k != "content-type"}},
    )


def problem_message(problem: Problem) -> list[dict[str, Any]]:
    """The same as ASGI messages, for where there is no Litestar around."""
    headers = [(name.encode(), value.encode()) for name, value in problem_headers(problem).items()]
    return [
        {"type": "http.response.start", "status": problem.status, "headers": headers},
        {"type": "http.response.body", "body": problem.body(), "more_body": False},
    ]


def as_problem(error: Exception) -> Problem:
    """What a client is told of any error: of ours what they say, of a bug only that it is one."""
    match error:
        case Problem():
            return error
        case LogUnavailable():
            return Unavailable.of(error)
        case HTTPException(status_code=404):
            return NotFound("there is nothing at this path: see /schema/openapi.json")
        case HTTPException(status_code=405):
            return MethodNotAllowed("this path answers other methods: see the Allow header")
        case HTTPException(status_code=413):
            return TooLarge("the body is larger than this path takes")
        case HTTPException() if error.status_code < 500:
            return Unprocessable(str(error.detail)[:200])
        case _:
            logger.error("a request failed", exc_info=error)
            return Problem("something went wrong on our side; it is in the relay's log")


def answer_error(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Litestar's exception handler."""
    allow = (getattr(error, "headers", None) or {}).get("Allow") or (getattr(error, "headers", None) or {}).get("allow")
    scope: Any = request.scope
    problem = scope[TOLD] = as_problem(error)
    return problem_answer(problem, {"allow": allow} if allow else None)

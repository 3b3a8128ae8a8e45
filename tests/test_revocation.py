"""Revoked is revoked within a second: for open streams and waiting polls on every process, and for whoever comes later."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import httpx
import pytest

from relay.auth import Identity
from relay.denial import Denial, Denials, names_of_topic
from relay.errors import Forbidden, Unauthorized
from relay.guard import Permit
from relay.log import Log
from relay.records import Records
from relay.standing import Standing
from relay.topic import Patterns, patterns_of
from tests.asking import Asker, Live, bearer, check, check_bye, check_problem
from tests.servers import DEFAULT_RETENTION, Valkey, token, topic
from tests.streams import Block
from tests.waiting import LIMIT_S, wait_for

LATER_S = 2  # so much later, a token is surely not of the same second
POLL_S = 25  # the longest that a poll may wait
ADMIN = bearer("root", subscribe=[], publish=[], admin=["revoke"])
NOW = 1_800_000_000.0


def revoke(asker: Asker, **body: Any) -> Any:
    answer = asker.post("/stream/revoke", body, headers=ADMIN)
    assert answer.status_code == 200, answer.text
    return answer.json()


def newer(sub: str, **options: Any) -> dict[str, str]:
    return bearer(sub, iat=int(time.time()) + LATER_S, **options)


def ask_apart(asker: Asker, target: str, headers: dict[str, str]) -> httpx.Response:
    """The same server, over a connection of its own."""
    return httpx.get(f"{asker.client.base_url}{target}", headers=headers, timeout=LIMIT_S)


def answer_to_a_wait(
    poll: Callable[[], httpx.Response], waits: Callable[[], bool], act: Callable[[], object], undo: Callable[[], object]
) -> httpx.Response:
    """What a poll that waits is answered when something is done.

    Where its time was over before the answer came, nobody knows what it was answered for: it is undone, and all done once more.
    """
    ends_s = time.monotonic() + LIMIT_S
    while True:
        began_s = time.monotonic()
        with ThreadPoolExecutor() as pool:
            waiting: Future[tuple[httpx.Response, float]] = pool.submit(lambda: (poll(), time.monotonic()))
            wait_for("the poll waits", lambda waiting=waiting: waits() or waiting.done())  # type: ignore[misc]
            act()
            answer, answered_s = waiting.result()
        if answered_s - began_s < POLL_S:
            return answer
        assert answered_s < ends_s, "it is answered when its time is over"
        undo()


def all_of(asker: Asker, target: str, headers: dict[str, str]) -> list[Block]:
    """What a stream says until it ends; nothing if it is refused."""
    with asker.client.stream("GET", "/", headers=headers, extensions={"target": target.encode()}) as answer:
        check(answer)
        return Live(answer).rest() if answer.status_code == 200 else []


def end_of(stream: Live) -> str:
    """Why it ended."""
    bye = stream.rest()[-1]
    assert bye.name == "bye"
    check_bye(stream, bye)
    return str(bye.json()["reason"])


# Kind: what is denied of a subject, token and topic; and what old tokens get from then on.
KINDS: dict[str, tuple[Any, int, str]] = {
    "a subject": (lambda sub, name: {"sub": sub}, 401, "token_revoked"),
    "a token": (lambda sub, name: {"jti": f"jti-{sub}"}, 401, "token_revoked"),
    "a topic": (lambda sub, name: {"topic": name}, 403, "topic_revoked"),
    "topics": (lambda sub, name: {"topic": name.rpartition("/")[0] + "/*"}, 403, "topic_revoked"),
    "topics of a subject": (lambda sub, name: {"topic": name.partition("/")[0] + "/**", "sub": sub}, 403, "topic_revoked"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_revoked_ends_everywhere_and_is_refused_from_then_on(fleet: list[Asker], kind: str) -> None:
    body_of, status, code = KINDS[kind]
    name = topic().replace("tests/case", f"tests{time.monotonic_ns()}/case")
    sub = f"eve-{name.rpartition('/')[2]}"
    issued = int(time.time())
    old = bearer(sub, jti=f"jti-{sub}", iat=issued)
    live, poll = f"/stream/{name}/v1/live", f"/stream/{name}/v1/poll"
    several = f"/stream/v1/live?topic=other/a/b&topic={name}"
    first, second, _ = fleet
    revoked = body_of(sub, name)

    def undo() -> None:
        assert revoke(second, undo=True, **revoked) == {"undone": revoked}
        for asker in fleet:
            wait_for("it is undone", lambda asker=asker: asker.get(poll, headers=old).status_code == 200)  # type: ignore[misc]

    waited = answer_to_a_wait(
        lambda: ask_apart(second, f"{poll}?wait={POLL_S}", old),
        lambda: second.page("/stream/status", headers={})["waiting_polls"] == 1,
        lambda: revoke(first, **revoked),
        undo,
    )
    check_problem(waited, status, code)
    undo()
    with first.live(live, headers=old) as one, second.live(several, headers=old) as other:
        assert [one.next().name, other.next().name] == ["hello", "hello"]
        before_s = time.time()
        answer = revoke(first, **revoked)
        assert answer["denied"] == revoked
        assert before_s - 1 <= answer["issued_until"] <= time.time() + 1
        assert [end_of(one), end_of(other)] == ["revoked", "revoked"]
    for asker in fleet:
        check_problem(asker.get(poll, headers=old), status, code)
    for asker in (first, second):
        check_problem(asker.get(live, headers=old), status, code)
        published = asker.ask("POST", f"/stream/{name}", headers={**old, "content-type": "application/json"}, content=b'{"data":1}')
        assert published.status_code == (401 if status == 401 else 201)
    for asker in fleet:
        assert asker.get(poll, headers=newer(sub, jti="another")).status_code == 200
        assert asker.get(poll, headers=bearer(f"not-{sub}", jti="another", iat=issued)).status_code == (
            200 if "sub" in revoked or "jti" in revoked else 403
        )
        assert asker.get("/stream/public/a/b/v1/poll", headers=old).status_code == (401 if status == 401 else 200)
    undo()


def test_whoever_else_reads_notices_nothing(fleet: list[Asker]) -> None:
    name = topic()
    first, second, function = fleet
    with second.live(f"/stream/{name}/v1/live") as stream:
        hello = stream.next().json()
        first.publish(name, 1)
        revoke(first, sub="nobody-at-all")
        first.publish(name, 2)
        blocks = [stream.next(), stream.next()]
    assert [block.data for block in blocks] == ["1", "2"]
    for asker in fleet:
        page = asker.page(f"/stream/{name}/v1/poll?cursor={hello['cursor']}")
        assert ([event["data"] for event in page["events"]], page["resume"], page["gap"]) == ([1, 2], "exact", None)
        revoke(first, sub="nobody-at-all", undo=True)  # its place becomes the journal's last
        page = asker.page(f"/stream/{name}/v1/poll?cursor={page['cursor']}")
        assert (page["events"], page["resume"], page["gap"]) == ([], "exact", None)
    for target in ("/stream/notices/v1/poll", "/stream/v1/poll?topic=notices"):
        assert function.get(target).status_code in (400, 404)


def test_a_wait_of_the_polling_function_is_answered_by_what_holds_at_its_end(fleet: list[Asker], valkey: Valkey) -> None:
    name, sub = topic(), "eve-who-waits"
    first, _, function = fleet

    def revoke_and_wake() -> None:
        revoke(first, sub=sub)
        first.publish(name, 1)

    waited = answer_to_a_wait(
        lambda: ask_apart(function, f"/stream/{name}/v1/poll?wait={POLL_S}", bearer(sub)),
        lambda: valkey.info("total_blocking_keys") >= 2,  # beside the tails on the journal
        revoke_and_wake,
        lambda: revoke(first, sub=sub, undo=True),
    )
    check_problem(waited, 401, "token_revoked")


BAD: dict[str, tuple[Any, int, str]] = {
    "nothing": ({}, 422, "wrong_shape"),
    "undo of nothing": ({"undo": True}, 422, "wrong_shape"),
    "two of them": ({"sub": "a", "jti": "b"}, 422, "wrong_shape"),
    "a token of a topic": ({"topic": "**", "jti": "b"}, 422, "wrong_shape"),
    "no pattern": ({"topic": "a/b"}, 422, "wrong_shape"),
    "a long subject": ({"sub": "x" * 256}, 422, "wrong_shape"),
    "another member": ({"sub": "a", "why": "b"}, 422, "wrong_shape"),
    "a number": ({"sub": 5}, 422, "wrong_shape"),
    "no object": ([], 422, "wrong_shape"),
    "no JSON": (b"{", 400, "bad_json"),
    "half a character": (b'{"sub":"\\ud800"}', 400, "bad_json"),
    "too much": (b'{"sub":"' + b"x" * 10_000 + b'"}', 413, "too_large"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_revokes_nothing_is_told_so(asker: Asker, case: str) -> None:
    body, status, code = BAD[case]
    check_problem(asker.post("/stream/revoke", body, headers={**ADMIN, "content-type": "application/json"}), status, code)


def test_revoking_needs_its_grant(asker: Asker) -> None:
    body = {"sub": "somebody"}
    check_problem(asker.post("/stream/revoke", body, headers=bearer(admin=["status"])), 403, "admin_not_granted")
    check_problem(asker.ask("POST", "/stream/revoke", headers={}, content=b"{}"), 401, "no_token")
    check_problem(asker.ask("POST", f"/stream/revoke?token={ADMIN['authorization'][7:]}", headers={}, content=b"{}"), 401, "no_token")
    check_problem(asker.post("/stream/revoke", body, headers={**ADMIN, "origin": "https://evil.example"}), 403, "origin_refused")


# Denials, as values

ADA = Identity("ada", jti="j-1", issued_s=NOW)
HOLDS: dict[str, tuple[Denial, Identity, bool]] = {
    "its subject": (Denial(sub="ada"), ADA, True),
    "another subject": (Denial(sub="bob"), ADA, False),
    "its jti": (Denial(jti="j-1"), ADA, True),
    "its subject as a jti": (Denial(jti="ada"), ADA, False),
    "no jti": (Denial(jti="j-1"), Identity("ada", issued_s=NOW), False),
    "a topic": (Denial(topic="a/b/c"), ADA, True),
    "another topic": (Denial(topic="a/b/d"), ADA, False),
    "all topics": (Denial(topic="**"), ADA, True),
    "its topics": (Denial(topic="a/*/c", sub="ada"), ADA, True),
    "another's topics": (Denial(topic="**", sub="bob"), ADA, False),
    "issued in the same moment": (Denial(sub="ada"), Identity("ada", issued_s=NOW + 0.5), True),
    "issued later": (Denial(sub="ada"), Identity("ada", issued_s=NOW + 0.6), False),
    "issued nobody knows when": (Denial(sub="ada"), Identity("ada"), True),
    "a subject of a trick": (Denial(topic="a/b/c", sub="ada"), Identity("ada x", issued_s=NOW), False),
}


@pytest.mark.parametrize("case", HOLDS)
def test_a_denial_holds_the_same_for_who_comes_and_for_who_is_here(case: str) -> None:
    denial, identity, holds = HOLDS[case]
    assert not denial.mistake()
    denials = Denials()
    denials.add(denial.name(), NOW + 0.5)

    def check() -> None:
        denials.check_token(identity)
        denials.check_topics(identity, ["x/y/z", "a/b/c"])

    assert denial.holds(NOW + 0.5)(identity, ("x/y/z", "a/b/c")) is holds
    if holds:
        with pytest.raises(Forbidden if denial.topic else Unauthorized):
            check()
    else:
        check()
    denials.remove(denial.name())
    check()


def test_every_pattern_that_matches_a_topic_is_asked_for() -> None:
    found = patterns_of("a/b/c")
    assert len(found) == len(set(found)) == 15
    parsed, bad = Patterns.parse(found)
    assert not bad
    assert all(Patterns((pattern,)).match("a/b/c") for pattern in parsed.patterns)
    assert len(names_of_topic("a/b/c", "ada")) == 30


def test_denials_of_which_no_token_is_left_are_forgotten() -> None:
    denials = Denials({"sub a": NOW, "topic ** ": NOW + 1})
    denials.forget(NOW + 1)
    assert len(denials) == 1
    with pytest.raises(Forbidden):
        denials.check_topics(Identity("ada"), ["a/b/c"])
    denials.forget(NOW + 2)
    denials.check_topics(Identity("ada"), ["a/b/c"])


# What a process knows


def held(standing: Standing, identity: Identity, ended: list[str]) -> Any:
    return standing.enter(Permit(identity, ("a/b/c",)), ended.append)


@pytest.mark.anyio
async def test_a_denial_is_kept_as_long_as_its_tokens_last_and_they_are_not_too_many(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.records.DENIALS_MAX", 3)
    own, key = "{relay:0}:denials", Denial(sub="first")
    valkey.ask("RENAMENX", own, "kept") if valkey.ask("EXISTS", own) else None
    log = Log(valkey.url, 1, DEFAULT_RETENTION, LIMIT_S)
    try:
        records = Records(log, 1000)
        since_s = await records.deny(key)
        assert 0 < valkey.ask("PTTL", own) <= 1_030_000
        assert len(await records.all_denials()) == 1
        for name in "ab":
            await records.deny(Denial(jti=name))
        await records.deny(key)  # again, which takes no more room
        with pytest.raises(Exception, match="wait until some have ended"):
            await records.deny(Denial(jti="c"))
        valkey.ask("ZADD", own, since_s - 1031, "jti a")  # long ago
        await records.deny(Denial(jti="c"))
        found = await records.denials_for(Identity("first", jti="c"), ["a/b/c"])
        assert len(found) == 2
        assert len(await records.all_denials()) == 3
        await records.undo(key)
        assert len(await records.denials_for(Identity("first"), [])) == 0
    finally:
        await log.close()
        valkey.ask("DEL", own)
        if valkey.ask("EXISTS", "kept"):
            valkey.ask("RENAME", "kept", own)


@pytest.mark.anyio
async def test_who_was_let_in_before_a_denial_and_enters_behind_it_is_ended(valkey: Valkey) -> None:
    log = Log(valkey.url, 1, DEFAULT_RETENTION, LIMIT_S)
    try:
        standing = Standing(log, Records(log, 1000), None, 30)
        await standing.renew()
        early: list[str] = []
        standing._deny(Denial(sub="zoe"), NOW)
        late = held(standing, Identity("zoe", issued_s=NOW), early)
        standing.review(late)
        assert early == ["revoked"]
    finally:
        await log.close()


@pytest.mark.anyio
async def test_a_process_whose_tail_begins_anew_ends_what_was_denied_meanwhile(valkey: Valkey) -> None:
    log = Log(valkey.url, 1, DEFAULT_RETENTION, LIMIT_S)
    try:
        records = Records(log, 1000)
        standing = Standing(log, records, None, 30)
        ended: list[str] = []
        other: list[str] = []
        held(standing, Identity("yan"), ended)
        held(standing, Identity("xi"), other)
        await records.deny(Denial(sub="yan"))
        await standing.renew()
        await asyncio.gather(*standing._tasks)
        assert (ended, other) == (["revoked"], [])
    finally:
        await log.close()


# Many streams

STREAMS = 2000


@pytest.mark.slow
@pytest.mark.anyio
async def test_two_thousand_streams_on_two_processes_end(fleet: list[Asker], capsys: pytest.CaptureFixture[str]) -> None:
    """Each of another subject. How long it takes is printed."""
    relays = [(str(asker.client.base_url.host), cast(int, asker.client.base_url.port)) for asker in fleet[:2]]

    async def stream(number: int) -> asyncio.StreamReader:
        host, port = relays[number % 2]
        async with asyncio.timeout(LIMIT_S):
            reader, writer = await asyncio.open_connection(host, port)
            writers.append(writer)
            path = f"/stream/many/case/{number % 10}/v1/live"
            writer.write(f"GET {path} HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {token(f'viewer-{number}')}\r\n\r\n".encode())
            await reader.readuntil(b"event: hello")
        return reader

    async def bye(reader: asyncio.StreamReader) -> float:
        async with asyncio.timeout(LIMIT_S):
            await reader.readuntil(b'"reason":"revoked"')
        return time.monotonic()

    writers: list[asyncio.StreamWriter] = []
    try:
        readers = [reader for part in range(0, STREAMS, 100) for reader in await asyncio.gather(*map(stream, range(part, part + 100)))]
        ends = [asyncio.create_task(bye(reader)) for reader in readers]
        began = time.monotonic()
        await asyncio.to_thread(revoke, fleet[0], topic="many/**")
        last = max(await asyncio.gather(*ends)) - began
        with capsys.disabled():
            print(f"\n{STREAMS} streams on 2 processes: {last * 1000:.0f} ms from the call to the last bye")
    finally:
        for writer in writers:
            writer.close()
        await asyncio.to_thread(revoke, fleet[0], topic="many/**", undo=True)

"""Tickets: what they open, on which processes, how long, and with what they die."""

import hashlib
import time
from pathlib import Path

import pytest

from relay.auth import LEEWAY_S, Grants, Identity
from relay.errors import TooMany, Unauthorized
from relay.guard import Permit
from relay.log import Log
from relay.records import TICKET_S, Records
from relay.standing import Standing
from relay.topic import Patterns
from tests.asking import AUTH, JSON, Asker, asking, bearer, check_problem
from tests.servers import DEFAULT_RETENTION, Relay, Valkey, topic
from tests.test_revocation import all_of, end_of, revoke
from tests.waiting import LIMIT_S, in_time, wait_for

SOME = Patterns.parse(["a/**"])[0]


def ticket(asker: Asker, headers: dict[str, str] = AUTH, **body: object) -> str:
    answer = (
        asker.post("/stream/ticket", body, headers={**JSON, **headers}) if body else asker.ask("POST", "/stream/ticket", headers=headers)
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert set(answer.json()) == {"ticket", "expires_in"}
    return str(answer.json()["ticket"])


def now_ms(valkey: Valkey) -> int:
    """By the clock that keys end by."""
    seconds, microseconds = valkey.ask("TIME")
    return int(seconds) * 1000 + int(microseconds) // 1000


def test_a_ticket_reads_on_every_process_again_and_again(fleet: list[Asker]) -> None:
    name = topic()
    first, second, function = fleet
    until = int(time.time()) + 3600
    made = ticket(first, bearer(exp=until))
    for _ in range(2):
        for asker in (second, first):
            with asker.live(f"/stream/{name}/v1/live?token={made}", headers={}) as stream:
                hello = stream.next().json()
                assert hello["token_expires"] == until
        for asker in (second, function, first):
            page = asker.get(f"/stream/{name}/v1/poll?token={made}", headers={})
            assert page.status_code == 200
            assert "private" in page.headers["cache-control"]
    assert ticket(first) != made


def test_a_ticket_neither_publishes_nor_administers(fleet: list[Asker], valkey: Valkey) -> None:
    first = fleet[0]
    made = ticket(first, bearer(admin=["status", "revoke"]))
    for target in ("/stream/a/b/c", "/stream/publish", "/stream/revoke", "/stream/ticket"):
        for headers in ({}, {"authorization": f"Bearer {made}"}):
            answer = first.ask("POST", f"{target}?token={made}", headers={**JSON, **headers}, content=b"{}")
            check_problem(answer, 401, "bad_token" if headers else "no_token")
    assert "host" not in first.get(f"/stream/status?token={made}", headers={}).json()
    assert "host" in first.get("/stream/status", headers=bearer(admin=["status"])).json()


def test_a_ticket_opens_what_its_token_did_or_less(fleet: list[Asker]) -> None:
    first = fleet[0]
    granted = bearer(subscribe=["a/*/c", "b/**", "*/x/1"])

    def reads(made: str, name: str) -> bool:
        answer = first.get(f"/stream/{name}/v1/poll?token={made}", headers={})
        return answer.status_code == 200 or bool(check_problem(answer, 403, "topic_not_granted") and False)

    assert [reads(ticket(first, granted), name) for name in ("a/b/c", "b/x/y", "z/x/1", "a/b/d")] == [True, True, True, False]
    narrow = ticket(first, granted, topics=["a/b/c", "b/q/*"])
    assert [reads(narrow, name) for name in ("a/b/c", "b/q/y", "b/r/y", "a/x/c")] == [True, True, False, False]
    for beyond in ("a/b/d", "**", "a/**", "*/*/c", "c/x/*"):
        answer = first.post("/stream/ticket", {"topics": ["a/b/c", beyond]}, headers={**JSON, **granted})
        assert beyond in check_problem(answer, 403, "topic_not_granted")["detail"]
    for topics in ([], ["x/y/z"] * 101):
        check_problem(first.post("/stream/ticket", {"topics": topics}), 422, "wrong_shape")
    for bad in ("a/b", "a/**/c", "a/b/c/d", ""):
        check_problem(first.post("/stream/ticket", {"topics": [bad]}), 422, "bad_topic")


COVER = [("**", "**"), ("**", "a/b/c"), ("a/**", "a/*/*"), ("a/*/*", "a/**"), ("a/*/c", "a/b/c"), ("*/*/*", "**")]
DONT_COVER = [("a/b/c", "a/b/*"), ("a/b/*", "a/**"), ("a/**", "*/a/a"), ("a/*/c", "a/b/d"), ("a/b/c", "**")]


@pytest.mark.parametrize(("wide", "narrow"), [*COVER, *DONT_COVER])
def test_a_pattern_covers_another_if_it_grants_all_of_it(wide: str, narrow: str) -> None:
    assert Patterns.parse([wide])[0].cover(tuple(narrow.split("/"))) == ((wide, narrow) in COVER)


def test_valkey_keeps_the_hash_alone_and_no_log_line_has_the_ticket(fleet: list[Asker], valkey: Valkey) -> None:
    began_ms = now_ms(valkey)
    made = ticket(fleet[0])
    fleet[0].get(f"/stream/a/b/c/v1/poll?token={made}&k=x", headers={})
    key = f"{{relay:0}}:ticket:{hashlib.sha256(made.encode()).hexdigest()}"
    keys = valkey.ask("KEYS", "*ticket*")
    assert key.encode() in keys
    assert not [name for name in keys if made.encode() in name]
    assert made.encode() not in valkey.ask("GET", key)
    assert began_ms <= valkey.ask("PEXPIRETIME", key) - 1000 * TICKET_S <= now_ms(valkey)
    valkey.ask("EXPIRE", key, TICKET_S // 2)
    began_ms = now_ms(valkey)
    assert fleet[2].get(f"/stream/a/b/c/v1/poll?token={made}", headers={}).status_code == 200
    assert began_ms <= valkey.ask("PEXPIRETIME", key) - 1000 * TICKET_S <= now_ms(valkey)  # by being used
    valkey.ask("DEL", key)
    check_problem(fleet[1].get(f"/stream/a/b/c/v1/live?token={made}", headers={}), 401, "bad_ticket")
    for wrong in (made[:-1], made + "a", "x", "x" * 43, "x" * 5000):
        check_problem(fleet[1].get(f"/stream/a/b/c/v1/live?token={wrong}", headers={}), 401, "bad_ticket")


def test_a_ticket_dies_with_its_token(fleet: list[Asker]) -> None:
    """Its leeway leaves the token some seconds."""

    def look(life_s: float) -> bool:
        ends_s = min(life_s, LEEWAY_S - 1) - LEEWAY_S
        answer = fleet[0].ask("POST", "/stream/ticket", headers=bearer(ttl_s=ends_s))
        if answer.status_code == 401:
            return False
        assert answer.json()["expires_in"] == 1
        made = answer.json()["ticket"]
        blocks = all_of(fleet[1], f"/stream/a/b/c/v1/live?token={made}", {})
        if not blocks:
            return False
        assert blocks[-1].json()["reason"] == "expired"
        wait_for("it is dead", lambda: fleet[1].get(f"/stream/a/b/c/v1/poll?token={made}", headers={}).status_code == 401)
        check_problem(fleet[1].get(f"/stream/a/b/c/v1/live?token={made}", headers={}), 401, "token_expired")
        return True

    in_time(look)


def test_a_ticket_is_revoked_as_its_token_is(fleet: list[Asker]) -> None:
    first, second, function = fleet
    for body in ({"sub": "ticketed"}, {"jti": "j-ticketed"}):
        made = ticket(first, bearer("ticketed", jti="j-ticketed"))
        with second.live(f"/stream/a/b/c/v1/live?token={made}", headers={}) as stream:
            assert stream.next().name == "hello"
            revoke(first, **body)
            assert end_of(stream) == "revoked"
        for asker in (first, function):
            check_problem(asker.get(f"/stream/a/b/c/v1/poll?token={made}", headers={}), 401, "token_revoked")
        revoke(first, **body, undo=True)


def test_a_ticket_carries_the_subscription(fleet: list[Asker]) -> None:
    made = ticket(fleet[0], bearer(status="inactive"))
    check_problem(fleet[1].get(f"/stream/a/b/c/v1/live?token={made}", headers={}), 402, "not_subscribed")

    def look(life_s: float) -> bool:
        made = ticket(fleet[0], bearer(subscription={"status": "active", "until": time.time() + life_s}))
        blocks = all_of(fleet[1], f"/stream/a/b/c/v1/live?token={made}", {})
        assert [block.json()["reason"] for block in blocks[-1:]] in ([], ["expired"])
        return bool(blocks)

    in_time(look)


def test_while_valkey_is_away_nobody_can_tell_whose_a_ticket_is(tmp_path: Path) -> None:
    valkey = Valkey(tmp_path / "valkey")
    try:
        valkey.start()
        with asking(Relay(tmp_path / "relay", valkey.url)) as asker:
            made = ticket(asker)
            valkey.kill()
            with asker.live(f"/stream/a/b/c/v1/live?token={made}", headers={}) as stream:
                assert end_of(stream) == "unavailable"
            check_problem(asker.get(f"/stream/a/b/c/v1/poll?token={made}", headers={}), 503, "unavailable")
            check_problem(asker.ask("POST", "/stream/ticket", headers=AUTH), 503, "unavailable")
    finally:
        valkey.kill()


# As values in Valkey


@pytest.mark.anyio
async def test_an_open_stream_uses_its_ticket(valkey: Valkey) -> None:
    log = Log(valkey.url, 1, DEFAULT_RETENTION, LIMIT_S)
    try:
        records = Records(log, 1000)
        now = int(time.time())
        identity = Identity("lea", Grants(SOME), expires_s=now + 1000, issued_s=now)
        made, life_s = await records.add_ticket(identity, SOME, now)
        assert life_s == TICKET_S
        found = await records.find_ticket(made)
        assert (found.sub, found.grants.subscribe, found.grants.admin) == ("lea", SOME, frozenset())
        key = f"{{relay:0}}:ticket:{found.ticket}"
        standing = Standing(log, records, None, 30)
        held = standing.enter(Permit(found, ("a/b/c",)), lambda reason: None)
        valkey.ask("EXPIRE", key, TICKET_S // 2)
        began_ms = now_ms(valkey)
        await standing.use_tickets()
        assert began_ms <= valkey.ask("PEXPIRETIME", key) - 1000 * TICKET_S <= now_ms(valkey)
        standing.leave(held)
        valkey.ask("EXPIRE", key, TICKET_S // 2)
        left = valkey.ask("PEXPIRETIME", key)
        await standing.use_tickets()
        assert valkey.ask("PEXPIRETIME", key) == left
    finally:
        await log.close()


@pytest.mark.anyio
async def test_nobody_gets_tickets_without_end(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.records.TICKETS_MAX", 2)
    log = Log(valkey.url, 1, DEFAULT_RETENTION, LIMIT_S)
    try:
        records = Records(log, 1000)
        greedy = Identity("greedy", Grants(SOME), expires_s=int(time.time()) + 1000)
        for _ in range(2):
            await records.add_ticket(greedy, SOME, time.time())
        with pytest.raises(TooMany):
            await records.add_ticket(greedy, SOME, time.time())
        with pytest.raises(Unauthorized):
            await records.find_ticket("x" * 43)
        assert 0 < valkey.ask("TTL", "{relay:0}:tickets:greedy") <= TICKET_S
    finally:
        await log.close()

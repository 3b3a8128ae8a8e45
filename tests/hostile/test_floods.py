"""Much of the same: bad tokens, foreign origins, cursors of no log, topics that nobody asked for. What is kept has a bound."""

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from valkey import Valkey as Client

from relay import guard as guarding
from relay.auth import Verifier, parse_secret
from relay.errors import Forbidden, Unauthorized
from relay.guard import Guard
from tests.asking import AUTH, Asker, at_once, bearer, check_problem
from tests.hostile.raw import connect, request
from tests.needs import need
from tests.servers import SECRET, Relay, Valkey, token, topic
from tests.waiting import LIMIT_S, wait_for

KEY = parse_secret(SECRET)
FLOOD = 3000
TOKEN_BYTES = 4000
TOPICS = 3000
READERS = 40  # each with as many topics as one may have

# Tokens and origins


def memory_kib(asker: Asker) -> int:
    """Of the process that serves."""
    pid = asker.page("/stream/status", headers=bearer(admin=["status"]))["pid"]
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def bad_tokens() -> Iterator[str]:
    """Each another one, and nearly as long as one may be."""
    for number in itertools.count():
        pad: dict[str, Any] = {"jti": str(number), "pad": "x" * 2600}
        good = token(**pad)
        yield from (
            token(secret="another-secret-another-secret-another", **pad),
            token(ttl_s=-3600, **pad),
            good[:-2],
            good.replace(".", "", 1),
            str(number).ljust(TOKEN_BYTES, "x"),
            f"a.{'b' * TOKEN_BYTES}.{number}",
            f"{number}..",
        )


def scope(**headers: str) -> dict[str, Any]:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "GET", "query_string": b"", "headers": pairs, "client": ("192.0.2.7", 1)}


def test_a_flood_of_bad_tokens_is_refused_and_leaves_nothing(target: Relay, other: Asker) -> None:
    """No memory, and no line in the log, which could fill a disk."""
    need("Linux")
    bad = bad_tokens()
    path = f"/stream/{topic()}/v1/live"

    def flood(count: int) -> int:
        """How many bytes of tokens came."""
        texts = list(itertools.islice(bad, count))
        for text in texts:
            assert other.client.get(path, headers={"authorization": f"Bearer {text}"}).status_code == 401
        return sum(map(len, texts))

    def grows() -> bool:
        before = memory_kib(other)
        came = flood(FLOOD)
        return (memory_kib(other) - before) * 1024 > came / 2

    lines = target.log().count("\n")
    # What the server makes once, it makes in its own time. What is kept of each token makes every flood grow it.
    assert not all(grows() for _ in range(10))
    assert target.log().count("\n") - lines < FLOOD / 100  # whatever else it has to say
    check_problem(other.get(path, headers={"authorization": "Bearer a.b.c"}), 401, "bad_token")


def test_the_guard_keeps_no_bad_token_and_a_bounded_number_of_good_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarding, "VERIFIED_MAX", 10)
    guard = Guard(Verifier(KEY, 86400))
    for forged in itertools.islice(bad_tokens(), 100):
        with pytest.raises(Unauthorized):
            at_once(guard.identify(scope(authorization=f"Bearer {forged}")))
    assert not guard._verified
    for number in range(50):
        assert at_once(guard.identify(scope(authorization=f"Bearer {token(f'sub-{number}')}"))).sub == f"sub-{number}"
    assert len(guard._verified) == 10


def test_a_flood_of_foreign_origins_is_logged_a_bounded_number_of_times(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(Verifier(KEY, 86400))
    for number in range(1000):
        with pytest.raises(Forbidden):
            guard.check_origin(scope(origin=f"https://{number}.example", host="relay"))
    assert len(guard._refused_origins) == len(caplog.records) == 100


# Cursors


def test_a_cursor_from_the_future_is_none_of_ours(other: Asker) -> None:
    """It starts anew, instead of waiting for a time that may never come or skipping what comes before it."""
    name = topic()
    (id,) = other.publish(name, 1)
    epoch, place = id.split(".")[:2]
    ms, s = map(int, place.split("-"))
    tag = id.rpartition("-")[2]
    future = [
        f"{epoch}.{ms + 10**6}-{s}",
        f"{epoch}.{ms}-{s + 10**6}",
        f"{epoch}.{10**16 - 1}-{10**16 - 1}",
        f"{epoch}.{ms + 10**6}-{s}.{10**9}-{tag}",
        f"zzzzzzzz.{ms}-{s}",
        f"0.{ms + 10**6}-{s}",
    ]
    for cursor in future:
        page = other.page(f"/stream/{name}/v1/poll?cursor={cursor}")
        assert (page["resume"], [event["data"] for event in page["events"]]) == ("reset", [1]), cursor
        assert other.page(f"/stream/{name}/v1/poll", headers={**AUTH, "last-event-id": cursor})["resume"] == "reset"
        with other.live(f"/stream/{name}/v1/live?cursor={cursor}") as stream:
            blocks = [stream.next() for _ in range(3)]
        assert [block.name for block in blocks] == ["hello", "gap", "update"]
        assert blocks[0].json()["resume"] == "reset"


# Topics


@pytest.mark.anyio
async def test_topics_by_the_thousands_leave_nothing_when_their_readers_have_left(target: Relay, other: Asker, valkey: Valkey) -> None:
    def status() -> tuple[int, int, int]:
        told = other.page("/stream/status")
        return told["connections"], told["topics"], told["audiences"]

    await asyncio.to_thread(wait_for, "nobody reads", lambda: status() == (0, 0, 0))
    before = set(valkey.ask("KEYS", "*"))
    for turn in range(2):
        async with AsyncExitStack() as stack:
            for reader in range(READERS):
                query = "&".join(f"topic=hostile/{turn}-{reader}/{number}" for number in range(100))
                raw = await stack.enter_async_context(connect(target, request(f"GET /stream/v1/live?{query}")))
                await raw.hears(b"event: hello")
            await asyncio.to_thread(wait_for, "all read", lambda: status() == (READERS, READERS * 100, READERS))
        await asyncio.to_thread(wait_for, "nothing is kept of them", lambda: status() == (0, 0, 0))
    assert len(set(valkey.ask("KEYS", "*")) - before) < READERS  # to read makes no key; but a relay has some of its own


def test_whatever_is_published_expires_in_valkey(other: Asker, valkey: Valkey) -> None:
    names = [f"{topic()}-{number}" for number in range(TOPICS)]
    for begin in range(0, TOPICS, 1000):
        items = [{"topic": name, "data": None, "key": "k"} for name in names[begin : begin + 1000]]
        assert other.post("/stream/publish", items).status_code == 200
    keys = [f"{{relay:0}}:{key}" for name in names for key in (f"topic:{name}", f"head:{name}", f"idem:{name} k")]
    with Client(port=valkey.port, socket_timeout=LIMIT_S) as log:
        pipe = log.pipeline(transaction=False)
        for key in keys:
            pipe.pttl(key)
        left = pipe.execute()
    assert min(left) > 0  # -1: it never expires; -2: it isn't there
    assert max(left) <= 8 * 86400 * 1000

"""Sealed events: what is inside, and that each is sealed once for all."""

import json
import random
import zlib
from base64 import urlsafe_b64decode
from collections.abc import Callable
from typing import Any

import pytest

from relay import envelope
from relay.cursor import Place
from relay.envelope import Sealer
from relay.event import Event
from relay.keys import Keyring
from relay.seal import unseal
from tests.servers import SEAL_KEY

T = "rounds/ROULETTE/1"
BEGIN_S = 3600 * 100.0
TTL_S = 300


def event(s: int, topic: str = T, data: bytes = b'{"x":[1,"\xc3\xa9"]}') -> Event:
    return Event(topic, "update", s, Place("e", 1000 + s, s), (0, 0), data)


class Clock:
    def __init__(self) -> None:
        self.now_s = BEGIN_S

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sealer(clock: Clock) -> Sealer:
    return Sealer(Keyring((SEAL_KEY,)), TTL_S, clock)


def opened(sealer: Sealer, sealed: bytes, clock: Callable[[], float]) -> dict[str, Any]:
    now_ms = int(clock() * 1000)
    keys: dict[str, str | bytes] = {key.id: key.key for key in sealer.keyring.given(T, now_ms)}
    return dict(json.loads(unseal(sealed.decode(), keys, now_ms)))


def test_the_envelope_says_which_event_it_is(sealer: Sealer, clock: Clock) -> None:
    one = event(7)
    inside = opened(sealer, sealer.seal(one, 2), clock)
    assert list(inside.items()) == [
        ("id", one.cursor(2)),
        ("topic", T),
        ("n", 7),
        ("event", "update"),
        ("ts", one.ts),
        ("sealed_at", int(BEGIN_S * 1000)),
        ("data", {"x": [1, "é"]}),
    ]


LARGE = json.dumps([{"name": "red", "value": number} for number in range(100)]).encode()


def test_large_data_is_compressed_before_it_is_sealed(clock: Clock) -> None:
    sealer = Sealer(Keyring((SEAL_KEY,)), TTL_S, clock, compresses=True)
    sealed = sealer.seal(event(7, data=LARGE), 2)
    inside = opened(sealer, sealed, clock)
    assert list(inside) == ["id", "topic", "n", "event", "ts", "sealed_at", "compression", "data"]
    assert inside["compression"] == "deflate-raw"
    assert zlib.decompress(urlsafe_b64decode(inside["data"] + "=="), wbits=-15) == LARGE
    assert len(sealed) < len(LARGE) / 2


def test_data_is_compressed_from_its_bound_on(clock: Clock) -> None:
    sealer = Sealer(Keyring((SEAL_KEY,)), TTL_S, clock, compresses=True)
    data = [json.dumps("x" * (size - 2)).encode() for size in (999, 1000, 1001)]
    inside = [opened(sealer, sealer.seal(event(size, data=one), 0), clock) for size, one in enumerate(data)]
    assert ["compression" in one for one in inside] == [False, True, True]


@pytest.mark.parametrize(
    ("data", "compresses"),
    [
        (json.dumps("x" * 997).encode(), True),
        (json.dumps(random.Random(7).randbytes(2000).hex()).encode(), True),
        (LARGE, False),
    ],
    ids=["small", "without a pattern", "off"],
)
def test_other_data_is_sealed_as_it_is(clock: Clock, data: bytes, compresses: bool) -> None:
    sealer = Sealer(Keyring((SEAL_KEY,)), TTL_S, clock, compresses=compresses)
    inside = opened(sealer, sealer.seal(event(7, data=data), 2), clock)
    assert "compression" not in inside
    assert inside["data"] == json.loads(data)


def test_an_event_is_sealed_once_however_often_it_is_sent(sealer: Sealer, clock: Clock) -> None:
    first = sealer.seal(event(1), 0)
    clock.now_s += TTL_S / 2 - 1
    assert (sealer.seal(event(1), 0), sealer.sealed) == (first, 1)


def test_the_same_place_in_another_shard_or_log_is_another_event(sealer: Sealer) -> None:
    other = Event(T, "update", 1, Place("f", 1001, 1), (0, 0), b"2")
    assert len({sealer.seal(event(1), 0), sealer.seal(event(1), 1), sealer.seal(other, 0)}) == 3


def test_what_is_sent_is_never_older_than_half_its_life(sealer: Sealer, clock: Clock) -> None:
    for _ in range(1000):
        inside = opened(sealer, sealer.seal(event(1), 0), clock)
        assert clock() * 1000 - int(str(inside["sealed_at"])) < TTL_S * 1000 / 2
        clock.now_s += 17.3
    assert sealer.sealed < 1000 * 17.3 / (TTL_S / 2) + 10


def test_a_new_key_seals_anew(sealer: Sealer, clock: Clock) -> None:
    clock.now_s = BEGIN_S + 3599
    before, turn = sealer.seal(event(1), 0), sealer.turn()
    clock.now_s += 1
    assert sealer.turn() != turn
    after = sealer.seal(event(1), 0)
    assert before.split(b"*")[1] != after.split(b"*")[1]
    assert opened(sealer, after, clock)["sealed_at"] == int(clock() * 1000)


def test_seals_take_no_more_memory_than_they_may(sealer: Sealer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelope, "SEALED_EVENTS_MAX", 3)
    seals = [sealer.seal(event(s), 0) for s in range(5)]
    assert [sealer.seal(event(s), 0) for s in (4, 3, 2)] == seals[:1:-1]
    assert sealer.sealed == 5
    assert sealer.seal(event(0), 0) != seals[0]
    monkeypatch.setattr(envelope, "SEALED_BYTES_MAX", len(seals[0]) - 1)
    sealer.seal(event(9), 0)
    assert (len(sealer._seals), sealer._bytes) == (0, 0)

"""Keys: one for each topic and time, the same in every process, and what a client is given of them."""

import base64
import hashlib
import hmac
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.keys import EARLY_MS, Keyring, parse_masters
from relay.seal import unseal
from tests.servers import SEAL_KEY

OTHER_KEY = "another-key-of-the-tests-to-seal-with-98765"
HOUR_MS = 3_600_000
NOW_MS = 100 * HOUR_MS + 5000
T, U = "rounds/ROULETTE/1", "rounds/ROULETTE/2"


def passwords(keyring: Keyring, topic: str = T, now_ms: int = NOW_MS) -> dict[str, str | bytes]:
    return {key.id: key.key for key in keyring.given(topic, now_ms)}


def test_a_key_is_made_as_rfc_5869_says() -> None:
    info = f"edge-relay v2 3600 100 {T}".encode()
    secret = hmac.digest(bytes(32), SEAL_KEY.encode(), "sha256")
    first = hmac.digest(secret, info + b"\x01", "sha256")
    second = hmac.digest(secret, first + info + b"\x02", "sha256")
    (made,) = Keyring((SEAL_KEY,)).given(T, NOW_MS)
    assert (made.key, made.id) == (first, f"k{second[:8].hex()}")
    assert (made.from_ms, made.until_ms) == (100 * HOUR_MS, 101 * HOUR_MS)


def test_every_topic_time_length_and_master_has_a_key_of_its_own() -> None:
    rings = [Keyring((SEAL_KEY,)), Keyring((OTHER_KEY,)), Keyring((SEAL_KEY,), epoch_s=7200)]
    made = [key for ring in rings for topic in (T, U) for time in (NOW_MS, NOW_MS + 2 * HOUR_MS) for key in ring.given(topic, time)]
    assert len({key.key for key in made}) == len({key.id for key in made}) == len(made) == 12


def test_what_seals_now_is_what_is_given_now() -> None:
    ring = Keyring((SEAL_KEY,))
    token = ring.sealing(T, NOW_MS).seal(b"1").decode()
    assert unseal(token, passwords(ring), NOW_MS) == b"1"


def test_the_next_key_is_given_in_the_last_minute_alone() -> None:
    ring, end_ms = Keyring((SEAL_KEY,)), 101 * HOUR_MS
    (before,) = ring.given(T, end_ms - EARLY_MS - 1)
    assert ring.given(T, end_ms - EARLY_MS)[0] == before
    (_, early) = ring.given(T, end_ms - 1)
    assert ring.given(T, end_ms) == [early]
    assert early.from_ms == before.until_ms == end_ms


def test_in_a_rotation_what_either_process_seals_opens_with_what_either_gives() -> None:
    """The new key is known everywhere before any process seals with it."""
    steps = [Keyring((SEAL_KEY,)), Keyring((SEAL_KEY, OTHER_KEY)), Keyring((OTHER_KEY, SEAL_KEY)), Keyring((OTHER_KEY,))]
    for one, other in [(steps[0], steps[1]), (steps[1], steps[2])]:
        for sealing, giving in [(one, other), (other, one)]:
            assert sealing.sealing(T, NOW_MS).id in passwords(giving)
    assert steps[2].sealing(T, NOW_MS).id == steps[3].sealing(T, NOW_MS).id


def test_a_shared_key_seals_itself_without_an_id() -> None:
    ring = Keyring((SEAL_KEY, OTHER_KEY), shared=True)
    key = ring.sealing(T, NOW_MS)
    assert key is ring.sealing(U, NOW_MS + HOUR_MS)
    assert unseal(key.seal(b"1").decode(), {"": SEAL_KEY}, NOW_MS) == b"1"


def test_a_fingerprint_is_what_a_shell_makes_of_the_key() -> None:
    assert Keyring((SEAL_KEY, OTHER_KEY)).fingerprint() == hashlib.sha256(SEAL_KEY.encode()).hexdigest()[:12]


WEAK = {
    "short": "x1y2z3" * 5,
    "one letter": "a" * 64,
    "a word again and again": "changeme" * 8,
    "few characters": "abcabdabcabeabcabfabcabgabcabhabcabi",
    "one of two": f"{SEAL_KEY},short",
    "one of two, empty": f"{SEAL_KEY},",
    "three": f"{SEAL_KEY},{OTHER_KEY},{SEAL_KEY}",
}


@pytest.mark.parametrize("text", WEAK.values(), ids=WEAK)
def test_a_key_that_could_be_guessed_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"key|random|characters"):
        parse_masters(text)


@given(st.binary(min_size=48, max_size=48).filter(lambda raw: len(set(raw)) > 24))
def test_what_openssl_makes_is_taken(raw: bytes) -> None:
    text = base64.b64encode(raw).decode()
    assert parse_masters(f"{text}, {SEAL_KEY}") == (text, SEAL_KEY)


def test_what_python_makes_is_taken() -> None:
    for text in (secrets.token_hex(32), secrets.token_urlsafe(32), secrets.token_hex(24)):
        assert parse_masters(text) == (text,)

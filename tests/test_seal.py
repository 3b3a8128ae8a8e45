"""Seals: byte by byte those of npm's packages, opened by each other, and by nothing else."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import Unopened
from relay.seal import SKEW_MS, Key, Password, SealingKey, make_key, unseal, write_base64
from tests.iron import PACKAGES, run_iron

NOW_MS = 1767225600000
TTL_MS = 60_000
LASTING_MS = 86_400_000  # of seals that are still good when another program has got through all of them
PASSWORD = "a_long_random_secret_please_change_me_0123"
RAW = bytes(range(32))
TEXT = '{"id":"1767225600000-0","ts":1767225600000,"game":"ttt/42","data":{"x":1,"y":"é"}}'.encode()
IV = bytes(range(0xF0, 0x100))
SALTS = "11" * 32, "22" * 32
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
OBJECTS: list[Any] = [{}, {"n": 1, "a": [1.5, None, True]}, {"emoji": "🎡", "é": "\u2028"}, {"large": "x" * 5000}]
PASSWORDS: dict[str, tuple[Password, str]] = {
    "string": (PASSWORD, ""),
    "string with an id": (PASSWORD, "k2"),
    "raw key": (RAW, ""),
    "raw key with an id": (RAW, "k_7"),
}

# What both packages seal with these salts, this IV and this clock.
VECTORS = {
    "string": (
        make_key(PASSWORD, "", *SALTS),
        None,
        "Fe26.2**1111111111111111111111111111111111111111111111111111111111111111*8PHy8_T19vf4-fr7_P3-_w"
        "*zOXTzZVk8wwaDULSaftc_XNSVLNdKxeizj9LPA2PPMuM0A9TqWxxfyC8BrfYfUqCTmUVxSSZUVkR_0TZqzCrDMbWsGMURIYeshlKRZAqFoqi8nlLYKg4kI0Yby01amn2"
        "**2222222222222222222222222222222222222222222222222222222222222222*MPtOm7tLiXO04f6-8LlcwJXFjVuyumPhZVj2xWcajrY",
    ),
    "string with an id": (
        make_key(PASSWORD, "k2", *SALTS),
        NOW_MS + TTL_MS,
        "Fe26.2*k2*1111111111111111111111111111111111111111111111111111111111111111*8PHy8_T19vf4-fr7_P3-_w"
        "*zOXTzZVk8wwaDULSaftc_XNSVLNdKxeizj9LPA2PPMuM0A9TqWxxfyC8BrfYfUqCTmUVxSSZUVkR_0TZqzCrDMbWsGMURIYeshlKRZAqFoqi8nlLYKg4kI0Yby01amn2"
        "*1767225660000*2222222222222222222222222222222222222222222222222222222222222222*Jg8ELkoXjTpEJ9WGrpmEuTJT0NJAaXIgSK7ZxVJzibg",
    ),
    "two raw keys": (
        Key("k3", RAW, bytes(range(32, 64))),
        NOW_MS + TTL_MS,
        "Fe26.2*k3**8PHy8_T19vf4-fr7_P3-_w"
        "*Ddn4bqa6Ody1GcltJlSZi-JQUrlInq6IDHMbcszBg8ehLhTnSsHZc0RN8IVLH-MXzSMPYnvyzr28naj3foyHONM_5nVKnvbgXyQltTzHICFIxZ58Ofc9FCfxQX1aUKGp"
        "*1767225660000**DNzzsj--v7U1aRJ8owIqAlhvAgb4-xO8xitHeo7lvSM",
    ),
}


def in_node(password: Password) -> Any:
    return {"raw": write_base64(password)} if isinstance(password, bytes) else password


def sealed(password: Password = RAW, id: str = "k1", expires_ms: int | None = NOW_MS + TTL_MS) -> str:
    return SealingKey(make_key(password, id)).seal(TEXT, expires_ms).decode()


@pytest.mark.parametrize("name", VECTORS)
def test_a_seal_is_the_same_byte_by_byte(name: str) -> None:
    key, expires_ms, vector = VECTORS[name]
    sealing = SealingKey(key)
    for _ in range(3):  # what it has sealed before is in none of it
        assert sealing.seal(TEXT, expires_ms, iv=IV).decode() == vector


@pytest.mark.parametrize("name", [name for name in VECTORS if "string" in name])
def test_a_seal_of_others_opens(name: str) -> None:
    key, _, vector = VECTORS[name]
    assert unseal(vector, {key.id: PASSWORD}, NOW_MS) == TEXT


def test_what_npm_seals_opens_here() -> None:
    jobs, expected = [], []
    for lib in PACKAGES:
        for password, id in PASSWORDS.values():
            for value in OBJECTS:
                for ttl in (0, LASTING_MS):
                    named = {"id": id, "secret": in_node(password)} if id else in_node(password)
                    if id and lib == "iron-webcrypto":
                        named = {"id": id, "encryption": in_node(password), "integrity": in_node(password)}
                    jobs.append({"lib": lib, "seal": value, "password": named, "options": {"ttl": ttl}})
                    expected.append((value, id, password))
    for answer, (value, id, password) in zip(run_iron(jobs), expected, strict=True):
        text = unseal(answer["ok"], {id: password}, int(time.time() * 1000))
        assert json.loads(text) == value


def test_what_is_sealed_here_opens_in_npm() -> None:
    jobs, expected = [], []
    expires_ms = int(time.time() * 1000) + LASTING_MS
    for lib in PACKAGES:
        for password, id in PASSWORDS.values():
            for value in OBJECTS:
                for expires in (None, expires_ms):
                    token = SealingKey(make_key(password, id)).seal(json.dumps(value, ensure_ascii=False).encode(), expires).decode()
                    jobs.append({"lib": lib, "unseal": token, "password": {id: in_node(password)} if id else in_node(password)})
                    expected.append(value)
    assert [answer.get("ok") for answer in run_iron(jobs)] == expected


def flip(token: str, part: int, at: int) -> str:
    """One character of a part is another one that means other bits."""
    parts = token.split("*")
    text = parts[part]
    at %= len(text)
    other = ALPHABET[ALPHABET.index(text[at]) ^ 0b100000] if text[at] in ALPHABET else "x"
    parts[part] = text[:at] + other + text[at + 1 :]
    return "*".join(parts)


def broken(password: Password) -> dict[str, str]:
    """What must not open, by what was done to it."""
    token = sealed(password, expires_ms=NOW_MS + 10**12)
    parts = token.split("*")
    flipped = {f"part {part} flipped at {at}": flip(token, part, at) for part in range(8) if parts[part] for at in (0, 5, -1)}
    return {
        **flipped,
        "expiry taken away": "*".join([*parts[:5], "", *parts[6:]]),
        "expired": sealed(password, expires_ms=NOW_MS - SKEW_MS),
        "another password": sealed(password[::-1]),
        "no id": sealed(password, ""),
        "another id": sealed(password, "k2"),
        "no base64": "*".join([*parts[:4], parts[4][:-2] + "+/", *parts[5:]]),
        "a hole in it": token.replace(parts[4], parts[4][:-4] + "    "),
        "cut": token[:-1],
        "cut in two": token[: len(token) // 2],
        "no HMAC": token[: -len(parts[7])],
        "a part too many": token + "*",
        "nothing": "",
        "another kind of password": sealed(PASSWORD if isinstance(password, bytes) else RAW),
    }


@pytest.mark.parametrize("kind", ["string", "raw key"])
def test_what_was_changed_in_any_part_opens_nowhere(kind: str) -> None:
    password = PASSWORDS[kind][0]
    cases = broken(password)
    for name, token in cases.items():
        with pytest.raises(Unopened):
            print(name, unseal(token, {"k1": password}, NOW_MS))
    jobs = [{"lib": lib, "unseal": token, "password": {"k1": in_node(password)}} for lib in PACKAGES for token in cases.values()]
    assert [answer for answer in run_iron(jobs) if "ok" in answer] == []


def test_what_was_sealed_with_other_bits_at_an_ends_end_opens_nowhere() -> None:
    """32 bytes are 43 characters, of which the last has two bits to spare."""
    token = sealed()
    same = token[:-1] + ALPHABET[ALPHABET.index(token[-1]) ^ 1]
    with pytest.raises(Unopened):
        unseal(same, {"k1": RAW}, NOW_MS)


def test_clocks_may_be_a_minute_apart() -> None:
    token = sealed(expires_ms=NOW_MS)
    assert unseal(token, {"k1": RAW}, NOW_MS + SKEW_MS - 1) == TEXT
    with pytest.raises(Unopened, match="expired"):
        unseal(token, {"k1": RAW}, NOW_MS + SKEW_MS)


def test_a_seal_without_a_time_never_expires() -> None:
    assert unseal(sealed(expires_ms=None), {"k1": RAW}, NOW_MS * 2) == TEXT


@given(
    texts=st.lists(st.binary(max_size=200), max_size=4),
    key=st.one_of(st.binary(min_size=32, max_size=32), st.text("abc*é🎡", min_size=32, max_size=40)),
)
def test_what_is_sealed_opens_again(texts: list[bytes], key: Password) -> None:
    sealing = SealingKey(make_key(key))
    assert [unseal(sealing.seal(text).decode(), {"": key}, NOW_MS) for text in texts] == texts


@given(st.text("Fe26.*kA-_1 \0é=", max_size=80) | st.text(max_size=80))
def test_rubbish_opens_nowhere_and_breaks_nothing(text: str) -> None:
    with pytest.raises(Unopened):
        unseal(text, {"": PASSWORD}, NOW_MS)


@given(parts=st.lists(st.text("A-_1é \ud800", max_size=50), min_size=7, max_size=7), raw=st.booleans())
def test_rubbish_in_the_right_number_of_parts_breaks_nothing(parts: list[str], raw: bool) -> None:
    with pytest.raises(Unopened):
        unseal("*".join(["Fe26.2", "", *parts[1:]]), {"": RAW if raw else PASSWORD}, NOW_MS)


@pytest.mark.parametrize("password", ["x" * 31, b"x" * 31, b"x" * 33])
def test_a_password_that_iron_refuses_is_refused(password: Password) -> None:
    with pytest.raises(ValueError, match=r"31|33"):
        make_key(password)


def test_an_id_that_iron_refuses_is_refused() -> None:
    with pytest.raises(ValueError, match="id"):
        make_key(RAW, "k-1")


def test_two_seals_of_one_text_are_different() -> None:
    assert sealed() != sealed()

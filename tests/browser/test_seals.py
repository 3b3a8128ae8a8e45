"""How `client.js` opens seals, in node: those of npm's packages and of the relay, and nothing else; and what it finds wrong inside."""

import json
import time
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.seal import Password, SealingKey, make_key, write_base64
from tests.browser.node import run
from tests.iron import PACKAGES, run_iron
from tests.test_seal import OBJECTS, PASSWORD, PASSWORDS, RAW, TEXT, VECTORS

NOW_MS = 1767225600000

OPEN = """
const bytes = text => Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), char => char.charCodeAt(0));
const secret = given => typeof given === "string" ? given : given.raw ? bytes(given.raw) :
  { encryption: bytes(given.encryption), integrity: bytes(given.integrity) };
return Promise.all(given.map(([text, password, now]) =>
  client.unseal(text, secret(password), now).then(value => ({ value }), error => ({ reason: error.reason || String(error) }))));
"""


def in_js(password: Password) -> Any:
    return password if isinstance(password, str) else {"raw": write_base64(password)}


def opened(*seals: tuple[str, Any, int]) -> list[dict[str, Any]]:
    """What the client makes of each of these: the value, or the reason why there is none."""
    found: list[dict[str, Any]] = run(OPEN, seals)
    return found


def test_the_vectors_open() -> None:
    apart = {"encryption": write_base64(RAW), "integrity": write_base64(bytes(range(32, 64)))}
    keys = {"string": PASSWORD, "string with an id": PASSWORD, "two raw keys": apart}
    found = opened(*((text, keys[name], NOW_MS) for name, (_, _, text) in VECTORS.items()))
    assert found == [{"value": json.loads(TEXT)}] * len(VECTORS)


def test_what_the_relay_seals_opens() -> None:
    seals = [
        (SealingKey(make_key(password, id)).seal(json.dumps(value).encode(), NOW_MS).decode(), in_js(password), NOW_MS)
        for password, id in PASSWORDS.values()
        for value in OBJECTS
    ]
    assert opened(*seals) == [{"value": value} for _ in PASSWORDS for value in OBJECTS]


def test_what_the_packages_of_npm_seal_opens() -> None:
    cases = [(lib, value, password, id) for lib in PACKAGES for value in OBJECTS for password, id in PASSWORDS.values()]
    jobs = [
        {
            "lib": lib,
            "seal": value,
            "password": {"id": id, "secret": in_js(password)} if id else in_js(password),
            "options": {"ttl": 3_600_000},
        }
        for lib, value, password, id in cases
    ]
    seals = [answer["ok"] for answer in run_iron(jobs)]
    now_ms = int(time.time() * 1000)
    found = opened(*((text, in_js(case[2]), now_ms) for text, case in zip(seals, cases, strict=True)))
    assert found == [{"value": value} for _, value, _, _ in cases]


def changed(text: str, part: int) -> str:
    """With another first character in one of its parts."""
    parts = text.split("*")
    parts[part] = ("B" if parts[part][:1] != "B" else "C") + parts[part][1:]
    return "*".join(parts)


@pytest.mark.parametrize("password", [PASSWORD, RAW], ids=["string", "raw key"])
def test_what_was_changed_cut_or_sealed_by_another_does_not_open(password: Password) -> None:
    good = SealingKey(make_key(password, "k1")).seal(TEXT, NOW_MS).decode()
    key = in_js(password)
    other = "another" + PASSWORD if isinstance(password, str) else {"raw": write_base64(bytes(32))}
    salted = [2, 6] if isinstance(password, str) else []
    cases = {
        "its prefix": (changed(good, 0), key, "malformed"),
        **{f"part {part}": (changed(good, part), key, "forged") for part in [1, 3, 4, 7, *salted]},
        "a later end": (good.replace(str(NOW_MS), str(NOW_MS + 1)), key, "forged"),
        "no end": (good.replace(str(NOW_MS), ""), key, "forged"),
        "an end that is no time": (good.replace(str(NOW_MS), "soon"), key, "malformed"),
        "another key": (good, other, "forged"),
        "cut": (good[:-5], key, "forged"),
        "a part is missing": (good.rpartition("*")[0], key, "malformed"),
        "a part too many": (good + "*", key, "malformed"),
        "no base64url": (good.replace("*k1*", "*k1*", 1)[:-1] + "=", key, "malformed"),
        "a length that base64 hasn't": (good + "AA", key, "malformed"),
        "empty": ("", key, "malformed"),
    }
    found = opened(*((text, given, NOW_MS) for text, given, _ in cases.values()))
    assert dict(zip(cases, found, strict=True)) == {name: {"reason": reason} for name, (_, _, reason) in cases.items()}


def test_a_seal_opens_until_its_end_and_a_minute_longer_for_wrong_clocks() -> None:
    text = SealingKey(make_key(RAW)).seal(TEXT, NOW_MS).decode()
    found = opened(*((text, in_js(RAW), NOW_MS + ms) for ms in (-(10**9), 59_999, 60_000)))
    assert [list(one) for one in found] == [["value"], ["value"], ["reason"]]
    assert found[2]["reason"] == "expired"


ENVELOPE = {"id": "e.1-2.3-t", "topic": "a/b/c", "n": 3, "event": "update", "ts": 1, "sealed_at": NOW_MS, "data": 1}
ASKED = {"topics": ["a/b/c"], "topic": "a/b/c", "id": "e.1-2.3-t", "event": "update", "n": 3}
END = NOW_MS + 300_000


@pytest.mark.parametrize(
    ("envelope", "asked", "expires", "now", "wrong"),
    [
        ({}, {}, END, NOW_MS, ""),
        ({}, {"topic": None, "id": None, "event": None, "n": None}, END, NOW_MS, ""),
        ({"topic": "a/b/d"}, {}, END, NOW_MS, "foreign_topic"),
        ({}, {"topic": "a/b/d", "topics": ["a/b/c", "a/b/d"]}, END, NOW_MS, "other_topic"),
        ({"id": "e.1-1.2-t"}, {}, END, NOW_MS, "other_id"),
        ({"event": "closed"}, {}, END, NOW_MS, "other_event"),
        ({"n": 2}, {}, END, NOW_MS, "other_n"),
        ({"sealed_at": NOW_MS + 60_001}, {}, END, NOW_MS, "stale"),
        ({}, {}, NOW_MS, NOW_MS + 60_000, "stale"),
        ({}, {}, None, NOW_MS + 359_999, ""),
        ({}, {}, None, NOW_MS + 360_000, "stale"),
        ({"sealed_at": None}, {}, END, NOW_MS, "malformed"),
    ],
)
def test_an_envelope_must_be_what_was_asked_for_and_fresh(
    envelope: dict[str, Any], asked: dict[str, Any], expires: int | None, now: int, wrong: str
) -> None:
    given = [ENVELOPE | envelope, ASKED | asked, expires, now]
    assert run("return client.whatIsWrong(...given)", given) == wrong


def test_something_else_than_an_envelope_is_none() -> None:
    for value in (None, 7, "text", [1]):
        assert run("return client.whatIsWrong(...given)", [value, ASKED, END, NOW_MS]) == "malformed"


def test_a_secret_for_all_seals_opens_them_in_the_order_of_the_calls() -> None:
    now_ms = int(time.time() * 1000)
    texts = [
        SealingKey(make_key(PASSWORD))
        .seal(json.dumps(ENVELOPE | {"data": number, "sealed_at": now_ms}).encode(), now_ms + 3_600_000)
        .decode()
        for number in range(20)
    ]
    script = """
    client.openWith({ secret: given.secret });
    const opened = [];
    await Promise.all(given.texts.map(text => client.decryptData(text).then(data => opened.push(data))));
    return opened;
    """
    assert run(script, {"secret": PASSWORD, "texts": texts}) == list(range(20))


# What was compressed before it was sealed

INFLATE = """
const bytes = text => Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), char => char.charCodeAt(0));
return given.map(([text, most]) => {
  try { return Array.from(client.inflate(bytes(text), most)) } catch (error) { return error.name }
});
"""


def inflated(*given: tuple[bytes, int]) -> list[bytes | str]:
    found = run(INFLATE, [[write_base64(raw), most] for raw, most in given])
    return [one if isinstance(one, str) else bytes(one) for one in found]


def deflated(text: bytes, level: int, strategy: int) -> bytes:
    made = zlib.compressobj(level, zlib.DEFLATED, -15, 9, strategy)
    return made.compress(text) + made.flush()


TEXTS = st.one_of(
    st.binary(max_size=400),
    st.text("ab", max_size=2000).map(str.encode),
    st.lists(st.integers(0, 300)).map(lambda numbers: json.dumps(numbers).encode()),
    st.integers(0, 70_000).map(lambda size: (b"0123456789" * 7000)[:size]),
)
STRATEGIES = [zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE, zlib.Z_FIXED]


@settings(max_examples=20)
@given(st.lists(st.tuples(TEXTS, st.integers(0, 9), st.sampled_from(STRATEGIES)), min_size=1, max_size=20))
def test_what_zlib_deflates_inflates(cases: list[tuple[bytes, int, int]]) -> None:
    assert inflated(*((deflated(*case), 1 << 17) for case in cases)) == [text for text, _, _ in cases]


@settings(max_examples=20)
@given(st.lists(st.tuples(TEXTS, st.integers(0, 9), st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=20))
def test_what_was_changed_is_something_else_or_an_error(cases: list[tuple[bytes, int, int, int]]) -> None:
    broken = []
    for text, level, at, flip in cases:
        raw = bytearray(deflated(text, level, 0))
        raw[at % len(raw)] ^= flip
        broken.append((bytes(raw), 1 << 17))
    assert all(isinstance(found, bytes) or found == "RangeError" for found in inflated(*broken))


def test_deflated_data_that_is_cut_short_or_grows_without_end_is_refused() -> None:
    whole = deflated(b"0123456789" * 1000, 9, 0)
    assert inflated((whole, 10_000), (whole, 9_999), (whole[:-1], 10_000), (b"", 10_000)) == [b"0123456789" * 1000, *["RangeError"] * 3]


STORED, FIXED, DYNAMIC = "00", "10", "01"  # the kinds of blocks, in the order of their bits


@pytest.mark.parametrize(
    ("bits", "told"),
    [
        # The fixed code has two symbols more than there are lengths. Behind it come only zeros, which are codes too.
        (f"1{FIXED}11000110{'0' * 8000}", "with a length that is none"),
        (f"1{FIXED}000000111110{'0' * 8000}", "with a code that is none"),
        (f"0{STORED}00000{'1' * 8}{'0' * 8}", "that is cut short"),
        (f"1{STORED}00000{'0' * 16}{'0' * 16}", "with two lengths"),
        ("111", "of a kind that is none"),
        (f"1{DYNAMIC}00000{'00000'}{'1111'}{'100' * 19}", "with too many codes"),
        (f"1{DYNAMIC}00000{'00000'}{'0000'}{'100' * 2}{'000' * 2}0{'0' * 8}", "that repeats what wasn't there"),
    ],
)
def test_what_is_wrong_is_told_where_it_stands(bits: str, told: str) -> None:
    raw = int(bits[::-1], 2).to_bytes(-(-len(bits) // 8), "little")
    script = "try { client.inflate(Uint8Array.from(given), 1 << 26) } catch (error) { return error.message }"
    assert run(script, list(raw)) == f"deflated data {told}"


def test_a_compressed_payload_is_opened_and_what_is_none_refused() -> None:
    now_ms = int(time.time() * 1000)
    value = {"é": ["x" * 2000]}
    whole = write_base64(deflated(json.dumps(value, ensure_ascii=False).encode(), 6, 0))
    packed = {"": whole, "cut": whole[:20], "no base64": "*", "no text": 7, "no json": write_base64(deflated(b"{", 6, 0))}
    inside = [{"compression": "deflate-raw", "data": data} for data in packed.values()]
    inside += [{"compression": other, "data": whole} for other in ("gzip", None, "")]
    texts = [
        SealingKey(make_key(PASSWORD)).seal(json.dumps(ENVELOPE | {"sealed_at": now_ms} | one).encode(), now_ms + 3_600_000).decode()
        for one in inside
    ]
    script = """
    client.openWith({ secret: given.secret });
    return Promise.all(given.texts.map(text => client.decryptData(text).catch(error => error.reason)));
    """
    assert run(script, {"secret": PASSWORD, "texts": texts}) == [value, *["malformed"] * (len(texts) - 1)]

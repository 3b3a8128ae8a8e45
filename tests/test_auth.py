"""Which tokens hold, and what they grant. RFC 8725 (JWT Best Current Practices) is cited where a test holds one of its items."""

import base64
import hmac
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from relay.auth import (
    NOBODY,
    Grants,
    Identity,
    Subscription,
    Verifier,
    claim,
    parse_grants,
    parse_public_key,
    parse_secret,
    parse_subscription,
)
from relay.errors import Unauthorized
from relay.topic import Patterns
from tests.waiting import in_time

SECRET = "a-secret-of-these-tests-0123456789-0123456789"
OTHER = "another-secret-0123456789-0123456789-01234567"
NOW = time.time()
MAX_S = 30 * 86400
VERIFIER = Verifier(parse_secret(SECRET), MAX_S)


def claims(**more: Any) -> dict[str, Any]:
    """Valid ones; None leaves one out."""
    body = {"sub": "ada", "iat": int(NOW), "exp": int(NOW) + 3600, "relay": {"subscribe": ["rounds/**"]}} | more
    return {name: value for name, value in body.items() if value is not None}


def signed(secret: Any = SECRET, algorithm: str = "HS256", headers: dict[str, Any] | None = None, **more: Any) -> str:
    """Without the looks that PyJWT takes at claims when it writes them."""
    return jwt.api_jws.encode(json.dumps(claims(**more)).encode(), secret, algorithm, headers)


def base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")


def encoded(value: object) -> str:
    return base64url(json.dumps(value).encode())


def refused(verifier: Verifier, token: str) -> Unauthorized:
    with pytest.raises(Unauthorized) as caught:
        verifier.verify(token, NOW)
    problem = caught.value
    assert token not in problem.detail or not token
    assert SECRET not in problem.detail
    return problem


def test_a_token_says_who_asks_and_what_they_may() -> None:
    grants = {"subscribe": ["rounds/**"], "publish": ["a/b/*"], "admin": ["status", "revoke"]}
    token = signed(relay=grants, subscription={"status": "active", "until": 2e9}, jti="j-1")
    assert VERIFIER.verify(token, NOW) == Identity(
        "ada",
        Grants(Patterns.parse(["rounds/**"])[0], Patterns.parse(["a/b/*"])[0], frozenset({"status", "revoke"})),
        Subscription("active", 2e9),
        int(NOW) + 3600,
        int(NOW),
        "j-1",
    )


def test_nobody_is_granted_nothing() -> None:
    assert not NOBODY.grants.subscribe.match("a/b/c")
    assert not NOBODY.subscription.active(NOW)


# RFC 8725, section 3.1: the algorithm follows from the key, never from the token


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", "", "HS1", "hs256"])
def test_an_unsigned_token_is_refused_rfc_8725_3_1(name: str) -> None:
    """Section 2.1: libraries trusted `alg: none`."""
    unsigned = f"{encoded({'alg': name, 'typ': 'JWT'})}.{encoded(claims())}"
    signature = signed().rpartition(".")[2]
    for token in (f"{unsigned}.", unsigned, f"{unsigned}.{signature}"):
        assert refused(VERIFIER, token).code == "bad_token"


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_another_algorithm_with_the_right_secret_is_refused_rfc_8725_3_1(algorithm: str) -> None:
    long = SECRET * 2
    verifier = Verifier(parse_secret(long), MAX_S)
    assert verifier.verify(signed(long), NOW).sub == "ada"
    assert refused(verifier, signed(long, algorithm)).code == "bad_token"


def test_a_token_signed_with_the_public_key_as_a_secret_is_refused_rfc_8725_3_1() -> None:
    """Section 2.1: an RS256 verifier took HS256 with the public key, which everybody has, as the secret."""
    private, pem = pair("RS256")
    verifier = Verifier((parse_public_key(pem),), MAX_S)
    text = f"{encoded({'alg': 'HS256', 'typ': 'JWT'})}.{encoded(claims())}"
    for secret in (pem, pem.strip()):
        token = f"{text}.{base64url(hmac.digest(secret, text.encode(), 'sha256'))}"
        assert refused(verifier, token).code == "bad_token"
    assert verifier.verify(signed(private, "RS256"), NOW).sub == "ada"


def test_a_key_that_a_token_brings_along_is_not_used_rfc_8725_3_10() -> None:
    """Section 3.10: neither `kid` nor `jku`, `x5u` or `jwk` decide what verifies it."""
    key = {"kty": "oct", "k": base64url(OTHER.encode())}
    url = "http://127.0.0.1:1/keys"
    brought = {"jwk": key, "jku": url, "x5u": url, "kid": "../../../../dev/null"}
    assert refused(VERIFIER, signed(OTHER, headers=brought)).code == "bad_token"
    assert VERIFIER.verify(signed(headers=brought), NOW).sub == "ada"


# RFC 8725, sections 3.2 to 3.5: signatures and keys


def test_a_token_of_another_key_is_refused_rfc_8725_3_3() -> None:
    assert refused(VERIFIER, signed(OTHER)).code == "bad_token"


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_token_that_was_changed_is_refused_rfc_8725_3_3(part: int) -> None:
    parts = signed().split(".")
    parts[part] = ("B" if parts[part][0] != "B" else "C") + parts[part][1:]
    assert refused(VERIFIER, ".".join(parts)).code == "bad_token"


def test_a_signature_of_another_tokens_is_refused_rfc_8725_3_3() -> None:
    head, _, signature = signed().split(".")
    forged = encoded(claims(relay={"subscribe": ["**"]}))
    assert refused(VERIFIER, f"{head}.{forged}.{signature}").code == "bad_token"


@pytest.mark.parametrize("secret", ["", "short", "x" * 31, f"{'x' * 32},short", ",".join(["x" * 32] * 3), f"{'x' * 32},"])
def test_a_secret_of_less_than_32_bytes_is_none_rfc_8725_3_5(secret: str) -> None:
    with pytest.raises(ValueError, match="at least 32 bytes") as caught:
        parse_secret(secret)
    assert "xxx" not in str(caught.value)


def test_a_secret_has_32_bytes_or_more_rfc_8725_3_5() -> None:
    assert [key.key for key in parse_secret("x" * 32)] == [b"x" * 32]
    assert [key.key for key in parse_secret("é" * 16)] == ["é".encode() * 16]


def test_an_unknown_extension_that_must_be_understood_is_refused() -> None:
    """RFC 7515, section 4.1.11."""
    assert refused(VERIFIER, signed(headers={"crit": ["x"], "x": 1})).code == "bad_token"


# RFC 8725, sections 3.8, 3.9 and 3.11: who it is from and for


def test_a_token_of_another_issuer_is_refused_rfc_8725_3_8() -> None:
    verifier = Verifier(parse_secret(SECRET), MAX_S, issuer="https://id.example.com")
    assert verifier.verify(signed(iss="https://id.example.com"), NOW).sub == "ada"
    for issuer in ("https://id.example.com/", "https://id.example.co", "", ["https://id.example.com"], None):
        assert refused(verifier, signed(iss=issuer)).code == "bad_token"


@pytest.mark.parametrize("sub", [None, "", "x" * 256, 7, ["ada"], {"a": 1}, True])
def test_a_token_without_a_subject_is_refused_rfc_8725_3_8(sub: object) -> None:
    assert refused(VERIFIER, signed(sub=sub)).code == "bad_token"


def test_a_subject_has_255_characters_at_most() -> None:
    assert VERIFIER.verify(signed(sub="é" * 255), NOW).sub == "é" * 255


def test_a_token_for_another_audience_is_refused_rfc_8725_3_9() -> None:
    verifier = Verifier(parse_secret(SECRET), MAX_S, audience="relay")
    for audience in ("relay", ["other", "relay"]):
        assert verifier.verify(signed(aud=audience), NOW).sub == "ada"
    for other in ("other", ["other"], [], "relay,other", None):
        assert refused(verifier, signed(aud=other)).code == "bad_token"


def test_without_a_configured_audience_or_issuer_any_will_do() -> None:
    assert VERIFIER.verify(signed(aud="other", iss="other"), NOW).sub == "ada"


# Times


def test_a_token_without_an_end_is_refused() -> None:
    problem = refused(VERIFIER, signed(exp=None))
    assert "exp" in problem.detail


@pytest.mark.parametrize(
    "exp", [True, "text", pytest.param(str(int(NOW) + 60), id="a time as text"), [1], {}, float("nan"), float("inf"), 10**400, -1]
)
def test_an_end_that_is_no_time_is_refused(exp: object) -> None:
    refused(VERIFIER, signed(exp=exp))


def test_a_token_ends_30_s_after_its_end() -> None:
    """By the clock of the moment: PyJWT asks it itself."""

    def look(life_s: float) -> bool:
        """Whether a token that has ended, but not yet by its leeway, was looked at before that."""
        token = signed(exp=int(time.time() + min(life_s, 29)) - 30)
        try:
            return bool(VERIFIER.verify(token, NOW).expires_s)
        except Unauthorized:
            return False

    in_time(look)
    assert refused(VERIFIER, signed(exp=int(time.time()) - 31)).code == "token_expired"


def test_a_token_holds_30_days_at_most() -> None:
    assert VERIFIER.verify(signed(exp=int(NOW) + MAX_S), NOW).sub == "ada"
    problem = refused(VERIFIER, signed(exp=int(NOW) + MAX_S + 1))
    assert str(MAX_S) in problem.detail


@pytest.mark.parametrize("name", ["nbf", "iat"])
def test_a_token_from_the_future_is_refused(name: str) -> None:
    soon: dict[str, Any] = {name: int(time.time()) + 15}
    late: dict[str, Any] = {name: int(time.time()) + 3600}
    assert VERIFIER.verify(signed(**soon), NOW).sub == "ada"
    assert refused(VERIFIER, signed(**late)).code == "bad_token"


# Sizes and forms


def of_size(size: int) -> str:
    """A valid token of so many bytes."""
    for pad in range(size):
        token = signed(pad="x" * (size * 3 // 4 - 400 + pad))
        if len(token) >= size:
            return token
    raise AssertionError


def test_a_token_has_4_kib_at_most() -> None:
    fits = of_size(4095)
    assert 4095 <= len(fits) <= 4096
    assert VERIFIER.verify(fits, NOW).sub == "ada"
    assert "4096" in refused(VERIFIER, of_size(4097)).detail


def test_a_token_too_large_is_not_even_looked_at() -> None:
    assert "4096" in refused(VERIFIER, "." * 4097).detail


RUBBISH = {
    "one part": "x",
    "two parts": "x.y",
    "three parts": "x.y.z",
    "four parts": f"{signed()}.x",
    "no base64": "é.é.é",
    "no JSON": f"{base64url(b'{')}.{encoded({})}.x",
    "a head that is no object": f"{encoded([])}.{encoded(claims())}.x",
    "claims that are no object": jwt.api_jws.encode(b"[1]", SECRET, "HS256"),
    "claims that are no JSON": jwt.api_jws.encode(b"\xff{", SECRET, "HS256"),
    "claims nested deeply": jwt.api_jws.encode(b"[" * 2000, SECRET, "HS256"),
    "a five-part JWE": "a.b.c.d.e",
    "a space in front": f" {signed()}",
    "a line end behind": f"{signed()}\n",
    "dots": "..",
}


@pytest.mark.parametrize("token", RUBBISH.values(), ids=RUBBISH)
def test_rubbish_is_refused(token: str) -> None:
    assert refused(VERIFIER, token).code == "bad_token"


@given(st.text(st.characters(max_codepoint=255), max_size=80))
def test_any_text_is_refused(token: str) -> None:
    with pytest.raises(Unauthorized):
        VERIFIER.verify(token, NOW)


# Keys


def test_two_secrets_hold_during_a_rotation() -> None:
    verifier = Verifier(parse_secret(f"{SECRET}, {OTHER}"), MAX_S)
    for secret in (SECRET, OTHER):
        assert verifier.verify(signed(secret), NOW).sub == "ada"
    assert refused(verifier, signed("x" * 40)).code == "bad_token"
    assert refused(verifier, signed(OTHER, exp=int(NOW) - 60)).code == "token_expired"
    assert "exp" in refused(verifier, signed(OTHER, exp=None)).detail


PRIVATE: dict[str, Callable[[], Any]] = {
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}
WEAK: dict[str, Callable[[], Any]] = {
    "an RSA key of 1024 bits": lambda: rsa.generate_private_key(65537, 1024),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "Ed448": ed448.Ed448PrivateKey.generate,
    "DSA": lambda: dsa.generate_private_key(1024),
}


def public(private: Any) -> bytes:
    return bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def pair(algorithm: str) -> tuple[Any, bytes]:
    private = PRIVATE[algorithm]()
    return private, public(private)


@pytest.mark.parametrize("algorithm", PRIVATE)
def test_a_public_key_verifies_the_one_algorithm_that_it_is_for(algorithm: str) -> None:
    private, pem = pair(algorithm)
    key = parse_public_key(pem)
    assert key.algorithm == algorithm
    verifier = Verifier((key,), MAX_S)
    assert verifier.verify(signed(private, algorithm), NOW).sub == "ada"
    other, _ = pair(algorithm)
    for token in (signed(other, algorithm), signed(), f"{encoded({'alg': 'none'})}.{encoded(claims())}."):
        assert refused(verifier, token).code == "bad_token"


def test_an_rsa_key_does_not_verify_with_another_padding_or_hash() -> None:
    private, pem = pair("RS256")
    verifier = Verifier((parse_public_key(pem),), MAX_S)
    for algorithm in ("PS256", "RS512"):
        assert refused(verifier, signed(private, algorithm)).code == "bad_token"


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")  # such keys are what is refused
@pytest.mark.parametrize("generate", WEAK.values(), ids=WEAK)
def test_a_key_that_is_weak_or_of_another_kind_is_none(generate: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="holds no RSA key"):
        parse_public_key(public(generate()))


def test_a_private_key_or_rubbish_is_no_public_key() -> None:
    private = PRIVATE["ES256"]().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for pem in (private, b"", b"x", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"):
        with pytest.raises(ValueError, match=r".+"):
            parse_public_key(pem)


# Claims

POINTED = {"relay": 1, "https://example.com/relay": 2, "app": {"relay": 3, "a/b": {"~": 4}, "list": [5]}, "": 6}
POINTERS = {
    "a name": ("relay", 1),
    "a URL as a name": ("https://example.com/relay", 2),
    "a pointer": ("/app/relay", 3),
    "a pointer to the top": ("/relay", 1),
    "an escaped pointer": ("/app/a~1b/~0", 4),
    "a URL as a pointer": ("/https:~1~1example.com~1relay", 2),
    "an empty part": ("/", 6),
    "nothing there": ("/app/none/deeper", None),
    "no such name": ("none", None),
    "into a value": ("/relay/x", None),
    "into a list": ("/app/list/0", None),
    "a name with dots": ("app.relay", None),
}


@pytest.mark.parametrize(("name", "value"), POINTERS.values(), ids=POINTERS)
def test_a_claim_is_found_by_its_name_or_by_a_json_pointer(name: str, value: object) -> None:
    assert claim(POINTED, name) == value


def test_claims_may_have_other_names() -> None:
    verifier = Verifier(parse_secret(SECRET), MAX_S, None, None, "/app/grants", "https://example.com/plan")
    named: dict[str, Any] = {"app": {"grants": {"subscribe": ["a/**"]}}, "https://example.com/plan": {"status": "active"}}
    identity = verifier.verify(signed(**named), NOW)
    assert identity.grants.subscribe.texts() == ["a/**"]
    assert identity.subscription.active(NOW)
    assert not verifier.verify(signed(subscription={"status": "active"}), NOW).subscription.active(NOW)


NO_GRANTS = {
    "none": None,
    "a text": "**",
    "a number": 7,
    "a list": ["**"],
    "empty": {},
    "a pattern that is not in a list": {"subscribe": "**"},
    "patterns by name": {"subscribe": {"**": True}},
    "patterns that are no texts": {"subscribe": [7, None, ["**"], {"p": "**"}]},
    "bad patterns": {"subscribe": ["rounds/**/x", "***", "", "rounds/ROUL*/1", "/**", " **"]},
    "other names": {"Subscribe": ["**"], "read": ["**"], "publish": ["**"]},
}


@pytest.mark.parametrize("value", NO_GRANTS.values(), ids=NO_GRANTS)
def test_what_is_not_understood_grants_nothing(value: object) -> None:
    assert not parse_grants(value).subscribe.match("rounds/ROULETTE/123")


def test_a_bad_pattern_is_logged_and_the_good_ones_count(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("relay"), "propagate", True)
    grants = parse_grants({"subscribe": ["bad\n[STREAM] forged", "rounds/**"], "publish": ["*"]})
    assert grants.subscribe.match("rounds/a/b")
    assert not grants.publish.match("rounds/a/b")
    assert [record.getMessage().count("\n") for record in caplog.records] == [0, 0]
    assert "forged" in caplog.text


@pytest.mark.parametrize("value", ["**", 7, ["**"], {"subscribe": "**"}, {"publish": [7]}, {"admin": {"status": True}}], ids=str)
def test_grants_of_a_wrong_shape_are_logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, value: object) -> None:
    monkeypatch.setattr(logging.getLogger("relay"), "propagate", True)
    assert parse_grants(value) == Grants()
    assert len(caplog.records) == 1
    assert "a token's" in caplog.text


@pytest.mark.parametrize("value", [None, {}, {"subscribe": []}, {"subscribe": None, "read": 7}], ids=str)
def test_no_grants_are_no_mistake(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, value: object) -> None:
    monkeypatch.setattr(logging.getLogger("relay"), "propagate", True)
    assert parse_grants(value) == Grants()
    assert not caplog.records


SUBSCRIPTIONS = {
    "active": ({"status": "active"}, True),
    "active until later": ({"status": "active", "until": NOW + 1}, True),
    "active without an end": ({"status": "active", "until": None}, True),
    "over": ({"status": "active", "until": NOW}, False),
    "over since 1970": ({"status": "active", "until": 0}, False),
    "inactive": ({"status": "inactive"}, False),
    "in capitals": ({"status": "ACTIVE"}, False),
    "a truth": ({"status": True}, False),
    "without a status": ({"until": NOW + 1}, False),
    "an end that is a text": ({"status": "active", "until": "2099-01-01"}, False),
    "an end that is a truth": ({"status": "active", "until": True}, False),
    "an end that is no number": ({"status": "active", "until": float("nan")}, False),
    "a text": ("active", False),
    "a list": (["active"], False),
    "none": (None, False),
}


@pytest.mark.parametrize(("value", "active"), SUBSCRIPTIONS.values(), ids=SUBSCRIPTIONS)
def test_a_subscription_is_active_only_if_it_says_so(value: object, active: bool) -> None:
    assert parse_subscription(value).active(NOW) is active

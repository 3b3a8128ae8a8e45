"""RFC 8725 (JWT Best Current Practices), section by section: each attack that could be made on a relay, made on one.

Sections 3.1, 3.3, 3.5, 3.8, 3.9 and 3.10 have more cases in `test_auth.py`, and of published keys in `test_jwks.py`. What the RFC says
of encrypted tokens (ECDH-ES in 2.5, compression in 3.6) applies as far as that they are refused.
"""

import base64
import hmac
import json
import time
import zlib
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relay.auth import Verifier, parse_public_key, parse_secret
from relay.errors import Unauthorized
from tests.asking import AUTH, Asker, check_problem
from tests.servers import SECRET
from tests.servers import token as good_token
from tests.test_auth import base64url, encoded

POLL, LIVE = "/stream/tests/bcp/1/v1/poll", "/stream/tests/bcp/1/v1/live"
NOW = int(time.time())
CLAIMS: dict[str, Any] = {
    "sub": "ada",
    "iat": NOW,
    "exp": NOW + 86400,
    "relay": {"subscribe": ["**"], "admin": ["status"]},
    "subscription": {"status": "active"},
}


def signed(payload: bytes, secret: str = SECRET, **header: Any) -> str:
    """Without the looks that PyJWT takes at what it writes."""
    text = f"{encoded({'alg': 'HS256', **header})}.{base64url(payload)}"
    return f"{text}.{base64url(hmac.digest(secret.encode(), text.encode(), 'sha256'))}"


def refused(asker: Asker, text: str) -> None:
    """By each carrier, for streams and pages."""
    for path in (POLL, LIVE):
        check_problem(asker.get(path, headers={"authorization": f"Bearer {text}"}), 401, "bad_token")
    answer = asker.get(f"{POLL}?token={text}", headers={})
    check_problem(answer, 401, "bad_token")
    cookie = {"cookie": f"relay_token={text}", "sec-fetch-site": "same-origin"}
    check_problem(asker.get(POLL, headers=cookie), 401, "bad_token")


JSON = json.dumps(CLAIMS).encode()
UNSIGNED = f"{encoded({'alg': 'none', 'typ': 'JWT'})}.{encoded(CLAIMS)}."
TOKENS: dict[str, str] = {
    "2.1, 3.1: no signature": UNSIGNED,
    "2.1, 3.1: no algorithm": f"{encoded({'typ': 'JWT'})}.{encoded(CLAIMS)}.{signed(b'{}').rpartition('.')[2]}",
    "2.1, 3.1: two algorithms": f"{encoded({'alg': ['HS256', 'none']})}.{encoded(CLAIMS)}.",
    "2.1, 3.1: an algorithm of other letters": f"{encoded({'alg': 'hs256'})}.{encoded(CLAIMS)}.{signed(b'{}').rpartition('.')[2]}",
    "2.2, 3.5: a guessed secret": signed(JSON, "secret"),
    "2.2, 3.5: an empty secret": signed(JSON, ""),
    "2.3, 3.2: an encrypted token": f"{encoded({'alg': 'dir', 'enc': 'A256GCM'})}..AAAA.{encoded(CLAIMS)}.AAAA",
    "2.3, 3.2: a password with many rounds": f"{encoded({'alg': 'PBES2-HS256+A128KW', 'enc': 'A256GCM', 'p2c': 2**31})}.x.x.x.x",
    "2.3, 3.3: a token in a token": signed(signed(JSON).encode(), cty="JWT"),
    "2.4, 3.6: compressed claims": signed(zlib.compress(JSON)[2:-4], zip="DEF"),
    "2.4, 3.6: claims that unfold to megabytes": signed(zlib.compress(b" " * 2_000_000)[2:-4], zip="DEF"),
    "2.6, 3.7: no UTF-8": signed(JSON.replace(b"ada", b"\xff\xfe")),
    "3.3: signed for other claims": f"{signed(b'{}').partition('.')[0]}.{encoded(CLAIMS)}.{signed(b'{}').rpartition('.')[2]}",
    "3.3: signed, and more behind": signed(JSON) + "x",
    "3.3: an extension that must be understood": signed(JSON, crit=["b64"], b64=False),
    "3.8: nobody's": signed(json.dumps({**CLAIMS, "sub": ""}).encode()),
    "3.8: half a character's": signed(json.dumps({**CLAIMS, "sub": "\ud800"}).encode()),
}
SECRETS_ELSEWHERE = {"jku": "https://evil.example/keys", "x5u": "https://evil.example/x", "x5c": ["AAAA"]}
BROUGHT: dict[str, dict[str, Any]] = {
    "a path": {"kid": "../../../../dev/null"},
    "a query": {"kid": "x' UNION SELECT 'secret"},
    "a command": {"kid": "|/bin/true"},
    "addresses": SECRETS_ELSEWHERE,
    "a key": {"jwk": {"kty": "oct", "k": base64url(b"x" * 40)}},
}


@pytest.mark.parametrize("attack", TOKENS)
def test_a_token_of_an_attacker_is_refused(asker: Asker, attack: str) -> None:
    refused(asker, TOKENS[attack])


@pytest.mark.parametrize("case", BROUGHT)
def test_what_a_header_brings_along_decides_nothing_rfc_8725_2_9_3_10(asker: Asker, case: str) -> None:
    for secret in ("x" * 40, "", "secret"):
        refused(asker, signed(JSON, secret, **BROUGHT[case]))
    assert asker.get(POLL, headers={"authorization": f"Bearer {signed(JSON, **BROUGHT[case])}"}).status_code == 200


def test_signatures_of_nothing_are_refused_rfc_8725_3_4() -> None:
    """Section 3.4: cryptographic inputs are validated. r = s = 0 once fitted every message and key (CVE-2022-21449)."""
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    verifier = Verifier((parse_public_key(pem),), 2 * 86400)
    text = f"{encoded({'alg': 'ES256', 'typ': 'JWT'})}.{encoded(CLAIMS)}"
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    for r, s in ((0, 0), (0, 1), (1, 0), (order, order), (order, 1), (2**256 - 1, 2**256 - 1)):
        with pytest.raises(Unauthorized):
            verifier.verify(f"{text}.{base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}", NOW)
    for size in (0, 1, 63, 65, 128):
        with pytest.raises(Unauthorized):
            verifier.verify(f"{text}.{base64url(b'1' * size)}", NOW)
    assert verifier.verify(jwt.encode(CLAIMS, private, "ES256"), NOW).sub == "ada"


def test_a_key_off_its_curve_is_none_rfc_8725_2_5_3_4() -> None:
    der = ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    off = der[:-1] + bytes([der[-1] ^ 1])
    pem = b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(off) + b"\n-----END PUBLIC KEY-----\n"
    with pytest.raises(ValueError, match=r".+"):
        parse_public_key(pem)


def test_a_token_for_somebody_else_is_refused_rfc_8725_2_7_3_8_3_9() -> None:
    """Section 2.7, substitution: what another recipient got must not serve here."""
    verifier = Verifier(parse_secret(SECRET), 2 * 86400, issuer="https://id.example", audience="relay")
    good = {**CLAIMS, "iss": "https://id.example", "aud": "relay"}
    assert verifier.verify(jwt.encode(good, SECRET, "HS256"), NOW).sub == "ada"
    for wrong in ({"iss": "https://id.example.evil"}, {"aud": "other"}, {"aud": ["other", "Relay"]}, {"iss": None}, {"aud": None}):
        with pytest.raises(Unauthorized):
            verifier.verify(signed(json.dumps({**good, **wrong}).encode()), NOW)


# Section 3.12: what makes a token one for the relay is that it grants something here.
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "an identity": ({"nonce": "n", "auth_time": NOW, "email": "ada@example.com"}, {}),
    "an access to something else": ({"scope": "subscribe publish admin", "client_id": "c"}, {"typ": "at+jwt"}),
    "a logout": ({"events": {"http://schemas.openid.net/event/backchannel-logout": {}}}, {"typ": "logout+jwt"}),
    "a security event": ({"events": {}, "toe": NOW}, {"typ": "secevent+jwt"}),
    "grants of another shape": ({"relay": "subscribe:**"}, {}),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_token_of_another_kind_opens_nothing_rfc_8725_2_8_3_11_3_12(asker: Asker, case: str) -> None:
    claims, header = OTHERS[case]
    bare = {name: value for name, value in CLAIMS.items() if name not in ("relay", "subscription")}
    for more in ({}, {"subscription": {"status": "active"}}):
        headers = {"authorization": f"Bearer {signed(json.dumps({**bare, **claims, **more}).encode(), **header)}"}
        status, code = (403, "topic_not_granted") if more else (402, "not_subscribed")
        check_problem(asker.get(POLL, headers=headers), status, code)
        check_problem(asker.ask("POST", "/stream/a/b/c", headers=headers, content=b'{"data":1}'), 403, "topic_not_granted")
        check_problem(asker.ask("POST", "/stream/revoke", headers=headers, content=b'{"sub":"a"}'), 403, "admin_not_granted")
        assert "host" not in asker.get("/stream/status", headers=headers).json()


def test_no_refusal_says_what_the_key_or_the_right_signature_is(asker: Asker) -> None:
    for text in (*TOKENS.values(), good_token()[:-2] + "xx"):
        answer = asker.get(POLL, headers={"authorization": f"Bearer {text}"})
        assert SECRET not in answer.text
        assert text not in answer.text
    assert asker.get(POLL, headers=AUTH).status_code == 200

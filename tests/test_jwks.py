"""The issuer's published keys: which are taken, when they are fetched, and what is said while they can't be. Over real TLS."""

import asyncio
import base64
import hmac
import json
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from relay import jwks
from relay.errors import Unauthorized, Unavailable
from relay.jwks import KeySet, parse_key_set
from tests.asking import Asker, asking, check_problem
from tests.protocol.world import Function
from tests.servers import Relay, Valkey
from tests.test_revocation import end_of
from tests.waiting import LIMIT_S, wait_for

POLL, LIVE = "/stream/a/b/c/v1/poll", "/stream/a/b/c/v1/live"
Private = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

OLD, NEW, FOREIGN = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
RSA_KEY, ED_KEY = rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate()


def public(key: Private, kid: str | None = None, **more: object) -> dict[str, Any]:
    """As a JWK."""
    match key:
        case ec.EllipticCurvePrivateKey():
            text = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())
        case rsa.RSAPrivateKey():
            text = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())
        case _:
            text = jwt.algorithms.OKPAlgorithm.to_jwk(key.public_key())
    return {**json.loads(text), **({"kid": kid} if kid else {}), **more}


def token(key: Private, kid: str | None, algorithm: str = "ES256", **claims: Any) -> str:
    now = int(time.time())
    body = {"sub": "ada", "iat": now, "exp": now + 600, "relay": {"subscribe": ["**"]}, "subscription": {"status": "active"}}
    return jwt.encode({**body, **claims}, key, algorithm, headers={"kid": kid} if kid else {})


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


class Issuer:
    """Publishes keys over TLS, with a certificate of its own."""

    def __init__(self, folder: Path) -> None:
        self.certificate = folder / "issuer.pem"
        make_certificate(self.certificate)
        self.status, self.body = 200, b"{}"
        self.headers: dict[str, str] = {}
        self.fetches = 0
        self.goes_on = threading.Event()
        self.goes_on.set()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.fetches += 1
                issuer.goes_on.wait(LIMIT_S)
                self.send_response(issuer.status)
                for name, value in issuer.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(issuer.body)))
                self.end_headers()
                self.wfile.write(issuer.body)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server.server_port}/keys"

    def publishes(self, *keys: object) -> None:
        self.status, self.body, self.headers = 200, json.dumps({"keys": keys}).encode(), {}

    def fails(self, status: int = 500, body: bytes = b"", **headers: str) -> None:
        self.status, self.body, self.headers = status, body, headers

    def close(self) -> None:
        self.goes_on.set()
        self.server.shutdown()
        self.server.server_close()


def make_certificate(path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - timedelta(1), now + timedelta(1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuer]:
    made = Issuer(tmp_path_factory.mktemp("issuer"))
    try:
        yield made
    finally:
        made.close()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def key_set(issuer: Issuer, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> KeySet:
    """To be used in one test alone, which closes it."""
    issuer.publishes(public(OLD, "old"))
    issuer.fetches = 0
    monkeypatch.setattr(jwks, "FETCH_S", LIMIT_S)
    monkeypatch.setattr(jwks, "tls", lambda: ssl.create_default_context(cafile=issuer.certificate))
    return KeySet(issuer.url, clock)


async def finds(key_set: KeySet, kid: str | None) -> str:
    try:
        return " ".join(key.algorithm for key in await key_set.find(kid))
    except (Unauthorized, Unavailable) as problem:
        return problem.code


# Which keys are taken

TAKEN: dict[str, tuple[dict[str, Any], str]] = {
    "P-256": (public(OLD, "k"), "ES256"),
    "P-384": (public(ec.generate_private_key(ec.SECP384R1()), "k"), "ES384"),
    "RSA": (public(RSA_KEY, "k"), "RS256"),
    "RSA for PSS": (public(RSA_KEY, "k", alg="PS256", use="sig"), "PS256"),
    "Ed25519": (public(ED_KEY, "k"), "EdDSA"),
}
PASSED_OVER: dict[str, dict[str, Any]] = {
    "a secret": {"kty": "oct", "kid": "k", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "alg": "HS256"},
    "a secret for RS256": {"kty": "oct", "kid": "k", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "alg": "RS256"},
    "a key that is said to be for HS256": public(RSA_KEY, "k", alg="HS256"),
    "a key for none": public(RSA_KEY, "k", alg="none"),
    "a curve for another algorithm": public(OLD, "k", alg="ES384"),
    "a small RSA key": public(rsa.generate_private_key(65537, 1024), "k"),
    "a private key": {**public(OLD, "k"), "d": "AAAA"},
    "a key for encryption": public(RSA_KEY, "k", use="enc"),
    "a point off its curve": {**public(OLD, "k"), "x": public(NEW)["x"]},
    "half a key": {"kty": "RSA", "kid": "k", "e": "AQAB"},
    "no kind": {"kid": "k"},
    "a name that is none": {**public(OLD), "kid": 7},
    "another curve": {**public(OLD, "k"), "crv": "secp256k1"},
    "an Edwards curve of the wrong kind": {**public(ED_KEY, "k"), "kty": "EC"},
}


@pytest.mark.parametrize("case", TAKEN)
def test_a_key_is_for_one_algorithm(case: str) -> None:
    jwk, algorithm = TAKEN[case]
    (key,) = parse_key_set(json.dumps({"keys": [jwk]}).encode())["k"]
    assert key.algorithm == algorithm


@pytest.mark.parametrize("case", PASSED_OVER)
def test_a_key_that_no_token_may_be_signed_with_is_passed_over_rfc_8725_3_1(case: str) -> None:
    """Sections 3.1, 3.4 and 3.5 too: asymmetric keys of full size, on their curve, each for its own algorithm."""
    assert list(parse_key_set(json.dumps({"keys": [PASSED_OVER[case], public(NEW, "good")]}).encode())) == ["good"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"keys":{}}', b'{"keys":[1,null,[]]}', b"<html>", b"\xff", b"[" * 100_000])
def test_what_is_no_key_set_is_none(body: bytes) -> None:
    with pytest.raises(ValueError, match="it "):
        parse_key_set(body)


# When they are fetched


@pytest.mark.anyio
async def test_keys_are_fetched_once_for_all_and_anew_before_they_are_stale(issuer: Issuer, key_set: KeySet, clock: Clock) -> None:
    assert await asyncio.gather(*(finds(key_set, "old") for _ in range(20))) == ["ES256"] * 20
    assert issuer.fetches == 1
    clock.now += jwks.REFRESH_S - 1
    key_set.refresh()
    assert key_set._fetching is None
    clock.now += 2
    issuer.publishes(public(NEW, "new"))
    issuer.goes_on.clear()
    key_set.refresh()
    assert await finds(key_set, "old") == "ES256"  # nobody waits for it
    issuer.goes_on.set()
    assert key_set._fetching
    await key_set._fetching
    assert (await finds(key_set, "new"), issuer.fetches, key_set.version) == ("ES256", 2, 2)
    clock.now += jwks.STALE_S + 1
    issuer.publishes(public(NEW, "new"), public(OLD, "older"))
    assert await finds(key_set, "older") == "ES256"  # it was waited for
    assert issuer.fetches == 3
    await key_set.close()


@pytest.mark.anyio
async def test_two_keys_serve_in_a_rotation_and_a_new_one_is_asked_for_at_once(issuer: Issuer, key_set: KeySet) -> None:
    assert await finds(key_set, "old") == "ES256"
    issuer.publishes(public(OLD, "old"), public(NEW, "new"))
    assert [await finds(key_set, kid) for kid in ("new", "old", "new")] == ["ES256"] * 3
    assert issuer.fetches == 2
    await key_set.close()


@pytest.mark.anyio
async def test_unknown_keys_are_asked_for_once_in_30_seconds(issuer: Issuer, key_set: KeySet, clock: Clock) -> None:
    assert await finds(key_set, "old") == "ES256"
    assert await finds(key_set, "made-up") == "bad_token"  # it was looked for
    assert await finds(key_set, "made-up") == "bad_token"
    assert {await finds(key_set, f"made-up-{number}") for number in range(50)} == {"unavailable"}  # who knows
    assert issuer.fetches == 2
    issuer.publishes(public(OLD, "old"), public(NEW, "new"))
    clock.now += jwks.UNKNOWN_S - 1
    assert await finds(key_set, "new") == "unavailable"
    clock.now += 2
    assert [await finds(key_set, kid) for kid in ("new", "old")] == ["ES256", "ES256"]
    assert issuer.fetches == 3
    await key_set.close()


@pytest.mark.anyio
async def test_a_token_names_its_key_unless_there_is_only_one(issuer: Issuer, key_set: KeySet, clock: Clock) -> None:
    assert await finds(key_set, None) == "ES256"
    issuer.publishes(public(OLD, "old"), public(NEW, "new"))
    clock.now += jwks.STALE_S + 1
    assert await finds(key_set, None) == "bad_token"
    assert issuer.fetches == 2
    await key_set.close()


FAILURES: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "an error": (500, b"", {}),
    "a page": (200, b"<html>", {}),
    "no keys": (200, b'{"keys":[]}', {}),
    "a redirect": (302, b"", {"location": "http://127.0.0.1:1/keys"}),
    "too much": (200, b" " * (jwks.BYTES_MAX + 1), {}),
}


@pytest.mark.anyio
@pytest.mark.parametrize("case", FAILURES)
async def test_keys_are_kept_while_the_issuer_answers_rubbish(issuer: Issuer, key_set: KeySet, clock: Clock, case: str) -> None:
    status, body, headers = FAILURES[case]
    issuer.fails(status, body, **headers)
    assert await finds(key_set, "old") == "unavailable"
    assert await finds(key_set, "old") == "unavailable"
    assert issuer.fetches == 1  # not each time
    clock.now += jwks.RETRY_S + 1
    issuer.publishes(public(OLD, "old"))
    assert await finds(key_set, "old") == "ES256"
    clock.now += jwks.STALE_S + 1
    issuer.fails(status, body, **headers)
    assert await finds(key_set, "old") == "ES256"
    clock.now += 86400
    assert await finds(key_set, "old") == "ES256"
    assert await finds(key_set, "unknown") == "unavailable"
    await key_set.close()


@pytest.mark.anyio
async def test_an_issuer_that_hangs_is_given_up(issuer: Issuer, key_set: KeySet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "FETCH_S", 0.2)
    issuer.goes_on.clear()
    assert await finds(key_set, "old") == "unavailable"
    issuer.goes_on.set()
    await key_set.close()


# In a relay


def test_a_relay_takes_what_its_issuer_signed(issuer: Issuer, tmp_path: Path, valkey: Valkey) -> None:
    env = {"RELAY_JWT_SECRET": "", "RELAY_JWT_JWKS_URL": issuer.url, "SSL_CERT_FILE": str(issuer.certificate)}
    relay = Relay(tmp_path / "relay", valkey.url, env)
    issuer.fails(500)
    with asking(relay) as asker:
        check_problem(asker.get(POLL, headers=bearer(token(OLD, "old"))), 503, "unavailable")
        with asker.live(f"{LIVE}?token={token(OLD, 'old')}", headers={}) as stream:
            assert end_of(stream) == "unavailable"
        issuer.publishes(public(OLD, "old"), public(RSA_KEY, "rsa"))
        wait_for("the keys are there", lambda: asker.get(POLL, headers=bearer(token(OLD, "old"))).status_code == 200)
        check_tokens(asker)
        assert "the issuer's keys can't be fetched" in relay.log()
    with asking(Function(Relay(tmp_path / "function", valkey.url, env))) as asker:
        wait_for("the keys are there", lambda: asker.get(POLL, headers=bearer(token(OLD, "old"))).status_code == 200)
        check_tokens(asker)


def signed_with(secret: bytes, *parts: dict[str, object]) -> str:
    """A token of a header and claims whose signature is an HMAC, by hand: libraries refuse to make one with a public key."""
    text = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
    signature = hmac.digest(secret, text.encode(), "sha256")
    return f"{text}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def check_tokens(asker: Asker) -> None:
    for good in (token(OLD, "old"), token(RSA_KEY, "rsa", "RS256")):
        assert asker.get(POLL, headers=bearer(good)).status_code == 200
    known = OLD.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    forged = [
        token(FOREIGN, "old"),
        token(RSA_KEY, "old", "RS256"),
        token(RSA_KEY, "rsa", "PS256"),
        token(OLD, None),
        signed_with(known, {"alg": "HS256", "kid": "old"}, {"sub": "ada", "exp": int(time.time()) + 60}),
        "x.y.z",
        "x" * 5000,
    ]
    for bad in forged:
        check_problem(asker.get(POLL, headers=bearer(bad)), 401, "bad_token")

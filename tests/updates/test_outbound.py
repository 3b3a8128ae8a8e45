"""Where requests go: to the address that was checked, and to the name that its certificate must have."""

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from relay.fetch import tls
from relay.updates import outbound
from relay.updates.feed import FeedError
from relay.updates.sources import Source, read_sources
from tests.updates.upstreams import Upstream, shows, upstream
from tests.waiting import LIMIT_S

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of `localhost`, which nobody vouches for but SSL_CERT_FILE."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + made.public_bytes(Encoding.PEM))
    return path


@pytest.fixture
def secure(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upstream]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setattr(outbound, "CONNECT_S", LIMIT_S)
    tls.cache_clear()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with upstream() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.answer = shows({"id": 1})
        yield server
    tls.cache_clear()


def source(tmp_path: Path, url: str) -> Source:
    path = tmp_path / "sources.toml"
    path.write_text(
        f'[[source]]\nname = "a"\nkind = "http"\nurl = "{url}"\nkey = "/id"\ntopic = "a/b/c"\nprivate = true\ntimeout_ms = 300000\n'
    )
    return read_sources(path, 5000)[0]


@asynccontextmanager
async def asked(tmp_path: Path, url: str) -> AsyncIterator[httpx.Response]:
    found = source(tmp_path, url)
    async with outbound.open_client(found) as client, outbound.answer_of(client, found, {}) as answer:
        yield answer


async def test_the_certificate_must_have_the_name_though_the_connection_goes_to_the_address(secure: Upstream, tmp_path: Path) -> None:
    async with asked(tmp_path, f"https://localhost:{secure.server_port}/feed") as answer:
        assert answer.status_code == 200
        assert answer.url.host in ("127.0.0.1", "::1")
    assert secure.asked[-1]["host"] == f"localhost:{secure.server_port}"
    with pytest.raises(FeedError, match="certificate"):
        async with asked(tmp_path, f"https://127.0.0.1:{secure.server_port}/feed"):
            pass


async def test_a_name_without_an_address_and_a_port_without_a_server_are_told(tmp_path: Path) -> None:
    for url, told in (("http://nowhere.invalid/", "has no address"), ("http://127.0.0.1:1/", "can't be read")):
        with pytest.raises(FeedError, match=told):
            async with asked(tmp_path, url):
                pass

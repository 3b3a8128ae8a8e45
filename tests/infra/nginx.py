"""Debian's nginx, run with the configuration of `infra/nginx`: only addresses and paths differ."""

import os
import pwd
import re
import signal
import ssl
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.needs import need
from tests.servers import free_port, stop, wait_until_listening
from tests.waiting import LIMIT_S

CONF = Path(__file__).parents[2] / "infra" / "nginx"
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")  # where Debian's may write only as root


@dataclass
class Nginx:
    folder: Path
    port: int
    plain_port: int
    process: "subprocess.Popen[bytes]"
    tls: ssl.SSLContext

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def requests(self) -> list[str]:
        """The access log's lines."""
        return (self.folder / "access.log").read_text().splitlines()

    def reload(self) -> None:
        self.process.send_signal(signal.SIGHUP)


def program() -> str:
    return need("nginx")


@contextmanager
def run_nginx(folder: Path, relay_ports: Sequence[int], changes: Mapping[str, str] = {}) -> Iterator[Nginx]:
    """In front of relays at these ports. `changes` are more words of the configuration to replace."""
    port, plain_port = free_port(), free_port()
    folder.mkdir(parents=True, exist_ok=True)
    make_certificate(folder)
    words = {
        "/etc/nginx/tls": str(folder),
        "/var/log/nginx": str(folder),
        "/var/cache/nginx": str(folder),
        "/run/nginx.pid": str(folder / "nginx.pid"),
        "listen 443": f"listen 127.0.0.1:{port}",
        "listen 80": f"listen 127.0.0.1:{plain_port}",
        "error.log notice": "error.log info",  # so that the tests see all that may ever be in it
        **changes,
    }
    texts = {source.name: source.read_text() for source in CONF.glob("*.conf")}
    assert all(any(word in text for text in texts.values()) for word in words), "what isn't there can't be replaced"
    for name, text in texts.items():
        for word, other in words.items():
            text = text.replace(word, other)
        (folder / name).write_text(re.sub(r"^ *listen \[::\].*\n", "", text, flags=re.MULTILINE))
    write_relays(folder / "relays.conf", relay_ports)
    # Its workers would be another user, who may not read the tests' folders.
    options = f"daemon off;{f' user {pwd.getpwuid(0).pw_name};' if os.getuid() == 0 else ''}"
    process = subprocess.Popen([program(), "-p", folder, "-c", folder / "nginx.conf", "-g", options], stderr=subprocess.DEVNULL)
    try:
        wait_until_listening(port, process)
        yield Nginx(folder, port, plain_port, process, ssl.create_default_context(cafile=str(folder / "fullchain.pem")))
    finally:
        stop(process, signal.SIGTERM)


def write_relays(path: Path, ports: Sequence[int]) -> None:
    """The same options for as many relays as there are."""
    text = path.read_text()
    servers = re.findall(r"^ *server 127.0.0.1:.*\n", text, re.MULTILINE)
    ours = "".join(re.sub(r":\d+ ", f":{port} ", servers[0]) for port in ports)
    temporary = "".join(f"{name}_temp_path {path.parent}/{name};\n" for name in TEMPORARY)
    path.write_text(text.replace("".join(servers), ours) + temporary)


def make_certificate(folder: Path) -> None:
    openssl = need("openssl")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-keyout", str(folder / "privkey.pem")]
    command = [openssl, "req", "-x509", "-days", "1", *subject, *key, "-out", str(folder / "fullchain.pem")]
    subprocess.run(command, check=True, capture_output=True, timeout=LIMIT_S)

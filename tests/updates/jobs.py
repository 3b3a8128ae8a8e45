"""The update job in tests: `relay job` as a process, and what the log has of it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers import Valkey, stop
from tests.waiting import LIMIT_S, wait_for

LEASE_S = 1.0
LOADED = " sources: "  # what the log says of each time that the file was read
SECRET = "a-secret-of-the-environment"


def toml(**keys: Any) -> str:
    """A source, with the keys that tests need unless they say otherwise; None leaves one out."""
    common = {
        "kind": "http",
        "items": "/items",
        "key": "/id",
        "version": "/v",
        "interval_ms": 50,
        "timeout_ms": int(LIMIT_S * 1000),
        "private": True,
    }
    lines = [f"{name} = {toml_value(value)}" for name, value in {**common, **keys}.items() if value is not None]
    return "\n".join(["[[source]]", *lines, ""])


def toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{json.dumps(name)} = {toml_value(one)}' for name, one in value.items())} }}"
    return json.dumps(value)


NOBODY = toml(name="nobody", url="http://127.0.0.1:1/", topic="tests/case/nobody", interval_ms=60_000)


def entries(valkey: Valkey, topic: str) -> list[tuple[str, Any]]:
    """The names and data of a topic's events."""
    shards = int(valkey.ask("GET", "{relay:0}:shards") or 1)
    found = [entry for shard in range(shards) for entry in valkey.ask("XRANGE", f"{{relay:{shard}}}:topic:{topic}", "-", "+") or ()]
    return [(fields[b"e"].decode(), json.loads(fields[b"d"])) for _, fields in found]


def data(valkey: Valkey, topic: str) -> list[Any]:
    return [value for _, value in entries(valkey, topic)]


@dataclass
class JobProcess:
    """`relay job`. Its log is a file, like a relay's."""

    directory: Path
    valkey_url: str
    sources: str
    env: Mapping[str, str] = field(default_factory=dict)
    name: str = "job"
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def path(self) -> Path:
        return self.directory / f"{self.name}.toml"

    @property
    def log_path(self) -> Path:
        return self.directory / f"{self.name}.log"

    def log(self) -> str:
        return self.log_path.read_text()

    def environ(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
        own = {"RELAY_VALKEY_URL": self.valkey_url, "RELAY_SOURCES": str(self.path), "RELAY_LEASE_SECONDS": str(LEASE_S)}
        return {**clean, **own, "RELAY_VALKEY_SECONDS": "60", **self.env}

    def start(self) -> "JobProcess":
        self.path.write_text(self.sources)
        with self.log_path.open("ab") as log:
            command = [sys.executable, "-m", "relay", "job"]
            self.process = subprocess.Popen(command, env=self.environ(), stdout=log, stderr=log, cwd=Path(__file__).parent)
        return self

    def reload(self, sources: str) -> None:
        assert self.process
        self.path.write_text(sources)
        before = self.log().count(LOADED)
        self.process.send_signal(signal.SIGHUP)
        wait_for("it has read the file", lambda: self.log().count(LOADED) > before)

    def pause(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        return stop(self.process, signal.SIGTERM)

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait(LIMIT_S)


def status(valkey: Valkey, name: str) -> dict[str, Any]:
    """What is told of a source."""
    text = valkey.ask("HGET", "{relay:0}:sources", name)
    return dict(json.loads(text)) if text else {}


def leader(valkey: Valkey, name: str) -> str:
    holder = valkey.ask("GET", f"{{relay:0}}:lease:{name}")
    return holder.decode() if holder else ""

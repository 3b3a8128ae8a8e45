"""What some tests need and a machine may lack: where it is, and the command that brings it.

A laptop skips those tests, with that command as the reason, and the run ends with a list of them. In CI they fail.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MODULES = TESTS / "node_modules"
PACKAGES = "npm ci --prefix tests"


def program(*names: str) -> Callable[[], str | None]:
    return lambda: next(filter(None, (shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in names)), None)


def chromium() -> str | None:
    return os.environ.get("CHROMIUM") or program("chromium", "google-chrome")()


def postgres() -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return program("postgres")() or (str(found[-1]) if found else None)


def package_index() -> str | None:
    """Whether pip is here, and reaches an index by whatever settings it has."""
    asked = subprocess.run([sys.executable, "-m", "pip", "index", "versions", "uv"], capture_output=True, check=False)
    return "pip" if asked.returncode == 0 else None


def network_admin() -> str | None:
    """Whether this process has that capability, which a root in a container may lack: see capabilities(7), number 12."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    held = int(status.partition("CapEff:")[2].split()[0], 16)
    return "CAP_NET_ADMIN" if held >> 12 & 1 else None


# By name: what finds it, and what brings it.
TOOLS: dict[str, tuple[Callable[[], str | None], str]] = {
    "a C compiler": (program("cc"), "apt-get install gcc libc6-dev"),
    "Chromium": (chromium, "apt-get install chromium, or CHROMIUM=/path/of/one"),
    "curl": (program("curl"), "apt-get install curl"),
    "kubectl": (program("kubectl"), "https://kubernetes.io/docs/tasks/tools/"),
    "nginx": (program("nginx"), "apt-get install nginx"),
    "Node": (program("node"), "apt-get install nodejs npm"),
    "pip and an index": (package_index, "python3 -m ensurepip, and a network"),
    "openssl": (program("openssl"), "apt-get install openssl"),
    "PostgreSQL": (postgres, "apt-get install postgresql"),
    "Linux": (lambda: sys.platform if sys.platform == "linux" else None, "a machine or a container with Linux"),
    "CAP_NET_ADMIN": (network_admin, "sudo python3 -m pytest"),
}
# What CI can't be asked to have: Debian has too old a kubectl.
OPTIONAL = {"kubectl", "CAP_NET_ADMIN", "Linux"}


def need(tool: str) -> str:
    """The path of a tool. Skips the test where it isn't there."""
    find, command = TOOLS[tool]
    return found_or_skipped(tool, find(), command)


def need_package(name: str) -> Path:
    """A folder or a file of one of npm's packages. Skips the test where it, or Node, isn't there."""
    need("Node")
    path = MODULES / name
    return Path(found_or_skipped("npm's packages", str(path) if path.exists() else None, PACKAGES))


def found_or_skipped(tool: str, found: str | None, command: str) -> str:
    if found:
        return found
    reason = f"needs {tool}: {command}"
    if os.environ.get("CI") == "true" and tool not in OPTIONAL:
        pytest.fail(f"CI must have what it tests with; {reason}")
    pytest.skip(reason)

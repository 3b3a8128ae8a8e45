"""Sources of the kind `sql`: on SQLite, and on a PostgreSQL that really runs."""

import os
import pwd
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.needs import need
from tests.servers import Valkey, free_port, stop
from tests.updates.conftest import Watch, Watched, leave_alone
from tests.waiting import LIMIT_S, wait_for

SOURCE: dict[str, Any] = {"kind": "sql", "items": None, "private": None, "version": None}


def find_postgres() -> Path:
    return Path(need("PostgreSQL")).resolve().parent


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """Its URL. It refuses to run as root, so there it runs as the user of its package."""
    programs = find_postgres()
    user = "postgres" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="relay-postgres-"))
    port = free_port()
    if user:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    try:
        initdb: list[str | Path] = [programs / "initdb", "-D", folder / "data", "-A", "trust", "-U", "relay", "--no-sync"]
        subprocess.run(initdb, user=user, cwd=folder, check=True, capture_output=True, timeout=LIMIT_S * 3)
        options = ["-p", str(port), "-h", "127.0.0.1", "-k", str(folder), "-c", "fsync=off"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [programs / "postgres", "-D", folder / "data", *options], user=user, cwd=folder, stdout=log, stderr=log
            )
        try:
            wait_for("PostgreSQL runs", lambda: can_connect(port))
            yield f"127.0.0.1:{port}/postgres"
        finally:
            stop(process, signal.SIGINT)  # at SIGTERM it would wait for its clients
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def can_connect(port: int) -> bool:
    try:
        connect(f"127.0.0.1:{port}/postgres").close()
    except psycopg.OperationalError:
        return False
    return True


def connect(url: str) -> "psycopg.Connection[Any]":
    return psycopg.connect(f"postgresql://relay@{url}", autocommit=True)


def shows(watched: Watched, *expected: Any) -> None:
    wait_for("they are in the log", lambda: len(watched.data()) >= len(expected))
    wait_for("the first look is told of", lambda: watched.status().get("last_success"))
    before = watched.status()["last_success"]
    wait_for("it has looked again", lambda: watched.status()["last_success"] > before)
    assert watched.data() == list(expected)


def test_rows_of_postgres_are_events_in_their_order_and_once(watch: Watch, postgres: str) -> None:
    with closing(connect(postgres)) as db:
        db.execute("CREATE TABLE spins (id serial, at timestamptz DEFAULT clock_timestamp(), amount numeric, note jsonb)")
        watched = watch(
            **SOURCE,
            url=f"postgresql+psycopg://relay@{postgres}",
            query="SELECT id, amount, note, at FROM spins WHERE at > CAST(:after AS timestamptz) - interval '1 hour' ORDER BY at",
            after="at",
            start="1970-01-01T00:00:00Z",
        )
        db.execute("INSERT INTO spins (amount, note) SELECT 1.10, '{\"a\": [1, null]}' FROM generate_series(1, 450)")
        wait_for("they are in the log", lambda: len(watched.data()) == 450)
        db.execute("INSERT INTO spins (amount) VALUES (2)")
        wait_for("it is in the log", lambda: len(watched.data()) == 451)
        # Written before, and visible only now, as a transaction does that took its time.
        db.execute("INSERT INTO spins (amount, at) SELECT 3, min(at) FROM spins")
        wait_for("they are in the log", lambda: len(watched.data()) == 452)
    assert [item["id"] for item in watched.data()[:451]] == list(range(1, 452))
    assert {key: watched.data()[0][key] for key in ("amount", "note")} == {"amount": "1.10", "note": {"a": [1, None]}}
    assert watched.data()[451]["id"] == 452
    wait_for("it is told of", lambda: watched.status()["appended"] == 452)


# Two values of a type, of which text would be compared wrongly or not at all.
TYPES = {
    "timestamp": ("2020-01-01 10:00:00.123456", "2020-01-01 10:00:00.123457"),
    "date": ("2020-01-01", "2020-01-02"),
    "numeric": ("1.00000000000000000001", "1.00000000000000000002"),
    "text": ("a'b", "b"),
    "uuid": ("0b5c9a54-0000-4000-8000-000000000001", "0b5c9a54-0000-4000-8000-000000000002"),
    "bytea": ("\\x01", "\\x02"),
    "float8": ("0.1", "0.2"),
}


@pytest.mark.parametrize(("kind", "first", "second"), [(kind, *values) for kind, values in TYPES.items()], ids=TYPES)
def test_a_place_is_of_the_columns_type(watch: Watch, postgres: str, valkey: Valkey, kind: str, first: str, second: str) -> None:
    keys = {
        **SOURCE,
        "url": f"postgresql+psycopg://relay@{postgres}",
        "query": f"SELECT id, at FROM {kind}s WHERE at > :after ORDER BY at",
        "after": "at",
        "start": 0,
    }
    with closing(connect(postgres)) as db:
        db.execute(f"CREATE TABLE {kind}s (id serial, at {kind})")
        db.execute(f"INSERT INTO {kind}s (at) VALUES (%s)", [first])
        begin = watch(**{**keys, "query": str(keys["query"]).replace("at > :after", "CAST(:after AS text) IS NOT NULL")})
        wait_for("the first is in the log", lambda: [item["id"] for item in begin.data()] == [1])
        wait_for("its place is kept", lambda: valkey.ask("EXISTS", f"{{relay:0}}:place:{begin.name}"))
        leave_alone(begin)
        again = watch(**{**keys, "name": begin.name, "topic": begin.topic})
        db.execute(f"INSERT INTO {kind}s (at) VALUES (%s)", [second])
        wait_for("the second is there too", lambda: [item["id"] for item in again.data()] == [1, 2])
    wait_for("it is well", lambda: again.status()["error"] is None)


def test_a_table_that_is_shown_whole_is_a_snapshot(watch: Watch, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as db:
        db.execute("CREATE TABLE tables (id TEXT, state TEXT, rev INT)")
        db.execute("INSERT INTO tables VALUES ('t1', 'busy', 2), ('t2', 'busy', 1)")
        watched = watch(
            **{**SOURCE, "version": "/rev"},
            url=f"sqlite:///{tmp_path / 'a.db'}",
            query="SELECT * FROM tables ORDER BY id",
            event="{/state}",
        )
        shows(watched, {"id": "t2", "state": "busy", "rev": 1}, {"id": "t1", "state": "busy", "rev": 2})
        db.execute("UPDATE tables SET state = 'closed', rev = 3 WHERE id = 't2'")
        wait_for("it is in the log", lambda: len(watched.data()) == 3)
        assert watched.entries()[-1] == ("closed", {"id": "t2", "state": "closed", "rev": 3})


def test_a_database_that_fails_is_told_and_goes_on_when_it_is_well(watch: Watch, tmp_path: Path) -> None:
    watched = watch(
        **SOURCE, url=f"sqlite:///{tmp_path / 'b.db'}", query="SELECT id FROM later WHERE id > :after ORDER BY id", after="id", start=0
    )
    watched.tells("no such table")
    with closing(sqlite3.connect(tmp_path / "b.db", isolation_level=None)) as db:
        db.execute("CREATE TABLE later (id INTEGER)")
        db.execute("INSERT INTO later VALUES (1), (2)")
        shows(watched, {"id": 1}, {"id": 2})
        db.execute("INSERT INTO later VALUES (3)")
        wait_for("it is in the log", lambda: len(watched.data()) == 3)


def test_a_query_that_hangs_is_given_up_and_asked_again(watch: Watch, postgres: str) -> None:
    with closing(connect(postgres)) as db, closing(connect(postgres)) as locking:
        db.execute("CREATE TABLE slow (id int); INSERT INTO slow VALUES (1)")
        locking.autocommit = False
        locking.execute("LOCK TABLE slow")
        watched = watch(**SOURCE, url=f"postgresql+psycopg://relay@{postgres}", query="SELECT id FROM slow ORDER BY id", timeout_ms=1500)
        watched.tells("is slow")
        locking.rollback()
        wait_for("it is in the log", lambda: watched.data() == [{"id": 1}])


def test_a_column_that_is_not_there_is_told(watch: Watch, tmp_path: Path) -> None:
    watched = watch(**SOURCE, url=f"sqlite:///{tmp_path / 'c.db'}", query="SELECT 1 AS id WHERE 1 > :after", after="at", start=0)
    watched.tells("has no column at")

"""The sources' file: each mistake is named with its line and key, and none hides another."""

import sys
from pathlib import Path

import pytest

from relay.errors import SettingsError
from relay.updates.sources import Source, read_sources

# As the design has it, to the letter.
USGS = """
[[source]]
name = "usgs"
kind = "http"
url = "https://earthquake.usgs.gov/earthquakes/feed/v1.0/summary/all_hour.geojson"
items = "/features"                 # JSON Pointer to the array
key = "/id"                         # in an item: what it is
version = "/properties/updated"     # in an item, optional: which revision of it
topic = "quakes/usgs/{/properties/net}"
event = "quake"
interval_ms = 5000
private = true                      # optional: may be an address of a private network
"""
LEAST = '[[source]]\nname = "a"\nkind = "http"\nurl = "https://a.example/"\nkey = "/id"\ntopic = "a/b/c"\n'


def read(tmp_path: Path, text: str, **environ: str) -> list[Source]:
    path = tmp_path / "sources.toml"
    path.write_text(text)
    return read_sources(path, 5000, environ)


def mistakes(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, text)
    return caught.value.mistakes


def test_a_source_is_read(tmp_path: Path) -> None:
    (source,) = read(tmp_path, USGS)
    assert (source.name, source.kind, source.interval_ms, source.private) == ("usgs", "http", 5000, True)
    assert source.items.parts == ("features",)
    assert source.shape.topic.fill({"properties": {"net": "ci"}}) == "quakes/usgs/ci"
    assert source.shape.event.fill({}) == "quake"


def test_what_is_not_said_has_a_default(tmp_path: Path) -> None:
    (source,) = read(tmp_path, LEAST)
    assert (source.interval_ms, source.interval_min_ms, source.interval_max_ms) == (5000, 5000, 5000)
    assert source.shape.event.fill({}) == "update"
    assert (source.private, source.headers, source.shape.version) == (False, (), None)


def test_bounds_of_the_interval_hold_the_interval(tmp_path: Path) -> None:
    (source,) = read(tmp_path, LEAST + "interval_min_ms = 1000\ninterval_max_ms = 60000\n")
    assert (source.interval_min_ms, source.interval_ms, source.interval_max_ms) == (1000, 5000, 60000)


def test_secrets_come_from_the_environment(tmp_path: Path) -> None:
    text = LEAST.replace("a.example/", "a.example/?k=${K}") + 'headers = { Authorization = "Bearer ${TOKEN}" }\n'
    (source,) = read(tmp_path, text, TOKEN="t", K="k")
    assert source.url == "https://a.example/?k=k"
    assert source.headers == (("Authorization", "Bearer t"),)


# A line of the source, what it is replaced with, and what is told.
MISTAKES: dict[str, tuple[str, str, str]] = {
    "no name": ('name = "a"', "", "line 1: source 1: name is missing"),
    "a name with a space": ('name = "a"', 'name = "a b"', "line 2: source 1 (a b): name is not 1 to 64"),
    "no kind": ('kind = "http"', "", "line 1: source 1 (a): kind is missing"),
    "an unknown kind": ('kind = "http"', 'kind = "ftp"', "line 3: source 1 (a): kind is not one of http"),
    "no URL": ('url = "https://a.example/"', "", "url is missing"),
    "a URL that is none": ('url = "https://a.example/"', 'url = "a.example"', "line 4: source 1 (a): url is not a URL"),
    "a URL of a file": ('url = "https://a.example/"', 'url = "file:///etc/passwd"', "url is not a URL"),
    "a URL with a bad port": ('url = "https://a.example/"', 'url = "http://a:99999/"', "url is not a URL"),
    "a URL with a password": ('url = "https://a.example/"', 'url = "https://u:p@a.example/"', "url holds a password"),
    "a variable that is not set": ('url = "https://a.example/"', 'url = "https://a.example/${NO}"', "url names ${NO}"),
    "no key": ('key = "/id"', "", "key is missing"),
    "a pointer without its slash": ('key = "/id"', 'key = "id"', "line 5: source 1 (a): key is no JSON Pointer: 'id'"),
    "a pointer with a bad escape": ('key = "/id"', 'key = "/a~2"', "key is no JSON Pointer"),
    "a number for a pointer": ('key = "/id"', "key = 1", "key is not a text"),
    "no topic": ('topic = "a/b/c"', "", "topic is missing"),
    "a topic of two parts": ('topic = "a/b/c"', 'topic = "a/{/b}"', "line 6: source 1 (a): topic is not a topic"),
    "a topic with a space": ('topic = "a/b/c"', 'topic = "a/b b/c"', "topic is not a topic"),
    "a topic with dots": ('topic = "a/b/c"', 'topic = "a/../{/b}"', "topic is not a topic"),
    "a brace alone": ('topic = "a/b/c"', 'topic = "a/b/{/c"', "topic has a brace without its other one"),
    "a template without a pointer": ('topic = "a/b/c"', 'topic = "a/b/{c}"', "topic is no JSON Pointer: 'c'"),
    "a reserved event": ('topic = "a/b/c"', 'topic = "a/b/c"\nevent = "hello"', "line 7: source 1 (a): event is no event's name"),
    "a misspelt key": ('key = "/id"', 'key = "/id"\nversoin = "/v"', "line 6: source 1 (a): versoin is no key"),
    "an interval in words": ('key = "/id"', 'key = "/id"\ninterval_ms = "5s"', "line 6: source 1 (a): interval_ms is not a whole number"),
    "an interval of nothing": ('key = "/id"', 'key = "/id"\ninterval_ms = 0', "interval_ms is not a whole number from 50"),
    "bounds in disorder": ('key = "/id"', 'key = "/id"\ninterval_min_ms = 100\ninterval_max_ms = 50', "interval_min_ms is above"),
    "private in words": ('key = "/id"', 'key = "/id"\nprivate = "yes"', "private is not true or false"),
    "headers as text": ('key = "/id"', 'key = "/id"\nheaders = "A: b"', "headers is not a table"),
    "a header of ours": ('key = "/id"', 'key = "/id"\nheaders = { Host = "b" }', "headers can't set 'Host'"),
    "a header with a line break": ('key = "/id"', 'key = "/id"\nheaders = { A = "b\\nc" }', "not visible ASCII"),
    "items of NDJSON": ('key = "/id"', 'key = "/id"\nformat = "ndjson"\nitems = "/a"', "items is for json"),
}  # fmt: skip


SQL = '[[source]]\nname = "a"\nkind = "sql"\nurl = "sqlite:///a.db"\nkey = "/id"\ntopic = "a/b/c"\nquery = "SELECT 1 AS id"\n'
PYTHON = '[[source]]\nname = "a"\nkind = "python"\ncall = "tests.updates.test_function:counting"\nkey = "/id"\ntopic = "a/b/c"\n'
SSE = '[[source]]\nname = "a"\nkind = "sse"\nurl = "https://a.example/"\ntopic = "a/b/c"\n'
OTHERS: dict[str, tuple[str, str, str, str]] = {
    "no query": (SQL, 'query = "SELECT 1 AS id"', "", "query is missing"),
    "a URL that is no database's": (SQL, "sqlite:///a.db", "a.db", "line 4: source 1 (a): url is not a URL of the form postgresql"),
    "an unknown database": (SQL, "sqlite:///a.db", "access://a", "url is not a URL of the form"),
    "a database without its driver": (SQL, "sqlite:///a.db", "oracle+oracledb://a", "url needs the database's driver"),
    "after that the query doesn't have": (SQL, 'query =', 'after = "id"\nstart = 0\nquery =', "after and :after in the query need"),
    "a query with an after that is none": (SQL, "SELECT 1 AS id", "SELECT 1 AS id WHERE 1 > :after", "after and :after in the query"),
    "after without a start": (SQL, "SELECT 1 AS id\"", "SELECT 1 AS id WHERE 1 > :after\"\nafter = \"id\"", "start is the first :after"),
    "private of a database": (SQL, "query =", "private = true\nquery =", "private is no key of a source of the kind sql"),
    "a call that is none": (PYTHON, "tests.updates.test_function:counting", "tests", "call is not of the form"),
    "a module that isn't there": (PYTHON, "tests.updates.test_function", "tests.nowhere", "call can't be imported"),
    "a function that isn't there": (PYTHON, ":counting", ":nothing", "call can't be imported"),
    "a function that is no iterator": (PYTHON, ":counting", ":test_what_is_no_update_is_told", "call is not an async generator"),
    "items of a stream": (SSE, 'name = "a"', 'items = "/a"\nname = "a"', "items is no key of a source of the kind sse"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "line", "instead", "told"), OTHERS.values(), ids=OTHERS)
def test_a_mistake_in_a_source_of_another_kind_is_named_too(tmp_path: Path, text: str, line: str, instead: str, told: str) -> None:
    assert read(tmp_path, text)
    (mistake,) = mistakes(tmp_path, text.replace(line, instead))
    assert told in mistake


def test_without_its_extra_a_database_is_refused_with_the_command_that_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    (mistake,) = mistakes(tmp_path, SQL)
    assert "pip install 'edge-relay[sql]'" in mistake


@pytest.mark.parametrize(("line", "instead", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_its_line_and_key(tmp_path: Path, line: str, instead: str, told: str) -> None:
    (mistake,) = mistakes(tmp_path, LEAST.replace(line, instead))
    assert told in mistake
    assert mistake.startswith(f"{tmp_path / 'sources.toml'} line ")


def test_none_hides_another(tmp_path: Path) -> None:
    found = mistakes(tmp_path, USGS.replace("5000", "0") + LEAST.replace("a/b/c", "a") + "hedaers = {}\n")
    lines = [mistake.removeprefix(f"{tmp_path / 'sources.toml'} line ").partition(":")[0] for mistake in found]
    assert lines == ["11", "18", "19"]
    assert "did you mean headers?" in found[2]


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    (mistake,) = mistakes(tmp_path, LEAST + LEAST)
    assert "line 8: source 2 (a): name is another source's too" in mistake


FILES = {
    "no TOML": ("[[source]\n", "line 1"),
    "nothing": ("", "has no [[source]]"),
    "one table": ('[source]\nname = "a"\n', "has no [[source]]"),
    "a list of numbers": ("source = [1]\n", "has no [[source]]"),
    "keys above": ('name = "a"\n[[source]]\n', "name is no key of this file"),
}


@pytest.mark.parametrize(("text", "told"), FILES.values(), ids=FILES)
def test_a_file_that_is_none_is_told(tmp_path: Path, text: str, told: str) -> None:
    (mistake,) = mistakes(tmp_path, text)
    assert told in mistake


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"RELAY_SOURCES=.*can't be read"):
        read_sources(tmp_path / "none.toml", 5000)

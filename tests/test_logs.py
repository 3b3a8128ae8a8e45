"""A log line begins with what it is of, is one line, and nothing from outside can forge another."""

import json
import logging
import sys
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.logs import JsonFormatter, TextFormatter, escaped, log_config


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("relay", logging.WARNING, __file__, 1, message, args, None)
    made.__dict__.update(extra)
    return made


PREFIXES = {
    "the service": ({}, "[STREAM] WARNING text"),
    "a connection": ({"connection": "c-7Q2fJw_a"}, "[STREAM c-7Q2fJw_a] WARNING text"),
    "the update job": ({"job": "usgs"}, "[STREAM JOB] WARNING text"),
    "a shard": ({"shard": 1}, "[STREAM] WARNING text"),
}


@pytest.mark.parametrize(("extra", "line"), PREFIXES.values(), ids=PREFIXES)
def test_a_line_begins_with_what_it_is_of(extra: dict[str, object], line: str) -> None:
    assert TextFormatter().format(record("text", **extra)) == line


FIELDS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "the service": ({}, {"service": "STREAM"}),
    "a connection": ({"connection": "c-7Q2fJw_a"}, {"service": "STREAM", "connection": "c-7Q2fJw_a"}),
    "the update job": ({"job": "usgs"}, {"service": "STREAM JOB", "job": "usgs"}),
    "a shard": ({"shard": 0}, {"service": "STREAM", "shard": 0}),
}


@pytest.mark.parametrize(("extra", "fields"), FIELDS.values(), ids=FIELDS)
def test_in_json_the_same_are_fields(extra: dict[str, object], fields: dict[str, object]) -> None:
    line: dict[str, Any] = json.loads(JsonFormatter().format(record("said %s", "so", **extra)))
    assert datetime.fromisoformat(line.pop("time").replace("Z", "+00:00")).tzinfo
    assert line == {"level": "WARNING", "message": "said so", **fields}


HOSTILE = {
    "a line end": ("a\n[STREAM] ERROR forged", r"a\n[STREAM] ERROR forged"),
    "a CR": ("a\rb", r"a\rb"),
    "an escape sequence": ("\x1b[2Jb", r"\x1b[2Jb"),
    "NUL": ("a\0b", r"a\x00b"),
    "a line separator": ("a\u2028b", r"a\u2028b"),
    "another way round": ("a\u202eb", r"a\u202eb"),
    "a lone surrogate": ("a\ud800b", r"a\ud800b"),
    "what can be read": ("é 漢 🎲 \\n", "é 漢 🎲 \\n"),
}


@pytest.mark.parametrize(("text", "shown"), HOSTILE.values(), ids=HOSTILE)
def test_what_comes_from_outside_is_escaped(text: str, shown: str) -> None:
    assert TextFormatter().format(record("%s", text)) == f"[STREAM] WARNING {shown}"


@given(st.text())
def test_any_text_is_one_line_in_either_format(text: str) -> None:
    assert len(TextFormatter().format(record("%s", text)).splitlines()) == 1
    assert len(JsonFormatter().format(record("%s", text)).splitlines()) == 1
    assert json.loads(JsonFormatter().format(record("%s", text)))["message"] == text
    assert escaped(text).isprintable()


def test_a_traceback_follows_its_line() -> None:
    made = record("failed")
    try:
        raise ValueError("why")
    except ValueError:
        made.exc_info = sys.exc_info()
    assert TextFormatter().format(made).startswith("[STREAM] WARNING failed\nTraceback")
    assert json.loads(JsonFormatter().format(made))["exception"].endswith("ValueError: why")


@pytest.mark.parametrize(("name", "formatter"), [("text", TextFormatter), ("json", JsonFormatter)])
def test_the_servers_own_lines_have_the_same_form(name: str, formatter: type[logging.Formatter]) -> None:
    config = log_config(name)
    assert config["formatters"]["relay"]["()"] == f"relay.logs.{formatter.__name__}"
    assert config["loggers"]["_granian"]["handlers"] == config["loggers"]["relay"]["handlers"] == ["stderr"]
    assert config["loggers"]["granian.access"]["handlers"] == []  # a path may hold a ticket

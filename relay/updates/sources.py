"""The file that `RELAY_SOURCES` names: which upstreams are watched, and how. TOML, checked whole before anything starts.

    [[source]]
    name = "usgs"
    kind = "http"
    url = "https://earthquake.usgs.gov/earthquakes/feed/v1.0/summary/all_hour.geojson"
    items = "/features"
    key = "/id"
    version = "/properties/updated"
    topic = "quakes/usgs/{/properties/net}"
    event = "quake"

`KEYS` is the list that the README's table and the checks share. A key that is none is a mistake, since a misspelt `version`
would silently make every revision an old thing.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from inspect import isasyncgenfunction
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from relay.errors import SettingsError
from relay.event import DEFAULT_NAME, is_publishable_name
from relay.topic import is_part
from relay.updates.item import Pointer, Shape, Template, parse_pointer, parse_template

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
OWN_HEADERS = frozenset(
    {"host", "accept-encoding", "connection", "content-length", "transfer-encoding", "if-none-match", "if-modified-since", "last-event-id"}
)
INTERVAL_MS = (50, 86_400_000)
SOURCES_MAX = 1000
HTTP, SQL, SSE, PYTHON = "http", "sql", "sse", "python"
KINDS = (HTTP, SQL, SSE, PYTHON)


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """One upstream. The fields after `interval_max_ms` are of some kinds only."""

    name: str
    kind: str
    shape: Shape
    interval_ms: int
    interval_min_ms: int
    interval_max_ms: int
    timeout_ms: int
    url: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    private: bool = False
    items: Pointer = Pointer("", ())
    format: str = "json"
    newest_first: bool = False
    query: str = ""
    after: str = ""
    start: Any = None
    call: str = ""
    options: bytes = b"{}"  # JSON, so that sources can be compared

    @property
    def endless(self) -> bool:
        """Whether one look may go on for ever: it shows each item once."""
        return self.kind in (SSE, PYTHON)

    @property
    def snapshot(self) -> bool:
        """Whether each look shows all that there is."""
        return self.kind == HTTP or (self.kind == SQL and not self.after)


class Key(msgspec.Struct, frozen=True):
    """A key of a source: for which kinds it is, how its value is read, and its line in the README."""

    name: str
    kinds: tuple[str, ...]
    read: Callable[[Any, Mapping[str, str]], Any]
    help: str
    needed: tuple[str, ...] = ()


def text(value: Any, environ: Mapping[str, str]) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("is not a text")
    return value


def pointer(value: Any, environ: Mapping[str, str]) -> Pointer:
    if not isinstance(value, str):
        raise ValueError("is not a text")
    return parse_pointer(value)


def source_name(value: Any, environ: Mapping[str, str]) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError("is not 1 to 64 of A-Z a-z 0-9 . _ -")
    return value


def topic(value: Any, environ: Mapping[str, str]) -> Template:
    found = parse_template(text(value, environ))
    # Any part will do in the pointers' places: what is left must be one.
    parts = ("x" if found.pointers else "").join(found.texts).split("/")
    if not found.alone and (len(parts) != 3 or not all(map(is_part, parts))):
        raise ValueError("is not a topic: write collection/type/id, each part 1 to 128 of A-Z a-z 0-9 . _ : - or {/a/pointer}")
    return found


def event(value: Any, environ: Mapping[str, str]) -> Template:
    found = parse_template(text(value, environ))
    if not found.pointers and not is_publishable_name(found.texts[0]):
        raise ValueError("is no event's name: 1 to 64 of A-Z a-z 0-9 . _ : -, and none of the stream's own")
    return found


def flag(value: Any, environ: Mapping[str, str]) -> bool:
    if not isinstance(value, bool):
        raise ValueError("is not true or false")
    return value


def milliseconds(least: int, most: int) -> Callable[[Any, Mapping[str, str]], int]:
    def read(value: Any, environ: Mapping[str, str]) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"is not a whole number from {least} to {most}")
        return value

    return read


def one_of(*choices: str) -> Callable[[Any, Mapping[str, str]], str]:
    def read(value: Any, environ: Mapping[str, str]) -> str:
        if value not in choices:
            raise ValueError(f"is not one of {', '.join(choices)}")
        return str(value)

    return read


def expanded(value: Any, environ: Mapping[str, str]) -> str:
    """A text with `${NAME}` replaced from the environment: what is secret doesn't belong into the file."""
    found = text(value, environ)
    missing = [name for name in VARIABLE.findall(found) if name not in environ]
    if missing:
        raise ValueError(f"names ${{{missing[0]}}}, which the environment doesn't have")
    return VARIABLE.sub(lambda match: environ[match[1]], found)


def web_url(value: Any, environ: Mapping[str, str]) -> str:
    url = expanded(value, environ)
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:  # brackets or a port that are none
        good = False
    if not good:
        raise ValueError("is not a URL of the form https://host/path")
    if parts.username or parts.password:
        raise ValueError("holds a password: give it in headers, from the environment")
    return url


def database_url(value: Any, environ: Mapping[str, str]) -> str:
    url = expanded(value, environ)
    try:
        from sqlalchemy import create_engine
        from sqlalchemy.exc import ArgumentError
    except ImportError as error:
        raise ValueError("needs SQLAlchemy: pip install 'edge-relay[sql]', and the database's driver") from error
    try:
        create_engine(url).dispose()
    except ArgumentError as error:
        raise ValueError("is not a URL of the form postgresql+psycopg://user:${PASSWORD}@host/database") from error
    except ImportError as error:
        raise ValueError(f"needs the database's driver: {error}") from error
    return url


def headers(value: Any, environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise ValueError('is not a table: headers = { Authorization = "Bearer ${NAME}" }')
    found = []
    for name, given in value.items():
        if not HEADER.fullmatch(name) or name.lower() in OWN_HEADERS:
            raise ValueError(f"can't set {name[:80]!r}")
        filled = expanded(given, environ)
        if not filled.isprintable() or not filled.isascii():
            raise ValueError(f"has a value of {name} that is not visible ASCII")
        found.append((name, filled))
    return tuple(found)


def start(value: Any, environ: Mapping[str, str]) -> Any:
    if isinstance(value, list | dict):
        raise ValueError("is not one value")
    return value


def reference(value: Any, environ: Mapping[str, str]) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
        raise ValueError("is not of the form package.module:function")
    module, _, name = value.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"can't be imported: {error}") from error
    if not isasyncgenfunction(found):
        raise ValueError("is not an async generator function: async def … yield Update(…)")
    return value


def options(value: Any, environ: Mapping[str, str]) -> bytes:
    if not isinstance(value, dict):
        raise ValueError("is not a table")
    return msgspec.json.encode(value)


KEYS = [
    Key("name", KINDS, source_name, "what it is called; what was seen is remembered under this name", KINDS),
    Key("kind", KINDS, one_of(*KINDS), "`http`, `sql`, `sse` or `python`", KINDS),
    Key("topic", KINDS, topic, "the events' topic, with JSON Pointers into the item in braces", KINDS),
    Key("event", KINDS, event, f"the events' name, likewise; `{DEFAULT_NAME}` unless given, of `sse` the name there"),
    Key("key", KINDS, pointer, "pointer to what an item is; of `sse` its id unless given", (HTTP, SQL, PYTHON)),
    Key("version", KINDS, pointer, "pointer to which revision of it this is; without it an item is an event only once"),
    Key("data", KINDS, pointer, "pointer to the event's data; the whole item unless given, of `sse` `/data`"),
    Key("interval_ms", KINDS, milliseconds(*INTERVAL_MS), "from one look to the next; `POLL_INTERVAL` unless given"),
    Key("interval_min_ms", KINDS, milliseconds(*INTERVAL_MS), "it may shrink to so much while there is something new"),
    Key("interval_max_ms", KINDS, milliseconds(*INTERVAL_MS), "it may grow to so much while there is nothing"),
    Key("timeout_ms", KINDS, milliseconds(100, 600_000), "longest for a look, of `sse` for silence; 30000, of `sse` 60000"),
    Key("url", (HTTP, SSE), web_url, "where it is, with `${NAME}` from the environment", (HTTP, SSE)),
    Key("url", (SQL,), database_url, "SQLAlchemy's URL of the database, with `${NAME}` from the environment", (SQL,)),
    Key("headers", (HTTP, SSE), headers, 'sent with each request: `{ Authorization = "Bearer ${NAME}" }`'),
    Key("private", (HTTP, SSE), flag, "whether it may be at an address of a private network"),
    Key("format", (HTTP,), one_of("json", "ndjson"), "`json`, or `ndjson`: an item a line"),
    Key("items", (HTTP,), pointer, "pointer to the array of items; the whole answer unless given"),
    Key("newest_first", (HTTP,), flag, "whether the newest item comes first; where versions are numbers, those give the order"),
    Key("query", (SQL,), text, "the query; each row is an item, an object by the columns' names", (SQL,)),
    Key("after", (SQL,), text, "the column whose last value the next query gets as `:after`"),
    Key("start", (SQL,), start, "the first `:after`"),
    Key("call", (PYTHON,), reference, "`package.module:function`, an async iterator of items", (PYTHON,)),
    Key("options", (PYTHON,), options, "a table that the function gets"),
]


def read_sources(path: Path, interval_ms: int, environ: Mapping[str, str] = os.environ) -> list[Source]:
    """Raises SettingsError, which names every mistake with its line and key."""
    try:
        written = path.read_text()
        document = tomllib.loads(written)
    except OSError as error:
        raise SettingsError([f"RELAY_SOURCES={path} can't be read: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError([f"RELAY_SOURCES={path} is no TOML: {error}"]) from error
    tables = document.get("source")
    strangers = [name for name in document if name != "source"]
    if strangers:
        raise SettingsError([f"{path}: {strangers[0]} is no key of this file: write [[source]] above the keys of each source"])
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise SettingsError([f"{path} has no [[source]]"])
    if len(tables) > SOURCES_MAX:
        raise SettingsError([f"{path} has {len(tables)} sources: {SOURCES_MAX} at most"])
    sources: list[Source] = []
    mistakes: list[str] = []
    lines = Lines(written)
    for number, table in enumerate(tables, 1):
        given_name = table.get("name")
        shown = f"source {number}" + (f" ({given_name[:64]})" if isinstance(given_name, str) else "")
        found = list(mistakes_of(table, interval_ms, environ, sources))
        mistakes += [f"{path}{lines.of(number, key)}: {shown}: {key} {mistake}" for key, mistake in found if mistake]
    if mistakes:
        raise SettingsError(mistakes)
    return sources


def mistakes_of(table: dict[str, Any], interval_ms: int, environ: Mapping[str, str], sources: list[Source]) -> Iterator[tuple[str, str]]:
    """Keys and what is wrong with them; if nothing is, the source is added to the others."""
    kind = table.get("kind", "")
    if kind not in KINDS:
        yield "kind", f"is not one of {', '.join(KINDS)}" if "kind" in table else f"is missing: one of {', '.join(KINDS)}"
        return
    known = {key.name: key for key in KEYS if kind in key.kinds}
    values: dict[str, Any] = {}
    bad = False
    for name, given in table.items():
        key = known.get(name)
        if key is None:
            bad = True
            close = difflib.get_close_matches(name, known, 1)
            yield name[:80], f"is no key of a source of the kind {kind}" + (f": did you mean {close[0]}?" if close else "")
            continue
        try:
            values[name] = key.read(given, environ)
        except ValueError as error:
            bad = True
            yield name, str(error)
    for key in known.values():
        if kind in key.needed and key.name not in table:
            bad = True
            yield key.name, "is missing"
    if bad:
        return
    found = False
    for mistake in conflicts(values, sources):
        found = True
        yield mistake
    if not found:
        sources.append(source_of(values, interval_ms))


def conflicts(values: dict[str, Any], sources: list[Source]) -> Iterator[tuple[str, str]]:
    """What is wrong with values that are each right by themselves."""
    if values["name"] in [source.name for source in sources]:
        yield "name", "is another source's too"
    if values.get("interval_min_ms", 0) > values.get("interval_max_ms", INTERVAL_MS[1]):
        yield "interval_min_ms", "is above interval_max_ms"
    if values.get("format") == "ndjson" and "items" in values:
        yield "items", "is for json: of ndjson each line is an item"
    if values["kind"] == SQL and ("after" in values) != (re.search(r"(?<![:\w]):after\b", values["query"]) is not None):
        yield "after", "and :after in the query need each other"
    if ("start" in values) != ("after" in values):
        yield "start", "is the first :after, so start and after need each other"


def source_of(values: dict[str, Any], interval_ms: int) -> Source:
    kind = values["kind"]
    sse = kind == SSE
    shape = Shape(
        values["name"],
        values.pop("topic"),
        values.pop("event", parse_template("{/event}" if sse else DEFAULT_NAME)),
        values.pop("key", parse_pointer("/id")),
        values.pop("version", None),
        values.pop("data", parse_pointer("/data" if sse else "")),
    )
    interval = values.pop("interval_ms", interval_ms)
    least = min(interval, values.pop("interval_min_ms", interval))
    most = max(interval, values.pop("interval_max_ms", interval))
    timeout_ms = values.pop("timeout_ms", 60_000 if sse else 30_000)
    return Source(shape=shape, interval_ms=interval, interval_min_ms=least, interval_max_ms=most, timeout_ms=timeout_ms, **values)


class Lines:
    """Where in the text a source's key is. TOML's parser doesn't say, so this looks for it as people write it."""

    def __init__(self, written: str) -> None:
        self._lines = written.splitlines()
        self._begins = [at for at, line in enumerate(self._lines) if re.match(r"\s*\[\[\s*[\"']?source[\"']?\s*\]\]", line)]

    def of(self, number: int, key: str) -> str:
        """` line N`: the key's, or the source's own where it has none; empty if it isn't found."""
        if number > len(self._begins):
            return ""
        begin = self._begins[number - 1]
        end = self._begins[number] if number < len(self._begins) else len(self._lines)
        wanted = re.compile(rf"\s*(\[source\.)?[\"']?{re.escape(key)}[\"']?\s*[]=.]")
        at = next((at for at in range(begin, end) if wanted.match(self._lines[at])), begin)
        return f" line {at + 1}"

"""The README says what the code does: its tables are made from the code, and its examples run.

`python -m tests.test_docs` writes the tables anew.
"""

import argparse
import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from relay import demo
from relay.app import Relay as Parts
from relay.cli import build_parser
from relay.metrics import Metrics
from relay.openapi import PROBLEMS
from relay.settings import SETTINGS, read_settings
from relay.updates.sources import KEYS, KINDS, read_sources
from tests.servers import SECRET, Relay, Valkey
from tests.waiting import LIMIT_S

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
MARK = re.compile(r"<!-- (\w+) -->\n(.*?)<!-- end -->\n", re.DOTALL)


# The tables


def table(*head: str) -> Callable[[Callable[[], Iterator[tuple[str, ...]]]], Callable[[], str]]:
    def decorate(rows: Callable[[], Iterator[tuple[str, ...]]]) -> Callable[[], str]:
        def text() -> str:
            lines = [head, ("---",) * len(head), *rows()]
            return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines)

        return text

    return decorate


@table("request", "what")
def endpoints() -> Iterator[tuple[str, ...]]:
    settings = read_settings({"RELAY_JWT_SECRET": SECRET, "RELAY_VALKEY_URL": "valkey://127.0.0.1:1/0"})
    for path, item in Parts(settings).app().app.openapi_schema.to_schema()["paths"].items():
        for method, operation in item.items():
            yield f"`{method.upper()} {path.replace('{kind}/{ident}', '{type}/{id}')}`", operation["summary"]
    yield "`GET /schema/openapi.json`", "The description of all of these, as OpenAPI 3.1"


@table("status", "`code`", "when")
def errors() -> Iterator[tuple[str, ...]]:
    for kind, (_, codes) in PROBLEMS.items():
        for code, when in codes.items():
            yield str(kind.status), f"`{code}`", when


@table("setting", "default", "what")
def settings() -> Iterator[tuple[str, ...]]:
    for setting in SETTINGS:
        yield f"`{setting.name}`", f"`{setting.default}`" if setting.default else "", setting.help


@table("key", "of the kinds", "what")
def sources() -> Iterator[tuple[str, ...]]:
    for key in KEYS:
        kinds = "all" if key.kinds == KINDS else ", ".join(key.kinds)
        needed = "; needed" if key.needed == key.kinds else f"; needed of {', '.join(key.needed)}" if key.needed else ""
        yield f"`{key.name}`", kinds + needed, key.help


def subcommands(parser: argparse.ArgumentParser) -> dict[str, str]:
    """The commands and their help, as `--help` lists them."""
    (choices,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {action.dest: action.help or "" for action in choices._choices_actions}


@table("command", "what")
def commands() -> Iterator[tuple[str, ...]]:
    for name, help in subcommands(build_parser()).items():
        yield f"`relay {name}`", help


@table("metric", "kind", "what")
def metrics() -> Iterator[tuple[str, ...]]:
    for metric in Metrics().registry.collect():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        yield f"`{name}`", metric.type, metric.documentation


def modules() -> list[Path]:
    return [
        path
        for folder in ("relay", "relay/checks", "relay/endpoints", "relay/updates", "fallback")
        for path in sorted((ROOT / folder).glob("*.py"))
    ]


def first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


@table("module", "its one job")
def code() -> Iterator[tuple[str, ...]]:
    for path in modules():
        name = path.relative_to(ROOT).as_posix().removesuffix("__init__.py")
        yield f"`{name}`", first_line(path)


TABLES = {
    "endpoints": endpoints,
    "errors": errors,
    "settings": settings,
    "sources": sources,
    "commands": commands,
    "metrics": metrics,
    "map": code,
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_the_readme_says_what_the_code_does(name: str) -> None:
    written = {match[1]: match[2] for match in MARK.finditer(README.read_text())}
    assert written[name] == TABLES[name](), "python -m tests.test_docs writes it anew"


def test_every_module_says_its_job_in_one_sentence() -> None:
    for path in modules():
        assert first_line(path).endswith("."), path


# The examples


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)


def test_the_curl_lines_are_those_which_the_demo_prints() -> None:
    settings = read_settings({"RELAY_JWT_SECRET": SECRET})
    printed = re.sub(r"Bearer ey[^\"]+", "Bearer $PUBLISHER", demo.introduction(settings, "http://127.0.0.1:1/"))
    commands = {" ".join(block.replace("\\\n", " ").split()) for block in fenced("sh")}
    for command in re.findall(r"^  (curl (?:.*\\\n)*.*)$", printed, re.MULTILINE):
        assert " ".join(command.replace("\\\n", " ").split()) in commands


def test_the_commands_of_the_readme_are_commands() -> None:
    known = set(subcommands(build_parser()))
    used = set(re.findall(r"\brelay (\w+)", "\n".join(fenced("sh"))))
    assert used
    assert used <= known


def test_ci_runs_the_tests_as_the_readme_does() -> None:
    (command,) = re.findall(r"&& (python3 -m pytest)$", "\n".join(fenced("sh")), re.MULTILINE)
    assert f"exec {command}" in (ROOT / ".ci" / "run").read_text()


def test_the_example_in_python_runs(valkey: Valkey, relay: Relay) -> None:
    (example,) = fenced("python")
    environ = {**os.environ, "RELAY_VALKEY_URL": valkey.url, "RELAY_VALKEY_SECONDS": "60"}
    done = subprocess.run([sys.executable, "-W", "error", "-c", example], env=environ, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+ (True|False)\n", done.stdout)


def test_the_readme_links_every_recipe() -> None:
    assert sorted(re.findall(r"\]\((infra/recipes/\S+)\)", README.read_text())) == sorted(
        path.relative_to(ROOT).as_posix() for path in (ROOT / "infra/recipes").iterdir()
    )


def test_the_sources_of_the_readme_are_sources(tmp_path: Path) -> None:
    for example in fenced("toml"):
        (tmp_path / "sources.toml").write_text(example)
        variables = dict.fromkeys(re.findall(r"\$\{(\w+)\}", example), "x")
        assert len(read_sources(tmp_path / "sources.toml", 5000, variables)) == 1


def test_settings_that_the_readme_speaks_of_exist() -> None:
    known = {setting.name for setting in SETTINGS}
    for path in (README, ROOT / "infra" / "README.md", ROOT / ".github" / "SECURITY.md", ROOT / ".github" / "CONTRIBUTING.md"):
        assert set(re.findall(r"\bRELAY_[A-Z0-9_]+", path.read_text())) <= known, path


def test_metrics_that_the_readme_speaks_of_exist() -> None:
    known = set(re.findall(r"`(relay_\w+)`", metrics()))
    assert set(re.findall(r"\brelay_[a-z_]+\b", README.read_text())) - {"relay_token"} <= known


if __name__ == "__main__":
    README.write_text(MARK.sub(lambda match: f"<!-- {match[1]} -->\n{TABLES[match[1]]()}<!-- end -->\n", README.read_text()))

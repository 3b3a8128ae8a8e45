"""`.github/FAULTS.md` names every test that breaks something, and none that there isn't."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / ".github" / "FAULTS.md").read_text()
NAMED = re.compile(r"`(\w+/test_\w+\.py)(?:::(test_\w+))?`")
BROKEN = ("faults", "hostile")


def names_in(path: str) -> set[str]:
    tree = ast.parse((TESTS / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")}


def test_every_test_that_the_page_names_is_there() -> None:
    named = NAMED.findall(PAGE)
    assert named
    assert [f"{path}::{test}" for path, test in named if test not in names_in(path) | {""}] == []


def test_every_test_that_breaks_something_is_on_the_page() -> None:
    """A file may stand for all of its tests."""
    named = set(NAMED.findall(PAGE))
    paths = [path.relative_to(TESTS).as_posix() for folder in BROKEN for path in sorted((TESTS / folder).glob("test_*.py"))]
    there = {(path, test) for path in paths if (path, "") not in named for test in names_in(path)}
    assert there - named == set(), "add its line to .github/FAULTS.md"

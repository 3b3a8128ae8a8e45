"""What the tests take from npm."""

from pathlib import Path

from tests.conftest import need

MODULES = Path(__file__).parent.parent / "node_modules"


def npm(name: str) -> Path:
    """Where a file of a package is: `npm("acorn/bin/acorn")`."""
    path = MODULES / name
    need(f"npm's {name} (npm ci --prefix tests)", str(path) if path.exists() else None)
    return path

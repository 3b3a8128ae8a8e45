"""The status as a page for people: plain HTML that loads nothing, runs nothing, and comes anew by itself."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

REFRESH_S = 5
STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 2rem auto; padding: 0 1rem; max-width: 62rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
div { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .25rem 1rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #8886; white-space: nowrap; }
td { font-variant-numeric: tabular-nums; }
"""
POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'; frame-ancestors 'none'"
)


def page(status: Mapping[str, Any]) -> bytes:
    """Values are shown by their names in JSON: warnings above all others, tables and lists below the plain ones."""
    warnings = "".join(f"<li>{shown(warning)}</li>" for warning in status.get("warnings", ()))
    plain = {name: value for name, value in status.items() if name != "warnings" and not is_table(value)}
    tables = {name: value for name, value in status.items() if is_table(value)}
    parts = [
        f"<h2>warnings</h2><ul>{warnings}</ul>" if warnings else "",
        pairs(plain),
        *(f"<h2>{words(name)}</h2>{pairs(value) if isinstance(value, Mapping) else rows(value)}" for name, value in tables.items()),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Edge Relay: status</title>'
        '<meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="refresh" content="{REFRESH_S}"><style>{STYLE}</style></head>'
        f"<body><main><h1>Edge Relay</h1>{''.join(parts)}</main></body></html>"
    ).encode()


def is_table(value: object) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def pairs(values: Mapping[str, Any]) -> str:
    lines = (f'<tr><th scope="row">{words(name)}</th><td>{shown(value)}</td></tr>' for name, value in values.items())
    return f"<div><table>{''.join(lines)}</table></div>"


def rows(items: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f'<th scope="col">{words(name)}</th>' for name in items[0])
    lines = ("".join(f"<td>{shown(value)}</td>" for value in item.values()) for item in items)
    return f"<div><table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table></div>"


def words(name: str) -> str:
    return escape(name.replace("_", " "))


def shown(value: object) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(map(shown, value)) or "–"
        case Mapping():
            return ", ".join(f"{words(name)} {shown(part)}" for name, part in value.items())
        case _:
            return escape(str(value))

"""Whether a Valkey is fit to hold the log, from what it says of itself: told when a relay starts, and by `relay check`."""

from collections.abc import Mapping
from typing import Literal

import msgspec

CLOCK_S = 5.0
VALKEY_LEAST = (7, 2)  # the first under this name, and what our scripts were tried on

Level = Literal["ok", "warning", "error"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at. All but `ok` say why it matters and what to change."""

    level: Level
    about: str
    what: str
    why: str = ""
    fix: str = ""


def judge_valkey(figures: Mapping[str, str], now_s: float) -> list[Finding]:
    """From what the server says of itself, and the time at which it did."""
    version = figures.get("valkey_version") or figures.get("redis_version", "")
    findings = [Finding("ok", "Valkey", f"version {version} answers")]
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < VALKEY_LEAST:
        findings = [
            Finding(
                "warning",
                "Valkey",
                f"version {version} is older than {'.'.join(map(str, VALKEY_LEAST))}",
                "the relay isn't tried with it",
                "use a newer one",
            )
        ]
    if figures.get("maxmemory_policy", "noeviction") != "noeviction":
        findings.append(
            Finding(
                "error",
                "Valkey",
                f"maxmemory-policy is {figures['maxmemory_policy']}",
                "an evicted key is a lost event, and nobody is told of it",
                "CONFIG SET maxmemory-policy noeviction, and in its configuration file",
            )
        )
    if figures.get("aof_enabled") == "0":
        findings.append(
            Finding(
                "warning",
                "Valkey",
                "it keeps no append-only file",
                "when it is started again, all events since its last snapshot are gone, and clients are told `reset`",
                "CONFIG SET appendonly yes, and in its configuration file",
            )
        )
    for what in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status"):
        if figures.get(what, "ok") != "ok":
            findings.append(
                Finding(
                    "error", "Valkey", f"{what} is {figures[what]}", "it can't write to its disk, and will refuse events", "look in its log"
                )
            )
    if figures.get("role", "master") != "master":
        findings.append(
            Finding(
                "error",
                "Valkey",
                f"this server is a {figures['role']}",
                "it takes no events, and its reads are behind",
                "name the primary, or use valkey+sentinel://",
            )
        )
    apart_s = abs(now_s - int(figures["server_time_usec"]) / 1e6) if "server_time_usec" in figures else 0
    if apart_s > CLOCK_S:
        findings.append(
            Finding(
                "warning",
                "Valkey",
                f"its clock and this one are {apart_s:.0f} s apart",
                "retention and cursors go by its clock, tokens by this one",
                "let both run NTP",
            )
        )
    return findings

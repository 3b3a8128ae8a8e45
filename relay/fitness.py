"""Whether a Valkey is fit to hold the log, from what it says of itself: told when a relay starts, and by `relay check`."""

from collections.abc import Mapping

from relay.finding import Fault, Finding, good

CLOCK_S = 5.0
VALKEY_LEAST = (7, 2)  # the first under this name, and what our scripts were tried on
WRITES = ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")

# fmt: off
OLD = Fault(
    "warning", "Valkey", "version {version} is older than {least}",
    why="the relay isn't tried with it",
    fix="use a newer one",
)
EVICTS = Fault(
    "error", "Valkey", "maxmemory-policy is {policy}",
    why="an evicted key is a lost event, and nobody is told of it",
    fix="CONFIG SET maxmemory-policy noeviction, and in its configuration file",
)
FORGETS = Fault(
    "warning", "Valkey", "it keeps no append-only file",
    why="when it is started again, all events since its last snapshot are gone, and clients are told `reset`",
    fix="CONFIG SET appendonly yes, and in its configuration file",
)
CANT_WRITE = Fault(
    "error", "Valkey", "{write} is {status}",
    why="it can't write to its disk, and will refuse events",
    fix="look in its log",
)
NO_PRIMARY = Fault(
    "error", "Valkey", "this server is a {role}",
    why="it takes no events, and its reads are behind",
    fix="name the primary, or use valkey+sentinel://",
)
CLOCK_APART = Fault(
    "warning", "Valkey", "its clock and this one are {apart_s:.0f} s apart",
    why="retention and cursors go by its clock, tokens by this one",
    fix="let both run NTP",
)
# fmt: on


def judge_valkey(figures: Mapping[str, str], asked_at: float, answered_at: float) -> list[Finding]:
    """From what the server says of itself, and the times between which it did."""
    version = figures.get("valkey_version") or figures.get("redis_version", "")
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < VALKEY_LEAST:
        findings = [OLD.found(version=version, least=".".join(map(str, VALKEY_LEAST)))]
    else:
        findings = [good("Valkey", f"version {version} answers")]
    policy, role = figures.get("maxmemory_policy", "noeviction"), figures.get("role", "master")
    if policy != "noeviction":
        findings.append(EVICTS.found(policy=policy))
    if figures.get("aof_enabled") == "0":
        findings.append(FORGETS.found())
    findings += [CANT_WRITE.found(write=write, status=figures[write]) for write in WRITES if figures.get(write, "ok") != "ok"]
    if role != "master":
        findings.append(NO_PRIMARY.found(role=role))
    if "server_time_usec" in figures:
        apart_s = seconds_outside(int(figures["server_time_usec"]) / 1e6, asked_at, answered_at)
        if apart_s > CLOCK_S:
            findings.append(CLOCK_APART.found(apart_s=apart_s))
    return findings


def seconds_outside(told_at: float, asked_at: float, answered_at: float) -> float:
    """How far another's clock is from ours at least: between question and answer, it may have been asked at any time."""
    return max(asked_at - told_at, told_at - answered_at, 0.0)

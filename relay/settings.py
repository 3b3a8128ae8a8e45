"""Every setting, read once from the environment and checked before anything starts.

`SETTINGS` is the list that the README's table and `relay serve` share. A variable that looks like ours and is none
is told of, since a misspelt limit would silently be its default; it is no mistake, since the next version may know it.
"""

import difflib
import ipaddress
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from relay.auth import Key, Verifier, parse_public_key, parse_secret
from relay.cursor import SHARDS_MAX
from relay.envelope import Sealer
from relay.errors import SettingsError
from relay.event import Retention
from relay.keys import Keyring, parse_masters
from relay.query import Versions
from relay.servers import check_url
from relay.topic import Patterns

DAY_S = 86400
SECRET_HELP = "make one with: openssl rand -base64 48"


class Setting(msgspec.Struct, frozen=True):
    """One environment variable: how it is read, what it is when unset, and its line in the README."""

    name: str
    read: Callable[[str], Any]
    default: str
    help: str


class Settings(msgspec.Struct, frozen=True):
    """The values, by the variables' names in lower case without the prefix."""

    host: str
    port: int
    workers: int
    valkey_url: str
    valkey_seconds: float
    data_dir: Path
    jwt_secret: tuple[Key, ...]
    jwt_public_key_file: tuple[Key, ...]
    jwt_jwks_url: str
    jwt_issuer: str
    jwt_audience: str
    jwt_max_seconds: int
    jwt_grants_claim: str
    jwt_subscription_claim: str
    query_token: str
    public_topics: Patterns
    subscription: str
    subscription_url: str
    subscription_recheck_seconds: float
    allowed_origins: tuple[str, ...]
    sse_encryption_key: tuple[str, ...]
    seal_keys: str
    key_epoch_seconds: int
    seal_ttl_seconds: int
    require_sealed: Patterns
    metrics_token: str
    retention_seconds: int
    retention_events: int
    journal_events: int
    idempotency_seconds: int
    shards: int
    wait_replicas: int
    wait_seconds: float
    max_event_bytes: int
    heartbeat_seconds: float
    heartbeat_max_seconds: float
    stream_max_seconds: float
    drain_seconds: float
    send_seconds: float
    max_streams: int
    max_streams_per_sub: int
    connects_per_second: int
    publish_per_second: int
    requests_per_second: int
    trusted_proxies: tuple[str, ...]
    http1_buffer_bytes: int
    request_seconds: float
    sources: Path | None
    poll_interval: int
    lease_seconds: float
    compression: str
    log_format: str
    demo_page: bool

    def verifier(self) -> Verifier:
        return Verifier(
            self.jwt_secret + self.jwt_public_key_file,
            self.jwt_max_seconds,
            self.jwt_issuer or None,
            self.jwt_audience or None,
            self.jwt_grants_claim,
            self.jwt_subscription_claim,
        )


def text(value: str) -> str:
    return value


def whole(least: int, most: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not re.fullmatch(r"\d{1,15}", value, re.ASCII) or not least <= int(value) <= most:
            raise ValueError(f"is not a whole number from {least} to {most}")
        return int(value)

    return read


def number(least: float, most: float) -> Callable[[str], float]:
    def read(value: str) -> float:
        if not re.fullmatch(r"\d{1,9}(\.\d{1,6})?", value, re.ASCII) or not least <= float(value) <= most:
            raise ValueError(f"is not a number from {least:g} to {most:g}")
        return int(value) if value.isdigit() else float(value)

    return read


def switch(value: str) -> bool:
    if value not in ("", "0", "1"):
        raise ValueError("is neither 1 nor 0")
    return value == "1"


def one_of(*choices: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in choices:
            raise ValueError(f"is not one of {', '.join(choices)}")
        return value

    return read


def directory(value: str) -> Path:
    return Path(value).expanduser().absolute()


def file(value: str) -> Path | None:
    return directory(value) if value else None


def secret(value: str) -> tuple[Key, ...]:
    if not value:
        return ()
    try:
        return parse_secret(value)
    except ValueError as error:
        raise ValueError(f"{error}; {SECRET_HELP}") from error


def masters(value: str) -> tuple[str, ...]:
    if not value:
        return ()
    try:
        return parse_masters(value)
    except ValueError as error:
        raise ValueError(f"{error}; {SECRET_HELP}") from error


def public_key(value: str) -> tuple[Key, ...]:
    if not value:
        return ()
    try:
        return (parse_public_key(Path(value).read_bytes()),)
    except OSError as error:
        raise ValueError(f"can't be read: {error.strerror}") from error


def patterns(value: str) -> Patterns:
    found, bad = Patterns.parse([part.strip() for part in value.split(",") if part.strip()])
    if bad:
        raise ValueError(f"has patterns that are none: {', '.join(bad)}; write rounds/ROULETTE/*, rounds/** or **")
    return found


def origins(value: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in value.split(",") if part.strip())
    bad = [part for part in found if not re.fullmatch(r"https?://[^/?#\s]+", part)]
    if bad:
        raise ValueError(f"has origins that are none: {', '.join(bad)}; write https://app.example.com, without a path")
    return found


def web_address(value: str) -> str:
    if value and not re.fullmatch(r"https?://[^/?#\s]+([/?][^#\s]*)?", value):
        raise ValueError("is no address of a service: write https://billing.example.com/subscription")
    return value


def tls_address(value: str) -> str:
    if value and not value.startswith("https://"):
        raise ValueError("is no address with TLS: whoever is on the way could put keys of his own into it; write https://…")
    return web_address(value)


def networks(value: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in value.split(",") if part.strip())
    for part in found:
        try:
            ipaddress.ip_network(part)
        except ValueError as error:
            raise ValueError(f"has a network that is none: {error}; write 10.0.0.0/8 or 192.0.2.7") from error
    return found


SETTINGS = [
    Setting("RELAY_HOST", text, "127.0.0.1", "address to listen on"),
    Setting("RELAY_PORT", whole(1, 65535), "8080", "port to listen on; `PORT` counts where this is unset"),
    Setting("RELAY_WORKERS", whole(1, 64), "1", "processes that serve; one a core at most, one in a container"),
    Setting("RELAY_VALKEY_URL", check_url, "", "Valkey's URL; unset: an embedded one in `RELAY_DATA_DIR`"),
    Setting("RELAY_VALKEY_SECONDS", number(0.1, 300), "2", "a Valkey that answers nothing for so long is taken to be away"),
    Setting("RELAY_DATA_DIR", directory, "~/.local/share/edge-relay", "where the embedded Valkey keeps its data"),
    Setting("RELAY_JWT_SECRET", secret, "", f"HS256 secret of 32 bytes or more, or `current,previous`; {SECRET_HELP}"),
    Setting(
        "RELAY_JWT_PUBLIC_KEY_FILE",
        public_key,
        "",
        "PEM file of an RSA (RS256), P-256 (ES256) or Ed25519 (EdDSA) public key",
    ),
    Setting("RELAY_JWT_JWKS_URL", tls_address, "", "where an issuer publishes its public keys (JWKS): `https://…`"),
    Setting("RELAY_JWT_ISSUER", text, "", "what `iss` must be, if set"),
    Setting("RELAY_JWT_AUDIENCE", text, "", "what `aud` must hold, if set"),
    Setting("RELAY_JWT_MAX_SECONDS", whole(60, 10 * 365 * DAY_S), str(30 * DAY_S), "how far ahead `exp` may be"),
    Setting("RELAY_JWT_GRANTS_CLAIM", text, "relay", "claim of the grants: a name, or a JSON Pointer"),
    Setting("RELAY_JWT_SUBSCRIPTION_CLAIM", text, "subscription", "claim of the subscription: a name, or a JSON Pointer"),
    Setting(
        "RELAY_QUERY_TOKEN", one_of("jwt", "ticket", "off"), "jwt", "what `?token=` may hold: `jwt` (or a ticket), `ticket` alone, or `off`"
    ),
    Setting("RELAY_PUBLIC_TOPICS", patterns, "", "patterns, joined by commas, that anybody may read without a token"),
    Setting(
        "RELAY_SUBSCRIPTION",
        one_of("claim", "valkey", "http", "off"),
        "claim",
        "where a subscription is looked up: the token's `claim`, `valkey`, `http` (`RELAY_SUBSCRIPTION_URL`), or `off`",
    ),
    Setting("RELAY_SUBSCRIPTION_URL", web_address, "", 'answers `GET …?sub=…` with `{"status","until"}`'),
    Setting(
        "RELAY_SUBSCRIPTION_RECHECK_SECONDS",
        number(1, 3600),
        "30",
        "so often an open stream's subscription is looked up again",
    ),
    Setting("RELAY_ALLOWED_ORIGINS", origins, "", "origins, joined by commas; unset: the relay's own host and port alone"),
    Setting("SSE_ENCRYPTION_KEY", masters, "", f"what seals `v2`: 32 random characters or more, or `current,previous`; {SECRET_HELP}"),
    Setting(
        "RELAY_SEAL_KEYS",
        one_of("topic", "shared"),
        "topic",
        "`topic`: keys made of it, which `/stream/keys` gives to readers; `shared`: the key itself, for backends that have it",
    ),
    Setting("RELAY_KEY_EPOCH_SECONDS", whole(1, 30 * DAY_S), "3600", "how long a topic's key seals"),
    Setting("RELAY_SEAL_TTL_SECONDS", whole(1, DAY_S), "300", "how long a seal opens, and 60 s for clocks that are wrong"),
    Setting("RELAY_REQUIRE_SEALED", patterns, "", "patterns, joined by commas, of topics that are had sealed alone (`v2`)"),
    Setting("RELAY_METRICS_TOKEN", text, "", "bearer token that `/metrics` asks for, if set"),
    Setting("RELAY_RETENTION_SECONDS", whole(1, 365 * DAY_S), str(DAY_S), "how long events are kept: the promise"),
    Setting(
        "RELAY_RETENTION_EVENTS",
        whole(1, 10_000_000),
        "10000",
        "about how many events of a topic are kept: the guard of memory",
    ),
    Setting("RELAY_JOURNAL_EVENTS", whole(1, 100_000_000), "100000", "about how many events of a shard's journal are kept"),
    Setting(
        "RELAY_IDEMPOTENCY_SECONDS",
        whole(1, 365 * DAY_S),
        str(DAY_S),
        "how long an idempotency key is known; unset: as long as events",
    ),
    Setting("RELAY_SHARDS", whole(1, SHARDS_MAX), "1", "parts of the log; fixed once the log exists"),
    Setting("RELAY_WAIT_REPLICAS", whole(0, 16), "0", "publishing waits until so many replicas have the event (`WAIT`)"),
    Setting("RELAY_WAIT_SECONDS", number(0.01, 60), "1", "and no longer than this: then it is 503, and to be repeated with its key"),
    Setting("RELAY_MAX_EVENT_BYTES", whole(64, 4 << 20), str(64 << 10), "most bytes of one event's data"),
    Setting("RELAY_HEARTBEAT_SECONDS", number(1, 55), "15", "a quiet stream gets a comment so often"),
    Setting(
        "RELAY_HEARTBEAT_MAX_SECONDS",
        number(1, 55),
        "25",
        "how rare that may become where a process holds more than 15,000 streams; set it below what your proxies allow",
    ),
    Setting(
        "RELAY_STREAM_MAX_SECONDS",
        number(1, DAY_S),
        "3600",
        "a stream's longest life; set it below your platform's limit",
    ),
    Setting("RELAY_DRAIN_SECONDS", number(0, 600), "10", "over how long streams are ended when the relay stops"),
    Setting("RELAY_SEND_SECONDS", number(1, 600), "30", "a client that takes nothing for so long is closed"),
    Setting(
        "RELAY_MAX_STREAMS",
        whole(1, 1_000_000),
        "",
        "streams and waiting polls of a process; unset: what the file limit leaves",
    ),
    Setting(
        "RELAY_MAX_STREAMS_PER_SUB",
        whole(1, 1_000_000),
        "100",
        "the same of one `sub`, or of one address without a token",
    ),
    Setting(
        "RELAY_CONNECTS_PER_SECOND",
        whole(0, 1_000_000),
        "0",
        "streams and waiting polls that begin in a second, a process; 0: no limit",
    ),
    Setting(
        "RELAY_PUBLISH_PER_SECOND",
        whole(0, 1_000_000),
        "0",
        "most events a second of one publisher, at all relays together; 0: any number",
    ),
    Setting(
        "RELAY_REQUESTS_PER_SECOND",
        whole(0, 1_000_000),
        "0",
        "most streams and pages a second that one address asks for, at all relays together; 0: any number",
    ),
    Setting("RELAY_TRUSTED_PROXIES", networks, "", "networks, joined by commas, whose `X-Forwarded-For` counts"),
    Setting(
        "RELAY_HTTP1_BUFFER_BYTES",
        whole(8192, 1 << 20),
        "8192",
        "a request's head must fit; larger costs 10 KB more a stream",
    ),
    Setting(
        "RELAY_REQUEST_SECONDS",
        number(1, 3600),
        "75",
        "longest for a request's head, for its body, and between two requests; set it above your balancer's idle time",
    ),
    Setting("RELAY_SOURCES", file, "", "TOML file of the upstreams that the update job watches; unset: none"),
    Setting("POLL_INTERVAL", whole(50, 86_400_000), "5000", "ms between two looks at an upstream whose source says nothing else"),
    Setting(
        "RELAY_LEASE_SECONDS",
        number(0.5, 300),
        "10",
        "a process that looks at a source and is gone is replaced within twice this",
    ),
    Setting(
        "RELAY_COMPRESSION",
        one_of("auto", "off"),
        "auto",
        "`auto`: gzip or zstd for whoever asks, and what is sealed is compressed before; `off`",
    ),
    Setting("RELAY_LOG_FORMAT", one_of("text", "json"), "text", "log lines as `text` or `json`"),
    Setting("RELAY_DEMO_PAGE", switch, "", "`1`: a page at `/` that shows a topic live, and lets one look into its stream"),
]
# What counts where a setting is unset.
STAND_INS = {"RELAY_PORT": "PORT", "RELAY_IDEMPOTENCY_SECONDS": "RELAY_RETENTION_SECONDS"}
# Whose values no message shows. A URL may hold a password.
HIDDEN = frozenset({"RELAY_JWT_SECRET", "SSE_ENCRYPTION_KEY", "RELAY_METRICS_TOKEN", "RELAY_VALKEY_URL", "RELAY_SUBSCRIPTION_URL"})


def read_settings(environ: Mapping[str, str] = os.environ, *, needs_key: bool = True) -> Settings:
    """Raises SettingsError, which names every mistake. `needs_key` is False for commands that check no token."""
    environ = {name: value for name, value in environ.items() if value.strip()}
    environ.setdefault("RELAY_MAX_STREAMS", str(streams_by_file_limit()))
    values: dict[str, Any] = {}
    mistakes: list[str] = []
    for setting in SETTINGS:
        name = next((name for name in (setting.name, STAND_INS.get(setting.name)) if name in environ), setting.name)
        given = environ.get(name, setting.default).strip()
        try:
            values[setting.name.removeprefix("RELAY_").lower()] = setting.read(given)
        except ValueError as error:
            shown = "" if name in HIDDEN else f"={given[:80]}"
            mistakes.append(f"{name}{shown} {error}")
    if not mistakes and values["require_sealed"].patterns and not values["sse_encryption_key"]:
        mistakes.append(f"SSE_ENCRYPTION_KEY is not set: RELAY_REQUIRE_SEALED needs a key to seal with; {SECRET_HELP}")
    if not mistakes and needs_key:
        mistakes += key_mistakes(values)
        if values["subscription"] == "http" and not values["subscription_url"]:
            mistakes.append("RELAY_SUBSCRIPTION_URL is not set: RELAY_SUBSCRIPTION=http asks it")
    if mistakes:
        raise SettingsError(list(dict.fromkeys(mistakes)))
    return Settings(**values)


def unknown_names(environ: Mapping[str, str] = os.environ) -> list[str]:
    """What to tell the operator of variables that look like settings and are none."""
    known = [setting.name for setting in SETTINGS]
    told = []
    for name in sorted(environ):
        if name.startswith("RELAY_") and name not in known:
            close = difflib.get_close_matches(name, known, 1)
            told.append(f"{name} is no setting of this version" + (f": did you mean {close[0]}?" if close else ""))
    return told


def cautions(settings: Settings) -> list[str]:
    """What is as it was set, and may surprise all the same."""
    if not settings.require_sealed.patterns:
        return []
    return [
        f"RELAY_REQUIRE_SEALED={','.join(settings.require_sealed.texts())}: browsers without WebCrypto can't read these topics, "
        "which are old ones, and all on plain http except on localhost"
    ]


def key_mistakes(values: Mapping[str, Any]) -> list[str]:
    keys = [name for name in ("jwt_secret", "jwt_public_key_file", "jwt_jwks_url") if values[name]]
    if len(keys) > 1:
        given = " and ".join(f"RELAY_{name.upper()}" for name in keys)
        return [f"{given} are set: tokens have one kind of key, so leave one"]
    if not keys:
        return [f"RELAY_JWT_SECRET is not set: tokens need a key; {SECRET_HELP}"]
    return []


def streams_by_file_limit() -> int:
    """What the process may open, less what it needs for itself. 1,000 where there is no such limit to ask for."""
    try:
        import resource
    except ImportError:
        return 1000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 100_000 if hard == resource.RLIM_INFINITY else max(100, min(hard, 1_000_000) - 400)


def retention_of(settings: Settings) -> Retention:
    """What the log is told of how long to keep what."""
    return Retention(
        settings.retention_seconds * 1000,
        settings.retention_events,
        settings.journal_events,
        settings.idempotency_seconds * 1000,
        settings.wait_replicas,
        settings.wait_seconds,
    )


def versions_of(settings: Settings) -> Versions:
    """How events may be read. The keys live as long as the process."""
    if not settings.sse_encryption_key:
        return Versions()
    keyring = Keyring(settings.sse_encryption_key, settings.key_epoch_seconds, settings.seal_keys == "shared")
    sealer = Sealer(keyring, settings.seal_ttl_seconds, time.time, compresses=settings.compression == "auto")
    return Versions(sealer, settings.require_sealed)

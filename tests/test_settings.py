"""Each mistake in the environment is named with its fix, none hides another, and no secret is shown."""

import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relay.errors import SettingsError
from relay.keys import Keyring
from relay.query import Versions
from relay.settings import SETTINGS, Settings, cautions, read_settings, retention_of, streams_by_file_limit, unknown_names, versions_of
from tests.servers import SEAL_KEY

SECRET = "only-for-these-tests-0123456789-0123456789"


def read(**environ: str) -> Settings:
    return read_settings({"RELAY_JWT_SECRET": SECRET, **environ})


def mistakes(environ: Mapping[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        read_settings(environ)
    return caught.value.mistakes


def test_a_secret_alone_is_enough() -> None:
    settings = read()
    assert [key.key for key in settings.jwt_secret] == [SECRET.encode()]
    assert (settings.host, settings.port, settings.workers, settings.valkey_url) == ("127.0.0.1", 8080, 1, "")
    assert (settings.retention_seconds, settings.retention_events, settings.journal_events) == (86400, 10_000, 100_000)
    assert (settings.idempotency_seconds, settings.shards, settings.max_event_bytes) == (86400, 1, 65536)
    assert (settings.heartbeat_seconds, settings.stream_max_seconds) == (15, 3600)
    assert (settings.drain_seconds, settings.send_seconds) == (10, 30)
    assert (settings.max_streams_per_sub, settings.max_streams) == (100, streams_by_file_limit())
    assert (settings.jwt_max_seconds, settings.query_token, settings.subscription) == (30 * 86400, "jwt", "claim")
    assert (settings.jwt_grants_claim, settings.jwt_subscription_claim) == ("relay", "subscription")
    assert (settings.allowed_origins, settings.trusted_proxies, settings.metrics_token) == ((), (), "")
    assert settings.log_format == "text"
    assert (settings.sources, settings.poll_interval, settings.lease_seconds) == (None, 5000, 10)
    assert not settings.public_topics.texts()
    assert settings.data_dir.is_absolute()


def test_empty_counts_as_unset() -> None:
    assert read(**{setting.name: " " for setting in SETTINGS if setting.name != "RELAY_JWT_SECRET"}) == read()


VALUES: dict[str, tuple[dict[str, str], str, Any]] = {
    "a port": ({"RELAY_PORT": "65535"}, "port", 65535),
    "the platform's port": ({"PORT": "5000"}, "port", 5000),
    "our port before the platform's": ({"PORT": "5000", "RELAY_PORT": "6000"}, "port", 6000),
    "spaces around": ({"RELAY_PORT": " 5000 "}, "port", 5000),
    "a fraction": ({"RELAY_HEARTBEAT_SECONDS": "1.5"}, "heartbeat_seconds", 1.5),
    "no drain": ({"RELAY_DRAIN_SECONDS": "0"}, "drain_seconds", 0),
    "keys as long as events": ({"RELAY_RETENTION_SECONDS": "60"}, "idempotency_seconds", 60),
    "keys longer than events": (
        {"RELAY_RETENTION_SECONDS": "60", "RELAY_IDEMPOTENCY_SECONDS": "120"},
        "idempotency_seconds",
        120,
    ),
    "origins": (
        {"RELAY_ALLOWED_ORIGINS": "https://a.example, http://127.0.0.1:3000"},
        "allowed_origins",
        ("https://a.example", "http://127.0.0.1:3000"),
    ),
    "networks": ({"RELAY_TRUSTED_PROXIES": "10.0.0.0/8, ::1"}, "trusted_proxies", ("10.0.0.0/8", "::1")),
    "Valkey over TLS": ({"RELAY_VALKEY_URL": "valkeys://u:p@host:6379/2"}, "valkey_url", "valkeys://u:p@host:6379/2"),
    "Valkey on a socket": ({"RELAY_VALKEY_URL": "unix:///run/valkey.sock"}, "valkey_url", "unix:///run/valkey.sock"),
    "Valkey without a port": ({"RELAY_VALKEY_URL": "redis://host"}, "valkey_url", "redis://host"),
    "a directory from here": ({"RELAY_DATA_DIR": "data"}, "data_dir", Path.cwd() / "data"),
    "a directory from home": ({"RELAY_DATA_DIR": "~/data"}, "data_dir", Path.home() / "data"),
}


@pytest.mark.parametrize(("environ", "name", "value"), VALUES.values(), ids=VALUES)
def test_a_setting_is_read(environ: dict[str, str], name: str, value: object) -> None:
    assert getattr(read(**environ), name) == value


def test_patterns_of_public_topics_are_read() -> None:
    assert read(RELAY_PUBLIC_TOPICS="public/**, a/b/*").public_topics.texts() == ["public/**", "a/b/*"]


# Setting, value, and what its line must say

WRONG = {
    "a port that is none": ("RELAY_PORT", "http", "RELAY_PORT=http is not a whole number from 1 to 65535"),
    "a port of 0": ("RELAY_PORT", "0", "RELAY_PORT=0 is not"),
    "a port too large": ("RELAY_PORT", "65536", "RELAY_PORT=65536 is not"),
    "the platform's port": ("PORT", "x", "PORT=x is not a whole number from 1 to 65535"),
    "a number in another script": ("RELAY_PORT", "٨٠٨٠", "RELAY_PORT=٨٠٨٠ is not"),
    "a fraction for a whole number": ("RELAY_WORKERS", "1.5", "RELAY_WORKERS=1.5 is not"),
    "a negative number": ("RELAY_RETENTION_SECONDS", "-1", "RELAY_RETENTION_SECONDS=-1 is not"),
    "a retention in words": ("RELAY_RETENTION_SECONDS", "1d", "RELAY_RETENTION_SECONDS=1d is not"),
    "a heartbeat too slow": ("RELAY_HEARTBEAT_SECONDS", "56", "RELAY_HEARTBEAT_SECONDS=56 is not a number from 1 to 55"),
    "a heartbeat that is no number": ("RELAY_HEARTBEAT_SECONDS", "nan", "RELAY_HEARTBEAT_SECONDS=nan is not"),
    "too many shards": ("RELAY_SHARDS", "13", "RELAY_SHARDS=13 is not a whole number from 1 to 12"),
    "a choice": ("RELAY_LOG_FORMAT", "xml", "RELAY_LOG_FORMAT=xml is not one of text, json"),
    "a URL of something else": ("RELAY_VALKEY_URL", "http://host", "RELAY_VALKEY_URL is not a URL of the form valkey://host:6379/0"),
    "no URL": ("RELAY_VALKEY_URL", "localhost:6379", "RELAY_VALKEY_URL is not a URL"),
    "a URL with a port that is none": ("RELAY_VALKEY_URL", "valkey://host:port", "RELAY_VALKEY_URL is not a URL"),
    "a URL with brackets": ("RELAY_VALKEY_URL", "valkey://[::1", "RELAY_VALKEY_URL is not a URL"),
    "a pattern": ("RELAY_PUBLIC_TOPICS", "public/*", "RELAY_PUBLIC_TOPICS=public/* has patterns that are none: public/*; write"),
    "an origin with a path": (
        "RELAY_ALLOWED_ORIGINS",
        "https://a.example/",
        "RELAY_ALLOWED_ORIGINS=https://a.example/ has origins that are none: https://a.example/; write",
    ),
    "any origin": ("RELAY_ALLOWED_ORIGINS", "*", "RELAY_ALLOWED_ORIGINS=* has origins that are none"),
    "no origin": ("RELAY_ALLOWED_ORIGINS", "null", "RELAY_ALLOWED_ORIGINS=null has origins that are none"),
    "an origin without a scheme": ("RELAY_ALLOWED_ORIGINS", "a.example", "RELAY_ALLOWED_ORIGINS=a.example has origins"),
    "a network": ("RELAY_TRUSTED_PROXIES", "proxy", "RELAY_TRUSTED_PROXIES=proxy has a network that is none"),
    "a network with host bits": ("RELAY_TRUSTED_PROXIES", "10.0.0.1/8", "RELAY_TRUSTED_PROXIES=10.0.0.1/8 has a network that is none"),
    "a short secret": ("RELAY_JWT_SECRET", "short", "RELAY_JWT_SECRET needs at least 32 bytes"),
    "a key to seal with that is short": ("SSE_ENCRYPTION_KEY", "x1y2z3", "SSE_ENCRYPTION_KEY needs at least 32 characters"),
    "a key to seal with that can be guessed": ("SSE_ENCRYPTION_KEY", "a" * 64, "SSE_ENCRYPTION_KEY is long enough, but no random text"),
    "topics to seal, and nothing to seal with": ("RELAY_REQUIRE_SEALED", "rounds/**", "SSE_ENCRYPTION_KEY is not set"),
    "three secrets": ("RELAY_JWT_SECRET", ",".join([SECRET] * 3), "RELAY_JWT_SECRET needs at least 32 bytes"),
    "a key file that is not there": (
        "RELAY_JWT_PUBLIC_KEY_FILE",
        "/nowhere/key.pem",
        "RELAY_JWT_PUBLIC_KEY_FILE=/nowhere/key.pem can't be read: No such file or directory",
    ),
    "a key file that is a directory": ("RELAY_JWT_PUBLIC_KEY_FILE", "/", "RELAY_JWT_PUBLIC_KEY_FILE=/ can't be read"),
    "a key file with no key": ("RELAY_JWT_PUBLIC_KEY_FILE", "/dev/null", "RELAY_JWT_PUBLIC_KEY_FILE=/dev/null "),
    "a lifetime of tokens": ("RELAY_JWT_MAX_SECONDS", "0", "RELAY_JWT_MAX_SECONDS=0 is not"),
}


@pytest.mark.parametrize(("name", "value", "line"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_named_with_its_fix(name: str, value: str, line: str) -> None:
    told = mistakes({"RELAY_JWT_SECRET": SECRET, name: value})
    assert len(told) == 1
    assert told[0].startswith(line)
    assert "\n" not in told[0]


def test_all_mistakes_are_named_at_once() -> None:
    told = mistakes({"RELAY_JWT_SECRET": "short", "RELAY_PORT": "x", "RELAY_SHARDS": "x", "RELAY_LOG_FORMAT": "x"})
    assert [line.partition("=")[0].partition(" ")[0] for line in told] == [
        "RELAY_PORT",
        "RELAY_JWT_SECRET",
        "RELAY_SHARDS",
        "RELAY_LOG_FORMAT",
    ]


HIDDEN = {
    "a secret": {"RELAY_JWT_SECRET": "hush-hush"},
    "a key to seal with": {"SSE_ENCRYPTION_KEY": "hush-hush"},
    "secrets": {"RELAY_JWT_SECRET": "hush-hush,hush-hush"},
    "a password": {"RELAY_JWT_SECRET": SECRET, "RELAY_VALKEY_URL": "http://:hush-hush@host"},
    "a password in a broken URL": {"RELAY_JWT_SECRET": SECRET, "RELAY_VALKEY_URL": "valkey://:hush-hush@host:x"},
}


@pytest.mark.parametrize("environ", HIDDEN.values(), ids=HIDDEN)
def test_no_secret_is_shown(environ: dict[str, str]) -> None:
    assert "hush" not in str(mistakes(environ))


def test_a_long_value_is_shown_in_part() -> None:
    (line,) = mistakes({"RELAY_JWT_SECRET": SECRET, "RELAY_PORT": "9" * 5000})
    assert len(line) < 200


# Keys


def test_tokens_need_a_key_that_is_told_how_to_make() -> None:
    assert mistakes({}) == ["RELAY_JWT_SECRET is not set: tokens need a key; make one with: openssl rand -base64 48"]
    assert read_settings({}, needs_key=False).jwt_secret == ()


def test_a_public_key_takes_the_place_of_a_secret(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    public = ed25519.Ed25519PrivateKey.generate().public_key()
    path.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    settings = read_settings({"RELAY_JWT_PUBLIC_KEY_FILE": str(path)})
    assert [key.algorithm for key in settings.verifier().keys] == ["EdDSA"]
    (line,) = mistakes({"RELAY_JWT_PUBLIC_KEY_FILE": str(path), "RELAY_JWT_SECRET": SECRET})
    assert "are set" in line
    assert "leave one" in line


def test_the_verifier_has_what_the_settings_say() -> None:
    verifier = read(RELAY_JWT_ISSUER="i", RELAY_JWT_AUDIENCE="a", RELAY_JWT_MAX_SECONDS="60", RELAY_JWT_GRANTS_CLAIM="/g").verifier()
    assert (verifier.issuer, verifier.audience, verifier.max_s, verifier.grants_claim) == ("i", "a", 60, "/g")


def test_the_log_is_told_how_long_to_keep_what() -> None:
    kept = retention_of(read(RELAY_RETENTION_SECONDS="60", RELAY_RETENTION_EVENTS="7", RELAY_JOURNAL_EVENTS="8"))
    assert (kept.retention_ms, kept.topic_events, kept.journal_events, kept.idempotency_ms) == (60_000, 7, 8, 60_000)


# Names


def test_a_misspelt_setting_is_told_of_and_is_no_mistake() -> None:
    environ = {"RELAY_RETENTION_SECOND": "5", "RELAY_WHATEVER_ELSE_7": "x", "PATH": "/", "RELAY_PORT": "1"}
    told = unknown_names(environ)
    assert len(told) == 2
    assert told[0] == "RELAY_RETENTION_SECOND is no setting of this version: did you mean RELAY_RETENTION_SECONDS?"
    assert told[1].startswith("RELAY_WHATEVER_ELSE_7 is no setting of this version")
    assert read(**environ)


def test_every_setting_has_a_line_for_the_readme_and_a_value() -> None:
    names = [setting.name for setting in SETTINGS]
    assert len(set(names)) == len(names)
    assert [setting.name for setting in SETTINGS if not setting.help or "\n" in setting.help] == []
    assert {name.removeprefix("RELAY_").lower() for name in names} == set(Settings.__struct_fields__)


def test_streams_are_bounded_by_the_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = streams_by_file_limit()
    assert 100 <= most <= 1_000_000
    assert hard == resource.RLIM_INFINITY or most == 100 or most < hard


def test_a_weak_key_to_seal_with_is_refused_with_the_command_that_makes_a_good_one() -> None:
    (line,) = mistakes({"RELAY_JWT_SECRET": SECRET, "SSE_ENCRYPTION_KEY": "changeme" * 8})
    assert "openssl rand -base64 48" in line


def test_the_versions_are_what_the_settings_say() -> None:
    assert versions_of(read()) == Versions()
    versions = versions_of(read(SSE_ENCRYPTION_KEY=f"{SEAL_KEY},{SECRET}", RELAY_SEAL_KEYS="shared", RELAY_REQUIRE_SEALED="a/**"))
    assert versions.sealer
    assert (versions.sealer.keyring, versions.sealer.ttl_ms) == (Keyring((SEAL_KEY, SECRET), 3600, True), 300_000)
    assert versions.only_sealed.texts() == ["a/**"]


def test_who_must_seal_is_told_whom_that_shuts_out() -> None:
    assert cautions(read()) == []
    (line,) = cautions(read(SSE_ENCRYPTION_KEY=SEAL_KEY, RELAY_REQUIRE_SEALED="a/**"))
    assert "RELAY_REQUIRE_SEALED=a/**" in line
    assert "WebCrypto" in line

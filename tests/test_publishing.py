"""Publishing from Python: in async code and elsewhere, one event or many."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

import relay as relay_package
from relay import Publisher, broadcast_to_resource
from relay.auth import Subscription
from relay.errors import LogUnavailable, Malformed, SettingsError
from relay.publishing import PublishError, encode, new_event
from relay.settings import Settings, read_settings
from tests.asking import Asker
from tests.servers import Relay, Valkey, topic

pytestmark = pytest.mark.anyio

PATIENT = {"RELAY_VALKEY_SECONDS": "60"}  # with a Valkey that gets little of a busy machine


@pytest.fixture
def settings(valkey: Valkey, relay: Relay) -> Settings:
    """Of a program that publishes: it needs no secret."""
    return read_settings({"RELAY_VALKEY_URL": valkey.url, **PATIENT}, needs_key=False)


async def test_an_event_is_published_and_answered_with_where_it_is(settings: Settings, asker: Asker) -> None:
    own = topic()
    async with Publisher(settings) as publisher:
        appended = await publisher.publish(own, {"number": 25}, event="spin")
    (event,) = asker.page(f"/stream/{own}/v1/poll?cursor=earliest")["events"]
    assert (event["id"], event["n"]) == (appended.event.cursor(appended.shard), appended.event.n)
    assert (event["event"], event["data"], appended.duplicate) == ("spin", {"number": 25}, False)


async def test_many_events_keep_their_order(settings: Settings, asker: Asker) -> None:
    own = topic()
    async with Publisher(settings) as publisher:
        appended = await publisher.publish_many([(own, index, "update", None) for index in range(300)])
        assert await publisher.publish_many([]) == []
    assert asker.log(own) == list(range(300))
    numbers = [one.event.n for one in appended]
    assert numbers == list(range(numbers[0], numbers[0] + 300))


async def test_the_same_key_again_has_the_first_answer(settings: Settings, asker: Asker) -> None:
    own = topic()
    async with Publisher(settings) as publisher:
        first = await publisher.publish(own, 1, key="k")
        again = await publisher.publish(own, 1, key="k")
        assert (first.duplicate, again.duplicate) == (False, True)
        assert again.event.place == first.event.place
        for data, name in ((2, "update"), (1, "other")):
            with pytest.raises(PublishError) as caught:
                await publisher.publish(own, data, event=name, key="k")
            assert caught.value.code == "key_reused"
    assert asker.log(own) == [1]


BAD: dict[str, tuple[tuple[str, Any, str, str | None], str]] = {
    "a reserved name": (("a/b/c", 1, "bye", None), "bad_event"),
    "an empty key": (("a/b/c", 1, "update", ""), "bad_key"),
    "a key with a space": (("a/b/c", 1, "update", "a b"), "bad_key"),
    "a key of 256": (("a/b/c", 1, "update", "k" * 256), "bad_key"),
    "data too large": (("a/b/c", "x" * 65536, "update", None), "event_too_large"),
    "an object": (("a/b/c", object(), "update", None), "bad_data"),
    "a text that is none": (("a/b/c", "\ud800", "update", None), "bad_data"),
}


@pytest.mark.parametrize(("bad", "code"), BAD.values(), ids=BAD)
async def test_all_events_are_checked_before_any_is_published(
    settings: Settings, asker: Asker, bad: tuple[str, Any, str, str | None], code: str
) -> None:
    own = topic()
    async with Publisher(settings) as publisher:
        with pytest.raises(PublishError) as caught:
            await publisher.publish_many([(own, 1, "update", None), bad])
        assert (caught.value.code, caught.value.too_large) == (code, code == "event_too_large")
        with pytest.raises(Malformed):
            await publisher.publish_many([(own, 1, "update", None), ("a/b", 1, "update", None)])
    assert asker.log(own) == []


async def test_it_publishes_only_while_it_is_open(settings: Settings) -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await Publisher(settings).publish("a/b/c", 1)


async def test_a_log_that_is_away_is_told(tmp_path: Any) -> None:
    away = read_settings({"RELAY_VALKEY_URL": "valkey://127.0.0.1:1/0"}, needs_key=False)
    with pytest.raises(LogUnavailable):
        async with Publisher(away):
            pass
    nowhere = read_settings({"RELAY_DATA_DIR": str(tmp_path / "none")}, needs_key=False)
    with pytest.raises(SettingsError, match="relay serve"):
        async with Publisher(nowhere):
            pass


async def test_a_log_of_another_number_of_shards_is_told(valkey: Valkey, relay: Relay) -> None:
    with pytest.raises(SettingsError, match="RELAY_SHARDS=1"):
        async with Publisher(read_settings({"RELAY_VALKEY_URL": valkey.url, "RELAY_SHARDS": "3", **PATIENT}, needs_key=False)):
            pass


# Without async


def test_code_that_is_not_async_publishes_the_same(settings: Settings, asker: Asker) -> None:
    own = topic()
    with Publisher.blocking(settings) as publisher:
        first = publisher.publish(own, 0, key="k")
        publisher.publish_many([(own, 1, "update", None), (own, 2, "update", None)])
        assert publisher.publish(own, 0, key="k").event.place == first.event.place
    assert asker.log(own) == [0, 1, 2]


def test_it_gives_back_what_it_opened_if_it_cant_open(tmp_path: Any) -> None:
    """A warning of anything left open would fail this."""
    for environ in ({"RELAY_VALKEY_URL": "valkey://127.0.0.1:1/0"}, {"RELAY_DATA_DIR": str(tmp_path)}):
        with (
            pytest.raises((LogUnavailable, SettingsError)),
            Publisher.blocking(read_settings(environ, needs_key=False)),
        ):
            pass


# The shortest way


@pytest.fixture
def in_environment(valkey: Valkey, relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RELAY_VALKEY_URL": valkey.url, **PATIENT}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RELAY_JWT_SECRET", raising=False)


async def test_a_resource_is_broadcast_to_in_one_line(in_environment: None, asker: Asker) -> None:
    kind = topic().split("/")[2]
    await broadcast_to_resource(kind, 123, {"number": 25})
    appended = await broadcast_to_resource(kind, "123", 26, event="spin", key="k")
    assert appended.event.topic == f"rounds/{kind}/123"
    page = asker.page(f"/stream/rounds/{kind}/123/v1/poll?cursor=earliest")
    assert [(event["event"], event["data"]) for event in page["events"]] == [("update", {"number": 25}), ("spin", 26)]


def test_a_resource_is_broadcast_to_where_code_is_not_async(in_environment: None, asker: Asker) -> None:
    kind = topic().split("/")[2]
    assert not broadcast_to_resource.blocking(kind, 7, [1], key="k").duplicate
    assert broadcast_to_resource.blocking(kind, 7, [1], key="k").duplicate
    assert asker.log(f"rounds/{kind}/7") == [[1]]


@pytest.mark.parametrize(("kind", "ident"), [("..", 1), ("a/b", 1), ("", 1), ("a", "b c")])
async def test_a_resource_whose_name_makes_no_topic_is_refused(in_environment: None, kind: str, ident: str | int) -> None:
    with pytest.raises(Malformed):
        await broadcast_to_resource(kind, ident, 1)


def test_the_package_gives_both_and_nothing_else() -> None:
    assert {"Publisher", "broadcast_to_resource"} <= set(relay_package.__all__)
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        relay_package.nothing_of_that_name  # noqa: B018


# What an event may be: text, and the data that is kept

DATA: dict[str, tuple[bytes, bytes | str]] = {
    "JSON": (b'{"a": [1, 2]}', b'{"a": [1, 2]}'),
    "line ends between tokens": (b'{\n"a":\r\n1\r}', b'{ "a":  1 }'),
    "an escaped line end": (rb'"a\nb"', rb'"a\nb"'),
    "empty": (b"", "bad_data"),
    "two values": (b"1 2", "bad_data"),
    "NaN": (b"NaN", "bad_data"),
    "a raw line end in a text": (b'"a\nb"', "bad_data"),
    "no UTF-8": (b'"\xff"', "bad_data"),
    "nested as deeply as may be": (b"[" * 512 + b"]" * 512, b"[" * 512 + b"]" * 512),
    "nested too deeply": (b"[" * 513 + b"]" * 513, "bad_data"),
    "much too deeply": (b"[" * 20_000 + b"]" * 20_000, "bad_data"),
    "objects too deeply": (b'{"a":' * 513 + b"1" + b"}" * 513, "bad_data"),
    "much side by side": (b"[" + b"[{}]," * 5000 + b"1]", b"[" + b"[{}]," * 5000 + b"1]"),
    "brackets in texts": (rb'["\\",{"[":"%b\"%b"}]' % (b"[" * 600, b"[" * 600), rb'["\\",{"[":"%b\"%b"}]' % (b"[" * 600, b"[" * 600)),
    "brackets in a text without an end": (b'["' + b"[" * 600, "bad_data"),
}


@pytest.mark.parametrize(("data", "kept"), DATA.values(), ids=DATA)
def test_data_is_json_on_one_line(data: bytes, kept: bytes | str) -> None:
    if isinstance(kept, str):
        with pytest.raises(PublishError) as caught:
            new_event("a/b/c", data, "update", None, 65536)
        assert caught.value.code == kept
    else:
        assert new_event("a/b/c", data, "update", None, 65536).data == kept


@pytest.mark.parametrize(
    "value",
    [object(), {1, object()}, lambda: None, "\udcff", math.nan, -math.inf, {"a": [1, (None, math.inf)]}, Subscription("active", math.nan)],
    ids=range(8),
)
def test_a_value_that_is_no_json_is_refused(value: object) -> None:
    with pytest.raises(PublishError) as caught:
        encode(value)
    assert caught.value.code == "bad_data"


def test_values_are_written_as_json() -> None:
    raw = msgspec.Raw(b"null")
    assert [encode(value) for value in (raw, [raw, 1e308, None])] == [b"null", b"[null,1e308,null]"]
    values: Sequence[Any] = [None, True, 1, 1.5, "é", [1], (1,), {"a": {"b": 2}}]
    assert [encode(value) for value in values] == [b"null", b"true", b"1", b"1.5", '"é"'.encode(), b"[1]", b"[1]", b'{"a":{"b":2}}']

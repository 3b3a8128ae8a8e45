"""Who is live, who is behind, and what each batch brings to whom. Sends are small fakes; nothing here waits."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import hub as hubs
from relay.coding import IDENTITY, Coding
from relay.cursor import EARLIEST, Place, parse_cursor
from relay.envelope import Sealer
from relay.event import Event
from relay.hub import Hub, Reader, Ring, push
from relay.keys import Keyring
from relay.query import Versions
from tests.servers import SEAL_KEY
from tests.streams import Parser
from tests.waiting import LIMIT_S

T, U, V = "a/b/t", "a/b/u", "a/b/v"


def place(s: int, epoch: str = "e") -> Place:
    return Place(epoch, 1000 + s // 2, s)  # two entries share a millisecond


def event(s: int, topic: str = T, *, n: int = 0, name: str = "update", data: bytes = b"1", epoch: str = "e") -> Event:
    return Event(topic, name, n or s, place(s, epoch), (0, 0), data)


def events(*numbers: int) -> list[Event]:
    return [event(s) for s in numbers]


class Sending(Awaitable[None]):
    """A send's result: done at once, or when it is told so."""

    def __init__(self, done: bool) -> None:
        self.done = done

    def __await__(self) -> Generator[None, None, None]:
        while not self.done:
            yield


class Client:
    """A connection whose channel may be full."""

    def __init__(self) -> None:
        self.parser = Parser()
        self.got: list[Any] = []
        self.full = False
        self.pushes = 0
        self.under_way: Sending | None = None

    def send(self, message: Any) -> Sending:
        assert self.under_way is None or self.under_way.done, "a chunk was pushed while another was under way"
        self.pushes += 1
        self.got += self.parser.feed(message["body"])
        self.under_way = Sending(not self.full)
        return self.under_way

    def numbers(self) -> list[int]:
        """The events it got, by their `s`."""
        return [parse_cursor(block.last_event_id).places[0].s for block in self.got]


def join(hub: Hub, client: Client, *topics: str, names: frozenset[str] | None = None, shard: Callable[[str], int] = lambda _: 0) -> Reader:
    return hub.join(topics or (T,), names, "v1", IDENTITY, client.send, shard)


def live(hub: Hub, client: Client, *topics: str, names: frozenset[str] | None = None) -> Reader:
    reader = join(hub, client, *topics, names=names)
    reader.places = hub.places(reader.audience)
    assert hub.go_live(reader)
    return reader


@pytest.fixture
def hub() -> Hub:
    hub = Hub(1)
    hub.start(0, place(10))
    return hub


# The ring


def ring_of(*numbers: int) -> Ring:
    """A ring whose first entry is the one after the first number."""
    ring = Ring(0, place(numbers[0]))
    if numbers[1:]:
        ring.extend(events(*numbers[1:]))
    return ring


FOUND = {
    "its base": (place(10), 10),
    "an entry": (place(12), 12),
    "its last entry": (place(14), 14),
    "just before an entry": (Place("e", place(13).ms, 12), 12),
    "just before its first entry": (Place("e", place(11).ms, 10), 10),
    "just before its last entry": (Place("e", place(14).ms, 13), 13),
    "older than its base": (place(9), None),
    "later than its last": (place(15), None),
    "another epoch's": (place(12, "f"), None),
    "another epoch's base": (place(10, "f"), None),
    "the right number at another time": (Place("e", 5, 12), None),
    "a time before its last, and its number": (Place("e", place(14).ms + 1, 14), None),
    "the earliest": (EARLIEST, None),
}


@pytest.mark.parametrize(("at", "s"), FOUND.values(), ids=FOUND)
def test_a_ring_finds_only_places_that_are_its_own(at: Place, s: int | None) -> None:
    assert ring_of(10, 11, 12, 13, 14).find(at) == s


def test_an_empty_ring_finds_its_base_alone() -> None:
    ring = ring_of(10)
    assert ring.find(place(10)) == 10
    assert ring.find(place(9)) is None
    assert ring.find(Place("e", 999, 9)) is None


def test_a_ring_gives_what_is_after_a_place_and_between_two() -> None:
    ring = ring_of(10, 11, 12, 13, 14)
    assert [one.place.s for one in ring.after(12)] == [13, 14]
    assert [one.place.s for one in ring.after(10)] == [11, 12, 13, 14]
    assert ring.after(14) == []
    assert [one.place.s for one in ring.between(11, 13)] == [12, 13]


def test_a_ring_that_starts_again_holds_nothing() -> None:
    ring = ring_of(10, 11)
    ring.restart(place(20, "f"))
    assert (ring.place, ring.base, ring.events, ring.bytes) == (place(20, "f"), place(20, "f"), [], 0)


@given(st.lists(st.integers(1, 7), max_size=30), st.data())
def test_a_ring_is_bounded_and_dense(batches: list[int], data: st.DataObject) -> None:
    """Whatever was trimmed, an entry is found exactly if it is still there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hubs, "RING_EVENTS_MAX", 5)
        ring, s = Ring(0, place(10)), 10
        for size in batches:
            ring.extend(events(*range(s + 1, s + 1 + size)))
            s += size
            assert len(ring.events) <= 2 * 5
            assert ring.bytes == sum(len(one.data) for one in ring.events)
        assert [one.place.s for one in ring.events] == list(range(ring.base.s + 1, s + 1))
        asked = data.draw(st.integers(5, s + 5))
        assert ring.find(place(asked)) == (asked if ring.base.s <= asked <= s else None)


def test_a_ring_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "RING_BYTES_MAX", 1000)
    ring = Ring(0, place(0))
    for s in range(1, 100):
        ring.extend([event(s, data=b"x" * 100)])
        assert ring.bytes <= 1000
    ring.extend([event(100, data=b"x" * 5000)])  # larger than the ring by itself: kept until the next
    ring.extend([event(101, data=b"x"), event(102, data=b"x")])
    assert ring.place == place(102)
    assert ring.find(place(102)) == 102


# Live and behind


def test_a_reader_joins_behind_and_gets_nothing(hub: Hub) -> None:
    client = Client()
    join(hub, client)
    hub.advance(0, events(11))
    assert client.got == []
    assert (hub.statistics().readers, hub.statistics().behind) == (1, 1)


def test_a_reader_becomes_live_only_at_the_hubs_place(hub: Hub) -> None:
    client = Client()
    reader = join(hub, client)
    for other in (place(9), place(11), place(10, "f"), EARLIEST):  # behind, ahead, of another life, at the beginning
        reader.places = {0: other}
        assert not hub.go_live(reader)
    reader.places = {0: place(10)}
    assert hub.go_live(reader)
    assert hub.statistics().behind == 0
    hub.advance(0, events(11, 12))
    assert client.numbers() == [11, 12]


def test_a_reader_over_shards_is_live_only_if_its_place_is_the_hubs_in_each() -> None:
    hub = Hub(2)
    hub.start(0, place(10))
    hub.start(1, place(20, "f"))
    reader = join(hub, Client(), T, U, shard=lambda topic: int(topic == U))
    reader.places = {0: place(10), 1: place(19, "f")}
    assert not hub.go_live(reader)
    reader.places = {0: place(10), 1: place(20, "f")}
    assert hub.go_live(reader)


def test_a_batch_is_pushed_once_to_each_live_reader(hub: Hub) -> None:
    clients = [Client() for _ in range(3)]
    for client in clients:
        live(hub, client)
    assert hub.advance(0, events(11, 12, 13)) == []
    assert [client.numbers() for client in clients] == [[11, 12, 13]] * 3
    assert [client.pushes for client in clients] == [1, 1, 1]
    assert hub.statistics().deliveries == 9
    assert hub.statistics().events == 3


def test_topics_of_a_stream_come_in_the_journals_order(hub: Hub) -> None:
    client, other = Client(), Client()
    live(hub, client, U, T)
    live(hub, other, V)
    hub.advance(0, [event(11, U), event(12, T), event(13, V), event(14, U)])
    assert [block.json()["topic"] for block in client.got] == [U, T, U]
    assert client.numbers() == [11, 12, 14]
    assert other.numbers() == [13]


def test_a_filter_hides_events_but_not_their_numbers(hub: Hub) -> None:
    client = Client()
    reader = live(hub, client, names=frozenset({"wanted"}))
    hub.advance(0, [event(11, n=1), event(12, n=2, name="wanted"), event(13, n=3)])
    assert client.numbers() == [12]
    assert reader.audience.n == 3
    hub.advance(0, [event(14, n=4)])
    assert client.pushes == 1


def test_who_gets_the_same_bytes_is_one_audience(hub: Hub) -> None:
    readers = [live(hub, Client(), T, U), live(hub, Client(), U, T), live(hub, Client(), T, U, names=frozenset({"x"}))]
    assert readers[0].audience is readers[1].audience
    assert readers[0].audience is not readers[2].audience
    assert (hub.statistics().audiences, hub.statistics().topics) == (2, 2)


def test_what_readers_leave_behind_is_nothing(hub: Hub) -> None:
    readers = [live(hub, Client()), join(hub, Client()), live(hub, Client(), T, U)]
    for reader in readers:
        hub.remove(reader)
    assert (hub.statistics().readers, hub.statistics().behind, hub.statistics().audiences, hub.statistics().topics) == (0, 0, 0, 0)
    hub.advance(0, events(11))


# Sends that don't finish


def test_a_reader_whose_send_does_not_finish_is_behind(hub: Hub) -> None:
    slow, quick = Client(), Client()
    reader = live(hub, slow)
    live(hub, quick)
    told: list[Reader] = []
    hub.catch_up = told.append
    slow.full = True
    assert hub.advance(0, events(11)) == [reader]
    assert told == [reader]
    assert (reader.live, reader.places, reader.sending) == (False, {0: place(11)}, slow.under_way)
    hub.advance(0, events(12, 13))
    assert slow.numbers() == [11]
    assert quick.numbers() == [11, 12, 13]


def test_a_reader_that_was_slow_goes_on_from_its_own_place(hub: Hub) -> None:
    slow = Client()
    reader = live(hub, slow)
    slow.full = True
    hub.advance(0, events(11))
    hub.advance(0, events(12, 13))
    slow.full = False
    assert slow.under_way
    slow.under_way.done = True
    assert not hub.go_live(reader)
    ring = hub.rings[0]
    assert reader.places
    s = ring.find(reader.places[0])
    assert s == 11
    slow.send(hubs.body(reader.audience.chunk_after(s, ring)))
    reader.places = {0: ring.place}
    assert hub.go_live(reader)
    hub.advance(0, events(14))
    assert slow.numbers() == [11, 12, 13, 14]


def test_a_send_is_stepped_once_and_then_left_alone() -> None:
    client = Client()
    assert push(client.send, hubs.body(b": x\n\n")) is None
    client.full = True
    assert push(client.send, hubs.body(b": x\n\n")) is client.under_way


def test_a_coroutine_will_do_as_a_send() -> None:
    async def send(message: Any) -> None:
        return None

    assert push(send, hubs.body(b"")) is None


# Chunks for those behind


def test_a_chunk_reaches_back_before_there_was_its_audience(hub: Hub) -> None:
    hub.advance(0, [event(11), event(12, U), event(13)])
    client = Client()
    reader = join(hub, client)
    client.got += Parser().feed(reader.audience.chunk_after(10, hub.rings[0]))
    assert client.numbers() == [11, 13]
    hub.advance(0, [event(14)])
    assert [block.last_event_id for block in Parser().feed(reader.audience.chunk_after(11, hub.rings[0]))] == [
        event(13).cursor(0),
        event(14).cursor(0),
    ]


def test_a_chunk_is_made_once_for_all_who_ask(hub: Hub) -> None:
    reader = join(hub, Client())
    hub.advance(0, events(11, 12))
    assert reader.audience.chunk_after(10, hub.rings[0]) is reader.audience.chunk_after(10, hub.rings[0])
    assert reader.audience.chunk_after(12, hub.rings[0]) == b""


@given(st.lists(st.lists(st.sampled_from([T, U, V]), min_size=1, max_size=4), min_size=1, max_size=8), st.data())
def test_however_batches_and_joins_interleave_each_reader_gets_its_topics_once(batches: list[list[str]], data: st.DataObject) -> None:
    """Readers join at any step with full channels or empty ones, and take what they missed from the ring."""
    hub, s = Hub(1), 10
    hub.start(0, place(s))
    written: list[Event] = []
    readers: list[tuple[Client, Reader, int]] = []
    for batch in batches:
        if data.draw(st.booleans()):
            client = Client()
            readers.append((client, live(hub, client, *data.draw(st.sampled_from([(T,), (T, U)]))), s))
        for client, _, _ in readers:
            client.full = data.draw(st.booleans())
        new = [event(s + 1 + index, topic) for index, topic in enumerate(batch)]
        hub.advance(0, new)
        written += new
        s += len(new)
        for client, reader, _ in readers:
            if not reader.live and data.draw(st.booleans()):
                catch_up(hub, client, reader)
    for client, reader, joined in readers:
        if not reader.live:
            catch_up(hub, client, reader)
        expected = [one.place.s for one in written if one.place.s > joined and one.topic in reader.audience.topics]
        assert client.numbers() == expected


def catch_up(hub: Hub, client: Client, reader: Reader) -> None:
    client.full = False
    if client.under_way:
        client.under_way.done = True
    ring = hub.rings[0]
    assert reader.places
    s = ring.find(reader.places[0])
    assert s is not None
    client.send(hubs.body(reader.audience.chunk_after(s, ring)))
    reader.places = {0: ring.place}
    assert hub.go_live(reader)


# Restarts


def test_after_a_restart_every_reader_is_behind_at_the_place_that_it_had(hub: Hub) -> None:
    client = Client()
    reader = live(hub, client)
    hub.advance(0, events(11))
    told: list[Reader] = []
    hub.catch_up = told.append
    hub.restart(0, place(3, "f"))
    assert told == [reader]
    assert (reader.live, reader.places) == (False, {0: place(11)})
    assert hub.rings[0].place == place(3, "f")
    hub.advance(0, [event(4, epoch="f")])
    assert client.numbers() == [11]
    assert not hub.go_live(reader)


def test_a_reader_of_several_topics_has_no_number() -> None:
    """Where a shard has one of its topics only, a number would be taken for that topic's."""
    hub = Hub(2)
    for shard in (0, 1):
        hub.start(shard, place(10))
    reader = join(hub, Client(), T, U, shard=lambda topic: int(topic == U))
    reader.places = hub.places(reader.audience)
    assert hub.go_live(reader)
    hub.advance(0, [event(11, T, n=7)])
    hub.restart(1, place(20))
    assert not reader.live
    assert reader.n is None


def test_a_restart_of_one_shard_leaves_the_others_readers_alone() -> None:
    hub = Hub(2)
    hub.start(0, place(10))
    hub.start(1, place(20))
    reader = join(hub, Client())
    reader.places = {0: place(10)}
    assert hub.go_live(reader)
    hub.restart(1, place(3, "f"))
    assert reader.live


def test_a_hub_is_ready_once_every_shard_is_known() -> None:
    hub = Hub(2)
    assert not hub.ready
    hub.start(1, place(1))
    assert not hub.ready
    hub.start(0, place(1))
    assert hub.ready


# Who waits


@pytest.mark.anyio
async def test_each_step_of_a_tail_wakes_those_who_wait_for_it(hub: Hub) -> None:
    for step in (lambda: hub.idle(0), lambda: hub.advance(0, events(11)), lambda: hub.restart(0, place(11))):
        moved = hub.moved
        waiting = asyncio.create_task(moved.wait())
        step()
        async with asyncio.timeout(LIMIT_S):
            await waiting
        assert hub.moved is not moved


def test_a_poll_is_woken_by_its_topics_alone(hub: Hub) -> None:
    waiting, other = hub.watch([T, U]), hub.watch([V])
    hub.advance(0, [event(11, U)])
    assert (waiting.is_set(), other.is_set()) == (True, False)
    hub.restart(0, place(3, "f"))
    assert other.is_set()


def test_a_poll_that_has_ended_leaves_nothing_behind(hub: Hub) -> None:
    first, second = hub.watch([T, U]), hub.watch([T])
    hub.unwatch([T, U], first)
    hub.advance(0, events(11))
    assert (first.is_set(), second.is_set()) == (False, True)
    hub.unwatch([T], second)
    assert not hub._waiting


def test_the_busiest_topics_come_first(hub: Hub) -> None:
    for topics in ((T,), (T, U), (T, U, V)):
        live(hub, Client(), *topics)
    assert hub.busiest(2) == [{"topic": T, "connections": 3}, {"topic": U, "connections": 2}]


# What is sealed


def test_a_sealed_chunk_is_one_for_all_and_made_anew_in_the_next_turn() -> None:
    now_s = [3600 * 100.0]
    sealer = Sealer(Keyring((SEAL_KEY,)), 300, lambda: now_s[0])
    hub = Hub(1, Versions(sealer))
    hub.start(0, place(10))
    clients = [Client() for _ in range(3)]
    readers = [
        hub.join((T,), names, "v2", IDENTITY, client.send, lambda _: 0)
        for client, names in zip(clients, [None, None, frozenset({"update"})], strict=True)
    ]
    for reader in readers:
        reader.places = hub.places(reader.audience)
        assert hub.go_live(reader)
    hub.advance(0, events(11, 12))
    live = [[block.data for block in client.got] for client in clients]
    assert live[0] == live[1] == live[2]
    assert sealer.sealed == 2

    audience, ring = readers[0].audience, hub.rings[0]
    assert [block.data for block in Parser().feed(audience.chunk_after(10, ring))] == live[0]
    now_s[0] += 150
    anew = [block.data for block in Parser().feed(audience.chunk_after(10, ring))]
    assert len(anew) == 2
    assert not set(anew) & set(live[0])
    hub.advance(0, events(13))
    assert [block.data for block in Parser().feed(audience.chunk_after(10, ring))][:2] == anew
    assert len(clients[0].got) == 3


# What is compressed


@pytest.mark.parametrize("topics", [(T,), (T, U)], ids=["one topic", "two"])
@pytest.mark.parametrize("shards", [1, 2])
def test_readers_of_one_coding_get_one_chunk_that_was_compressed_once(topics: tuple[str, ...], shards: int) -> None:
    compressed: list[bytes] = []

    def compress(chunk: bytes) -> bytes:
        compressed.append(chunk)
        return zlib.compress(chunk)

    coding = Coding("counted", b"", compress, zlib.compress, zlib.compress)
    hub = Hub(shards)
    for shard in range(shards):
        hub.start(shard, place(10))
    got: list[list[dict[str, Any]]] = [[] for _ in range(3)]

    def send_to(bodies: list[dict[str, Any]]) -> Callable[[Any], Sending]:
        def send(message: Any) -> Sending:
            bodies.append(message)
            return Sending(True)

        return send

    for bodies in got:
        reader = hub.join(topics, None, "v1", coding, send_to(bodies), lambda name: [T, U].index(name) % shards)
        reader.places = hub.places(reader.audience)
        assert hub.go_live(reader)
    hub.advance(0, events(11, 12))
    assert [len(bodies) for bodies in got] == [1, 1, 1]
    assert got[0][0] is got[1][0] is got[2][0]
    assert [zlib.decompress(got[0][0]["body"])] == compressed
    assert len(Parser().feed(compressed[0])) == 2

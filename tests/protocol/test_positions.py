"""How a client may say where it goes on, and which of several ways counts."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.servers import Relay, Valkey, topic
from tests.streams import open_stream

pytestmark = pytest.mark.anyio

QUERY_NAMES = ("last_event_id", "lastEventId", "lastEventID", "cursor")
NOT_OURS = "nosuchlog.1795486597000-90117"
MALFORMED = "1795486597000-0"


async def publish(client: httpx.AsyncClient, name: str, count: int) -> list[str]:
    """The ids of new events, whose data is their number."""
    items = [{"topic": name, "data": number} for number in range(1, count + 1)]
    answer = await client.post("/stream/publish", json=items)
    return [item["id"] for item in answer.raise_for_status().json()["results"]]


async def read(client: httpx.AsyncClient, kind: str, name: str, query: str, headers: dict[str, str]) -> tuple[str, list[Any]]:
    """What a reader is told first: the verdict, and three events at most."""
    url = f"/stream/{name}/v1/{kind}?{query}"
    if kind == "poll":
        page = (await client.get(url, headers=headers)).raise_for_status().json()
        return page["resume"], [event["data"] for event in page["events"][:3]]
    async with open_stream(client, url, headers=headers) as stream:
        hello = await stream.next()
        blocks: list[Any] = []
        while len(blocks) < 3:
            block = await stream.next()
            if block.name == "update":
                blocks.append(block.json())
        return hello.json()["resume"], blocks


@pytest.mark.parametrize("kind", ["live", "poll"])
@pytest.mark.parametrize("name", ["Last-Event-ID", *QUERY_NAMES])
async def test_a_position_may_have_each_of_these_names(client: httpx.AsyncClient, kind: str, name: str) -> None:
    here = topic()
    ids = await publish(client, here, 5)
    position = {name: ids[1]}
    query = "" if name == "Last-Event-ID" else str(httpx.QueryParams(position))
    assert await read(client, kind, here, query, {} if query else position) == ("exact", [3, 4, 5])


@pytest.mark.parametrize("kind", ["live", "poll"])
@pytest.mark.parametrize(
    ("header", "query"),
    [
        ("{2}", "last_event_id={1}&cursor={0}"),
        ("{2}", "cursor=earliest"),
        ("{2}", "cursor=now"),
        ("{2}", "k=1"),
        ("{2}", "last_event_id=rubbish"),
        ("", "last_event_id={2}&lastEventId={1}&lastEventID={1}&cursor={1}"),
        ("", "lastEventId={2}&lastEventID={1}&cursor=earliest"),
        ("", "lastEventID={2}&cursor={1}"),
        ("", "last_event_id=&lastEventId=&cursor={2}"),
        ("", "cursor={2}&k=1"),
    ],
)
async def test_of_several_positions_the_first_that_is_not_empty_counts(
    client: httpx.AsyncClient, kind: str, header: str, query: str
) -> None:
    here = topic()
    ids = await publish(client, here, 6)
    headers = {"last-event-id": header.format(*ids)} if header else {}
    assert await read(client, kind, here, query.format(*ids), headers) == ("exact", [4, 5, 6])


@pytest.mark.parametrize("kind", ["live", "poll"])
@pytest.mark.parametrize("name", QUERY_NAMES)
async def test_a_malformed_position_in_the_query_is_refused(client: httpx.AsyncClient, kind: str, name: str) -> None:
    answer = await client.get(f"/stream/{topic()}/v1/{kind}?{name}={MALFORMED}")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_cursor")


@pytest.mark.parametrize("kind", ["live", "poll"])
@pytest.mark.parametrize("position", [MALFORMED, NOT_OURS, "\x80\xff", "x" * 600])
async def test_a_header_that_is_none_of_our_positions_is_a_reset(client: httpx.AsyncClient, kind: str, position: str) -> None:
    """A 400 would end an EventSource for good."""
    here = topic()
    await publish(client, here, 3)
    headers: Any = {"last-event-id": position.encode("latin-1")}
    assert await read(client, kind, here, "", headers) == ("reset", [1, 2, 3])


@pytest.mark.parametrize("kind", ["live", "poll"])
@pytest.mark.parametrize("name", QUERY_NAMES)
async def test_a_position_of_another_log_in_the_query_is_a_reset(client: httpx.AsyncClient, kind: str, name: str) -> None:
    here = topic()
    await publish(client, here, 3)
    assert await read(client, kind, here, f"{name}={NOT_OURS}", {}) == ("reset", [1, 2, 3])


async def test_a_place_ahead_of_the_log_is_a_reset(client: httpx.AsyncClient) -> None:
    """As after a failover to a replica that lacked the last events."""
    here = topic()
    epoch, _, rest = (await publish(client, here, 3))[-1].partition(".")
    ms = int(rest.partition("-")[0])
    for kind in ("live", "poll"):
        assert await read(client, kind, here, "", {"last-event-id": f"{epoch}.{ms + 1000}-999999999"}) == ("reset", [1, 2, 3])


async def test_a_refusal_gives_the_position_back(tmp_path: Path, valkey: Valkey, client: httpx.AsyncClient) -> None:
    """Some clients take the first block's id for theirs even where it has none, and would come back with nothing."""
    here, there = topic(), topic()
    ids = await publish(client, here, 3)
    full = Relay(tmp_path, valkey.url, {"RELAY_MAX_STREAMS": "1"})
    try:
        full.start()
        async with open_stream(client, f"{full.url}/stream/{here}/v1/live") as held:
            await held.next()
            for query, headers, expected in (
                ("", {"last-event-id": ids[1]}, ids[1]),
                (f"?cursor={ids[1]}", {}, ids[1]),
                ("?cursor=earliest", {}, "0.0-0"),
                ("", {}, ""),
                ("", {"last-event-id": "rubbish"}, ""),
            ):
                async with open_stream(client, f"{full.url}/stream/{here}/v1/live{query}", headers=headers) as stream:
                    (bye,) = await stream.rest()
                    assert (bye.name, bye.json()["reason"], bye.last_event_id) == ("bye", "busy", expected)
            url = f"{full.url}/stream/v1/live?topic={here}&topic={there}"
            async with open_stream(client, url, headers={"last-event-id": ids[1]}) as stream:
                (bye,) = await stream.rest()
        assert await read(client, "poll", here, f"cursor={bye.last_event_id}", {}) == ("exact", [3])
    finally:
        if full.process:
            full.kill()

"""Python, with httpx-sse: prints what a topic tells, one JSON line for each event.

    RELAY_TOKEN=… python follow.py https://relay.example.com/stream/rounds/ROULETTE/123/v1/live

httpx-sse leaves it to its user to connect again. To go on after a restart, keep the last id.
"""

import json
import os
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
from httpx_sse import connect_sse

SILENCE_S = 40  # two heartbeats and a half: the connection is dead


def follow(url: str, token: str, last_id: str = "") -> Iterator[tuple[str, str, Any]]:
    """Each event's name, id and data, for ever. Raises httpx.HTTPStatusError for what is final: no token, not granted."""
    retry_s = 3.0
    with httpx.Client(timeout=httpx.Timeout(10, read=SILENCE_S)) as client:
        while True:
            headers = {"authorization": f"Bearer {token}"} | ({"last-event-id": last_id} if last_id else {})
            try:
                with connect_sse(client, "GET", url, headers=headers) as source:
                    if source.response.status_code < 500:  # of a proxy, while the relay is away
                        source.response.raise_for_status()
                    for event in source.iter_sse():
                        retry_s = event.retry / 1000 if event.retry else retry_s
                        if event.data:
                            yield event.event, event.id, event.json()
                        last_id = event.id  # only now: whoever stops before it has dealt with an event gets it again
            except httpx.TransportError:
                pass
            time.sleep(retry_s * random.uniform(1, 1.5))


if __name__ == "__main__":
    for name, id, data in follow(sys.argv[1], os.environ["RELAY_TOKEN"]):
        print(json.dumps({"name": name, "id": id, "data": data}), flush=True)

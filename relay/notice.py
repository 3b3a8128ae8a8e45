"""What processes tell each other through the log: that something was revoked, or that a subscription has changed.

A notice is an event like any other, in shard 0's journal, on a topic that nobody can name: so it reaches every process by its
tail, in order, and every rule of the log holds for it without a word about it.
"""

from collections.abc import Sequence

import msgspec

from relay.denial import Denial
from relay.event import Event

TOPIC = "notices"  # of one part, which no topic has
SHARD = 0


class Denied(msgspec.Struct, frozen=True, tag="denied"):
    denial: Denial
    since_s: float


class Undone(msgspec.Struct, frozen=True, tag="undone"):
    denial: Denial


class SubscriptionChanged(msgspec.Struct, frozen=True, tag="subscription"):
    sub: str


Notice = Denied | Undone | SubscriptionChanged

DECODER: msgspec.json.Decoder[Notice] = msgspec.json.Decoder(Notice)


def parse_notices(events: Sequence[Event]) -> list[Notice]:
    """The notices among events. What a later version says, this one can't understand."""
    found = []
    for event in events:
        if event.topic == TOPIC:
            try:
                found.append(DECODER.decode(event.data))
            except msgspec.MsgspecError:
                continue
    return found

"""Events sealed: what is inside a seal, and each event sealed once for all who get it.

A seal authenticates itself alone, so the envelope says which event it is: a client compares id, topic, number and `sealed_at` with
what it asked for, and refuses a foreign, older or stale one, which somebody between could have put there.

Seals are made when they are sent, also for what is read again from the log, and never stored: a client that resumes an hour later
would find them expired. **Turns**: time is cut at each half of a seal's life and at each new epoch of keys, and at each cut everything
that was sealed is forgotten. So what is sent is never older than half its life, and whoever keeps sealed bytes (the audiences of
`relay.hub`) only has to compare turns.

**Compression** comes before the seal, since nothing makes a seal much smaller. Then `data` is a string, base64url of the JSON text as raw
deflate (RFC 1951), and `compression` says so.
"""

import zlib
from collections.abc import Callable

from relay.cursor import Place
from relay.event import Event
from relay.keys import Keyring
from relay.seal import write_base64

SEALED_EVENTS_MAX = 20_000
SEALED_BYTES_MAX = 32 << 20
COMPRESSED_MIN_BYTES = 1000  # less is sealed as it is
COMPRESSION_LEVEL = 4  # of zlib's 9
WORTH_IT = 0.75  # compressed data that takes more of its room is sealed as it is


def envelope(event: Event, shard: int, sealed_ms: int, *, compresses: bool) -> bytes:
    """Topics, names and cursors hold no character that JSON escapes."""
    head = f'{{"id":"{event.cursor(shard)}","topic":"{event.topic}","n":{event.n},"event":"{event.name}","ts":{event.ts}'.encode()
    data = event.data
    if compresses and len(data) >= COMPRESSED_MIN_BYTES:
        compressed = write_base64(zlib.compress(data, COMPRESSION_LEVEL, wbits=-zlib.MAX_WBITS)).encode()
        if len(compressed) <= WORTH_IT * len(data):
            return b'%b,"sealed_at":%d,"compression":"deflate-raw","data":"%b"}' % (head, sealed_ms, compressed)
    return b'%b,"sealed_at":%d,"data":%b}' % (head, sealed_ms, data)


class Sealer:
    """Of one process."""

    def __init__(self, keyring: Keyring, ttl_s: int, clock: Callable[[], float], *, compresses: bool = False) -> None:
        self.keyring = keyring
        self.compresses = compresses
        self.ttl_ms = ttl_s * 1000
        self.sealed = 0  # how many seals it has made
        self._clock = clock
        self._turn = (0, 0)
        self._seals: dict[tuple[int, Place], bytes] = {}
        self._bytes = 0

    def turn(self) -> tuple[int, int]:
        """What was sealed in another turn isn't to be sent any more."""
        return self._turn_at(int(self._clock() * 1000))

    def _turn_at(self, now_ms: int) -> tuple[int, int]:
        turn = 2 * now_ms // self.ttl_ms, self.keyring.epoch(now_ms)
        if turn != self._turn:
            self._turn = turn
            self._seals.clear()
            self._bytes = 0
        return turn

    def seal(self, event: Event, shard: int) -> bytes:
        now_ms = int(self._clock() * 1000)
        self._turn_at(now_ms)
        known = self._seals.get((shard, event.place))
        if known is not None:
            return known
        made = self.keyring.sealing(event.topic, now_ms).seal(
            envelope(event, shard, now_ms, compresses=self.compresses), now_ms + self.ttl_ms
        )
        self.sealed += 1
        self._seals[shard, event.place] = made
        self._bytes += len(made)
        while len(self._seals) > SEALED_EVENTS_MAX or self._bytes > SEALED_BYTES_MAX:
            oldest = next(iter(self._seals))
            self._bytes -= len(self._seals.pop(oldest))
        return made

"""What is remembered of a source, in Valkey, for whichever process looks at it next.

    {relay:0}:place:<name>   where to go on: it only saves work
    {relay:0}:seen:<name>    hash: digests of the items that are in the log, and since when the upstream no longer shows them
    {relay:0}:sources        hash: each source's status

An idempotency key is forgotten after a while, and an upstream may show an item for longer: so what was seen is remembered for as
long as it is shown. It is remembered for a while more, since an upstream that shows nothing at all for a moment would otherwise have
all of it appended again when it is back. It is written after the append; until then the idempotency key tells an item that is
there already.
"""

import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec

from relay.errors import Fenced
from relay.lease import Fence, lease_key
from relay.servers import Servers, load_script
from relay.updates.feed import SEEN_MAX

REMEMBER = load_script("remember", "relay.updates")
CHANGES_MAX = 2000  # a call
SEEN_LIFE_MS = 30 * 86_400_000  # from the last look: a source that isn't watched any more leaves nothing behind for ever
STATUS_LIFE_MS = 86_400_000
SHOWN, FORGOTTEN = 0, -1


class Progress(msgspec.Struct):
    """How a source does. Counts go on over restarts; an item counts at each look that shows it anew."""

    name: str
    kind: str
    leader: str = ""  # who looked at it last
    last_look: int | None = None  # ms since 1970
    last_success: int | None = None
    items_seen: int = 0
    appended: int = 0
    duplicates: int = 0  # were in the log already, under their key
    skipped: int = 0  # couldn't become events
    errors: int = 0  # looks that failed
    error: str | None = None  # why the last look failed, if it did
    interval_ms: int = 0


class Memory:
    """What is remembered of one source, while this process looks at it."""

    def __init__(self, servers: Servers, name: str) -> None:
        self._servers, self._name = servers, name
        self.place: str | None = None
        self.seen: dict[bytes, int] = {}  # SHOWN, or since when it isn't, in s since 1970
        self.progress: Progress | None = None
        self._unsaved: dict[bytes, int] = {}

    async def load(self) -> None:
        """Raises LogUnavailable. After the fence was raised: what an earlier holder wrote is all there."""
        async with self._servers.of(0) as server:
            place, seen, status = await server.call_many(
                [("GET", place_key(self._name)), ("HGETALL", seen_key(self._name)), ("HGET", STATUS_KEY, self._name)]
            )
        self.place = place.decode() if place is not None else None
        self.seen = {digest: int(since) for digest, since in pairs(seen)}
        self.progress = decode_progress(status)
        self._unsaved = {}

    def shows(self, shown: Collection[bytes]) -> None:
        """These are shown, and in the log."""
        for digest in shown:
            if self.seen.get(digest) != SHOWN:
                self._set(digest, SHOWN)

    def shows_only(self, shown: Collection[bytes], grace_s: float) -> None:
        """These are shown, and no others: those are forgotten after the time of grace, or when there are too many."""
        now_s = int(time.time())
        self.shows(shown)
        for digest, since in list(self.seen.items()):
            if digest in shown:
                continue
            if since == SHOWN and grace_s:
                self._set(digest, now_s)
            elif since == SHOWN or now_s - since > grace_s:
                self._forget(digest)
        if len(self.seen) > SEEN_MAX:
            hidden = sorted((since, digest) for digest, since in self.seen.items() if since != SHOWN)
            for _, digest in hidden[: len(self.seen) - SEEN_MAX]:
                self._forget(digest)

    def _set(self, digest: bytes, since: int) -> None:
        self.seen[digest] = self._unsaved[digest] = since

    def _forget(self, digest: bytes) -> None:
        self.seen.pop(digest, None)
        self._unsaved[digest] = FORGOTTEN

    async def save(self, fence: Fence, progress: Progress) -> None:
        """Raises LogUnavailable, and then the same call repeated does no harm; Fenced if another process looks at it now."""
        status = msgspec.json.encode(progress)
        for part in parts(self._unsaved):
            place = self.place or "" if len(part) == len(self._unsaved) else ""  # with the last part: then all before it is in
            arguments: list[str | int | bytes] = [fence.field, fence.value, self._name, place, status, SEEN_LIFE_MS]
            for digest, since in part.items():
                arguments += [digest, since]
            keys = ["{relay:0}:shard", place_key(self._name), seen_key(self._name), STATUS_KEY]
            async with self._servers.of(0) as server:
                if not await REMEMBER.call(server, keys, arguments):
                    raise Fenced(f"another process looks at {self._name} now")
            for digest in part:
                del self._unsaved[digest]


def parts(changes: Mapping[bytes, int]) -> Iterator[dict[bytes, int]]:
    """At least one. Those that are yielded are removed from the mapping by whoever takes them."""
    while True:
        part = dict(list(changes.items())[:CHANGES_MAX])
        last = len(part) == len(changes)
        yield part
        if last:
            return


async def read_status(servers: Servers) -> list[dict[str, Any]]:
    """Each source that was looked at within a day, as whoever does so wrote it, and who leads now. Raises LogUnavailable."""
    now_ms = time.time_ns() // 1_000_000
    async with servers.of(0) as server:
        found = [decode_progress(status) for _, status in pairs(await server.call("HGETALL", STATUS_KEY))]
        known = [progress for progress in found if progress and now_ms - (progress.last_look or 0) < STATUS_LIFE_MS]
        leaders = await server.call("MGET", *(lease_key(progress.name) for progress in known)) if known else []
    told = []
    for progress, leader in sorted(zip(known, leaders, strict=True), key=lambda pair: pair[0].name):
        lag_ms = None if progress.last_success is None else max(0, now_ms - progress.last_success)
        told.append({**msgspec.structs.asdict(progress), "leader": leader.decode() if leader else None, "lag_ms": lag_ms})
    return told


def decode_progress(status: bytes | None) -> Progress | None:
    """None too where another version wrote something else."""
    try:
        return msgspec.json.decode(status or b"", type=Progress)
    except msgspec.DecodeError:
        return None


def pairs(flat: Any) -> Iterator[tuple[bytes, bytes]]:
    """A hash as the server answers it."""
    return iter(flat.items()) if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)


def place_key(name: str) -> str:
    return f"{{relay:0}}:place:{name}"


def seen_key(name: str) -> str:
    return f"{{relay:0}}:seen:{name}"


STATUS_KEY = "{relay:0}:sources"

"""How many streams and waiting polls a process holds, in all and for each who asks, and how many it begins in a second.

Who comes too fast is not only sent away, as by a token bucket, but told when to come: refusals hand out times which lie as far
apart as the limit allows. So a crowd of any size comes back at the pace that is served, each once, instead of meeting again
at the end of one interval and being refused a second and a third time. Nobody is kept waiting here, and nothing is kept
of whoever was told a time: it is taken by the next one who comes.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from relay.errors import TooMany

BUSY_S = (5.0, 15.0)  # when to try again where nobody knows when there will be room
SOONEST_S, LATEST_S = 1.0, 60.0  # of the times that are handed out


class Admission:
    def __init__(self, most: int, most_each: int, beginning: "Beginning | None" = None) -> None:
        self.most, self.most_each = most, most_each
        self.beginning = beginning
        self.held = 0
        self._each: Counter[str] = Counter()

    @contextmanager
    def hold(self, who: str) -> Iterator[None]:
        """A place for as long as the context lasts. Raises TooMany. `who` is a subject, or an address."""
        if self.held >= self.most:
            raise too_many("this relay holds as many streams as it may", f"RELAY_MAX_STREAMS={self.most}")
        if self._each[who] >= self.most_each:
            raise too_many(f"you hold {self.most_each} streams: close one first", f"RELAY_MAX_STREAMS_PER_SUB={self.most_each}")
        if self.beginning:
            self.beginning.check()
        self.held += 1
        self._each[who] += 1
        try:
            yield
        finally:
            self.held -= 1
            self._each[who] -= 1
            if not self._each[who]:
                del self._each[who]


def too_many(detail: str, limit: str) -> TooMany:
    return TooMany(detail, code="too_many_streams", retry_after_s=random.uniform(*BUSY_S), cause=f"{limit} is reached")


class Beginning:
    """Streams and waiting polls may begin `per_s` times in a second, and as many at once."""

    def __init__(self, per_s: int, clock: Callable[[], float]) -> None:
        self.per_s = per_s
        self._clock = clock
        self._due_s = -math.inf  # when the next may begin, by the limit alone; at most a second ago
        self._told_s = -math.inf  # the last time that was handed out

    def check(self) -> None:
        """Raises TooMany, with the time to come back."""
        now = self._clock()
        self._due_s = max(self._due_s, now - 1)
        if self._due_s < now - 0.5 / self.per_s:  # half a step: sums of fractions are not exact
            self._due_s += 1 / self.per_s
            return
        self._told_s = max(self._told_s, now + SOONEST_S) + 1 / self.per_s
        pause_s = self._told_s - now
        if pause_s > LATEST_S:
            self._told_s = now + LATEST_S
            pause_s = random.uniform(LATEST_S / 2, LATEST_S)
        raise TooMany(
            "more streams begin at once than this relay serves in a second: come back when it says",
            code="too_many_connects",
            retry_after_s=pause_s,
            cause=f"RELAY_CONNECTS_PER_SECOND={self.per_s} is reached",
        )

"""How many streams and waiting polls a process holds, in all and for each who asks."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from relay.errors import TooMany


class Admission:
    def __init__(self, most: int, most_each: int) -> None:
        self.most, self.most_each = most, most_each
        self.held = 0
        self._each: Counter[str] = Counter()

    @contextmanager
    def hold(self, who: str) -> Iterator[None]:
        """A place for as long as the context lasts. Raises TooMany. `who` is a subject, or an address."""
        if self.held >= self.most:
            raise TooMany("this relay holds as many streams as it may", code="too_many_streams", retry_after_s=10)
        if self._each[who] >= self.most_each:
            raise TooMany(f"you hold {self.most_each} streams: close one first", code="too_many_streams", retry_after_s=10)
        self.held += 1
        self._each[who] += 1
        try:
            yield
        finally:
            self.held -= 1
            self._each[who] -= 1
            if not self._each[who]:
                del self._each[who]

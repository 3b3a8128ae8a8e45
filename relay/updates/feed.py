"""What a look at an upstream gives, whatever its kind, and what may be wrong with it."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager

import msgspec

from relay.errors import RelayError
from relay.updates.sources import Source

ANSWER_BYTES_MAX = 16 << 20  # of one answer, unpacked
SEEN_MAX = 100_000  # items of a source that are remembered


class FeedError(RelayError):
    """An upstream that is down, slow or lying. It is looked at again later."""

    def __init__(self, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s  # not before then, as it asked itself


class Batch(msgspec.Struct, frozen=True):
    """Items that a look found, in the upstream's order."""

    items: Sequence[msgspec.Raw] = ()
    place: str | None = None  # where to go on once they are in the log; None: as before
    unchanged: bool = False  # what the last look found is still there, and nothing else
    pause_s: float | None = None  # until the next look, as the upstream asked


# From a place to all that is found from there on. It may go on for ever.
Look = Callable[[str | None], AsyncGenerator[Batch, None]]
# What opens a source for as long as this process looks at it.
Open = Callable[[Source], AbstractAsyncContextManager[Look]]

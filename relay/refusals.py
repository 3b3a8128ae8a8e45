"""Counts what is refused, and logs each cause of it when it comes up, then once a period with a number: never each client.

Only what is temporary is logged, since that is for the operator to look at. What is final (a bad token, say) is a client's own
matter, and a line about it would let whoever likes to fill a disk.
"""

import logging
import time
from collections.abc import Callable

from relay.errors import Problem

PERIOD_S = 10.0
CAUSES_MAX = 100
OTHERS = "other causes"  # what they all count as when there are more

logger = logging.getLogger("relay")


class Refusals:
    def __init__(self, count: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count  # by the problem's code
        self._clock = clock
        self._numbers: dict[str, int] = {}  # refused since the last line, by cause
        self._ends_s = clock() + PERIOD_S

    def refused(self, problem: Problem) -> None:
        self._count(problem.code)
        if not problem.temporary:
            return
        self.flush()
        cause = problem.cause
        if cause not in self._numbers and len(self._numbers) >= CAUSES_MAX:
            cause = OTHERS
        if cause in self._numbers:
            self._numbers[cause] += 1
        else:
            self._numbers[cause] = 0
            logger.warning("a request is refused: %s", cause)

    def flush(self) -> None:
        """Tells the numbers when a period is over. To be called now and then, else the last number waits for the next refusal."""
        now = self._clock()
        if now < self._ends_s:
            return
        self._ends_s = now + PERIOD_S
        for cause, number in list(self._numbers.items()):
            if number:
                logger.warning("%d more requests were refused: %s", number, cause)
                self._numbers[cause] = 0
            else:
                del self._numbers[cause]

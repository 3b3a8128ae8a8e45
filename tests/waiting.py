"""How tests wait: for a state, never for a time. The limit is there so that what hangs ends, however slow the machine is."""

import time
from collections.abc import Callable

LIMIT_S = 300.0  # a relay needs half a second of CPU to start, and a niced process on a busy machine gets a hundredth of a core
STEP_S = 0.02


def wait_for(what: str, is_so: Callable[[], object]) -> None:
    """Asks until it is so. For what a server does in its own time."""
    deadline = time.monotonic() + LIMIT_S
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {LIMIT_S:g} s: {what}")
        time.sleep(STEP_S)


def in_time(look: Callable[[float], bool]) -> None:
    """Has a look at what lasts for so many seconds, which must be long enough for the look: it says whether it was."""
    life_s = 1.0
    while not look(life_s):
        life_s *= 2
        assert life_s < LIMIT_S

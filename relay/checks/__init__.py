"""`relay check`: looks for what would hurt a relay in production, and says what to change."""

from typing import Literal

import msgspec

Level = Literal["ok", "warning", "error"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at. All but `ok` say why it matters and what to change."""

    level: Level
    about: str
    what: str
    why: str = ""
    fix: str = ""

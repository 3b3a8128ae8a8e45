"""What was found of one thing that was looked at; and what may be wrong with it, why that matters and what to change."""

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


class Fault(msgspec.Struct, frozen=True):
    """A line of a table: a finding whose words stand, with names in braces where the case's own facts go."""

    level: Level
    about: str
    what: str
    why: str
    fix: str

    def found(self, **facts: object) -> Finding:
        return Finding(self.level, self.about.format(**facts), self.what.format(**facts), self.why, self.fix.format(**facts))


def good(about: str, what: str) -> Finding:
    return Finding("ok", about, what)

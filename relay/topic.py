"""Topics, and the patterns that grant them.

A topic is `{collection}/{type}/{id}`: three parts of 1 to 128 characters of `A-Z a-z 0-9 . _ : -`, none of them `.` or
`..`. A pattern is written the same way, but `*` stands for one whole part and a last `**` for one part or more.
"""

import hashlib
import re
from functools import lru_cache
from itertools import product
from urllib.parse import unquote_to_bytes

import msgspec

from relay.errors import Malformed

PART = re.compile(r"[A-Za-z0-9._:-]{1,128}")
PARTS = 3
TAG_LENGTH = 4  # 36^4 tags: enough to notice that a cursor's number was counted on another topic


def is_part(text: str) -> bool:
    return PART.fullmatch(text) is not None and text not in (".", "..")


def parse_topic(text: str) -> str:
    """The topic, as written. Raises Malformed."""
    parts = text.split("/")
    if len(parts) != PARTS or not all(map(is_part, parts)):
        raise Malformed(
            f"{text[:400]!r} is not a topic: write collection/type/id, each part 1 to 128 of A-Z a-z 0-9 . _ : -",
            code="bad_topic",
        )
    return text


def decode_part(part: str) -> str:
    """A part of a path as it came over the wire: decoded once, after the path was split, so that `%2F` adds no part."""
    decoded = unquote_to_bytes(part)
    if b"/" in decoded:
        raise Malformed(f"{part[:400]!r} holds an encoded slash, which no topic has", code="bad_topic")
    return decoded.decode("utf-8", "replace")


@lru_cache(maxsize=10_000)
def tag_of(topic: str) -> str:
    """A short hash of the topic, which a single topic's cursor carries beside its number there."""
    number = int.from_bytes(hashlib.blake2s(topic.encode(), digest_size=8).digest(), "big")
    return base36(number)[-TAG_LENGTH:]


def base36(number: int) -> str:
    digits = ""
    while True:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
        if not number:
            return digits.rjust(TAG_LENGTH, "0")


def whole(pattern: tuple[str, ...]) -> tuple[str, ...]:
    """The same pattern with `*` for each part that a last `**` stands for."""
    heads = pattern[:-1] if pattern[-1] == "**" else pattern
    return heads + ("*",) * (PARTS - len(heads))


class Patterns(msgspec.Struct, frozen=True):
    """What a token grants, or what is public: patterns, split into their parts."""

    patterns: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def parse(cls, texts: list[str]) -> tuple["Patterns", list[str]]:
        """The valid patterns, and the texts that are none: those grant nothing, and the caller logs them."""
        split = {text: tuple(text.split("/")) for text in texts}
        valid = tuple(parts for parts in split.values() if is_pattern(parts))
        return cls(valid), [text for text, parts in split.items() if not is_pattern(parts)]

    def match(self, topic: str) -> bool:
        parts = tuple(topic.split("/"))
        return any(matches(pattern, parts) for pattern in self.patterns)

    def cover(self, pattern: tuple[str, ...]) -> bool:
        """Whether one of them grants all that this pattern does."""
        narrow = whole(pattern)
        return any(all(wide in ("*", part) for wide, part in zip(whole(own), narrow, strict=True)) for own in self.patterns)

    def texts(self) -> list[str]:
        return ["/".join(parts) for parts in self.patterns]


def is_pattern(parts: tuple[str, ...]) -> bool:
    *heads, last = parts
    if last == "**":
        return len(heads) < PARTS and all(part == "*" or is_part(part) for part in heads)
    return len(parts) == PARTS and all(part == "*" or is_part(part) for part in parts)


def matches(pattern: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    if pattern[-1] == "**":
        pattern = pattern[:-1]
        parts = parts[: len(pattern)]
    return all(want in ("*", part) for want, part in zip(pattern, parts, strict=True))


def patterns_of(topic: str) -> list[str]:
    """Every pattern that matches a topic."""
    parts = topic.split("/")
    choices = [(part, "*") for part in parts]
    whole = [*product(*choices)]
    rest = [(*heads, "**") for count in range(len(parts)) for heads in product(*choices[:count])]
    return ["/".join(pattern) for pattern in [*whole, *rest]]

"""An upstream's item: what it is, which revision of it, and the event that it becomes.

Its data stay what the upstream wrote, to the letter; they are decoded only to be looked at.
"""

import base64
import hashlib
import re
from typing import Any

import msgspec

from relay.errors import Malformed, RelayError
from relay.log import NewEvent
from relay.publishing import PublishError, new_event
from relay.topic import is_part, parse_topic

DIGEST_BYTES = 16
POINTER = re.compile(r"(/([^~/]|~[01])*)*")
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


class BadItem(RelayError):
    """An item that can't become an event; the others can."""


UNFIT = (BadItem, msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # what looking at such an item raises


class Pointer(msgspec.Struct, frozen=True):
    """A JSON Pointer (RFC 6901)."""

    text: str
    parts: tuple[str, ...]

    def find(self, value: Any) -> Any:
        """What it points to. Raises LookupError."""
        for part in self.parts:
            value = value[position(part)] if isinstance(value, list) else members(value)[part]
        return value

    def find_raw(self, raw: msgspec.Raw) -> msgspec.Raw:
        """The same in JSON text, as text. Raises LookupError."""
        for part in self.parts:
            if bytes(raw).lstrip()[:1] == b"[":
                raw = msgspec.json.decode(raw, type=list[msgspec.Raw])[position(part)]
            else:
                raw = members(msgspec.json.decode(raw, type=dict[str, msgspec.Raw] | str | float | bool | None))[part]
        return raw


def members(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise LookupError
    return value


def position(part: str) -> int:
    if not re.fullmatch(r"0|[1-9][0-9]{0,8}", part):
        raise LookupError
    return int(part)


def parse_pointer(text: str) -> Pointer:
    if not POINTER.fullmatch(text):
        raise ValueError(f"is no JSON Pointer: {text[:80]!r}; write /properties/updated, with ~1 for / and ~0 for ~ in a name")
    return Pointer(text, tuple(part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]))


class Template(msgspec.Struct, frozen=True):
    """Text with JSON Pointers in braces: `quakes/usgs/{/properties/net}`."""

    texts: tuple[str, ...]  # around and between the pointers
    pointers: tuple[Pointer, ...]

    @property
    def alone(self) -> bool:
        """Whether it is one pointer and nothing else, so that what is found there is the whole."""
        return self.texts == ("", "")

    def fill(self, value: Any) -> str:
        """Raises BadItem. What is found fills a part of a topic, never several, unless it is the whole."""
        filled = self.texts[0]
        for pointer, text in zip(self.pointers, self.texts[1:], strict=True):
            found = scalar(value, pointer)
            if found is None or found == "":
                raise BadItem(f"there is no text and no number at {pointer.text}")
            if not self.alone and not is_part(str(found)):
                raise BadItem(f"{str(found)[:80]!r} at {pointer.text} is no part of a topic: 1 to 128 of A-Z a-z 0-9 . _ : -")
            filled += str(found) + text
        return filled


def parse_template(text: str) -> Template:
    texts = PLACEHOLDER.split(text)
    pointers = tuple(parse_pointer(found) for found in texts[1::2])
    if any("{" in part or "}" in part for part in texts[::2]):
        raise ValueError(f"has a brace without its other one: {text[:80]!r}")
    return Template(tuple(texts[::2]), pointers)


def scalar(value: Any, pointer: Pointer) -> str | int | float | None:
    """The text or number that a pointer finds, else None."""
    try:
        found = pointer.find(value)
    except LookupError:
        return None
    return found if isinstance(found, str | int | float) and not isinstance(found, bool) else None


class Shape(msgspec.Struct, frozen=True):
    """How a source's items become events."""

    source: str
    topic: Template
    event: Template
    key: Pointer
    version: Pointer | None
    data: Pointer

    def identify(self, value: Any) -> bytes:
        """What tells this revision of this item from all others, of all sources. Raises BadItem."""
        key = scalar(value, self.key)
        if key is None or key == "":
            raise BadItem(f"there is no text and no number at {self.key.text}, its key")
        version = self.version and scalar(value, self.version)
        if self.version and version is None:
            raise BadItem(f"there is no text and no number at {self.version.text}, its version")
        return hashlib.blake2b(msgspec.json.encode([self.source, key, version]), digest_size=DIGEST_BYTES).digest()

    def event_of(self, raw: msgspec.Raw, value: Any, digest: bytes, max_bytes: int) -> NewEvent:
        """Raises BadItem."""
        try:
            topic = parse_topic(self.topic.fill(value))
            key = "job:" + base64.urlsafe_b64encode(digest).decode().rstrip("=")
            return new_event(topic, bytes(self.data.find_raw(raw)), self.event.fill(value), key, max_bytes)
        except LookupError as error:
            raise BadItem(f"there is nothing at {self.data.text}, its data") from error
        except (Malformed, PublishError) as error:
            raise BadItem(str(error)) from error

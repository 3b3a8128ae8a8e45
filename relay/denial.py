"""What was revoked: subjects, tokens and topics; and whether a token is among it.

A denial holds for tokens that were issued not later than it, so a new token is good again. One that doesn't say when it was
issued counts as old. Each denial has a name, and whoever asks looks up all names that could deny it: two for a token, and for a
topic one for each pattern that matches it. So it costs the same whatever was revoked before.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache

import msgspec

from relay.auth import NAME_CHARACTERS_MAX, Identity, is_name
from relay.errors import Forbidden, Unauthorized
from relay.topic import Patterns, is_pattern, patterns_of


class Denial(msgspec.Struct, frozen=True, omit_defaults=True):
    """A subject, a token by its `jti`, or topics by a pattern: for everybody, or for one subject."""

    sub: str = ""
    jti: str = ""
    topic: str = ""

    def mistake(self) -> str:
        """Why it denies nothing; empty if it does."""
        if bool(self.jti) + bool(self.topic or self.sub) != 1:
            return "name one of: sub, jti, topic; or topic and sub"
        if not all(map(is_name, filter(None, (self.sub, self.jti)))):
            return f"sub and jti have {NAME_CHARACTERS_MAX} characters at most"
        if self.topic and not is_pattern(tuple(self.topic.split("/"))):
            return f"{self.topic[:400]!r} is no pattern: write rounds/ROULETTE/*, rounds/** or **"
        return ""

    def name(self) -> str:
        # No pattern has a space, so no two denials have one name.
        return f"topic {self.topic} {self.sub}" if self.topic else f"jti {self.jti}" if self.jti else f"sub {self.sub}"

    def holds(self, since_s: float) -> Callable[[Identity, Iterable[str]], bool]:
        """Tells of tokens and their topics whether they are denied since then. For many: it looks at each topic once."""
        patterns = Patterns.parse([self.topic])[0]
        denied = cache(patterns.match)

        def concerns(identity: Identity, topics: Iterable[str]) -> bool:
            if not identity.sub or not is_old(identity, since_s):
                return False
            if self.jti:
                return identity.jti == self.jti
            return self.sub in ("", identity.sub) and (not self.topic or any(map(denied, topics)))

        return concerns


def is_old(identity: Identity, since_s: float) -> bool:
    return identity.issued_s is None or identity.issued_s <= since_s


def names_of_token(identity: Identity) -> list[str]:
    return [f"sub {identity.sub}", *([f"jti {identity.jti}"] if identity.jti else [])]


def names_of_topic(topic: str, sub: str) -> list[str]:
    return [f"topic {pattern} {who}" for pattern in patterns_of(topic) for who in ("", sub)]


class Denials:
    """Denials by their names, each with the second since when it holds."""

    def __init__(self, since: Mapping[str, float] = {}) -> None:
        self._since = dict(since)
        self._topics = sum(name.startswith("topic ") for name in self._since)

    def __len__(self) -> int:
        return len(self._since)

    def add(self, name: str, since_s: float) -> None:
        self._topics += name.startswith("topic ") and name not in self._since
        self._since[name] = since_s

    def remove(self, name: str) -> None:
        if self._since.pop(name, None) is not None:
            self._topics -= name.startswith("topic ")

    def forget(self, before_s: float) -> None:
        """No token is left which they could hold for."""
        for name in [name for name, since_s in self._since.items() if since_s < before_s]:
            self.remove(name)

    def check_token(self, identity: Identity) -> None:
        """Raises Unauthorized."""
        if self._since and self._any(names_of_token(identity), identity):
            raise Unauthorized("the token was revoked: get a new one", code="token_revoked")

    def check_topics(self, identity: Identity, topics: Iterable[str]) -> None:
        """Raises Forbidden."""
        for topic in topics if self._topics else ():
            if self._any(names_of_topic(topic, identity.sub), identity):
                raise Forbidden(f"what the token granted on {topic} was revoked: get a new one", code="topic_revoked")

    def _any(self, names: list[str], identity: Identity) -> bool:
        found = (self._since.get(name) for name in names)
        return any(since_s is not None and is_old(identity, since_s) for since_s in found)

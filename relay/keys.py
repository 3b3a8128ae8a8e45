"""Which key seals what, and which keys a client is given: of topics, never the master.

**Keys of topics.** HKDF-SHA-256 (RFC 5869) makes a key of the master, an epoch of time and a topic, and beside it the key's id, which
stands in each seal. So every process with the same master has the same keys and none has to be stored; and whoever
is given a key can open one topic for one epoch, whatever becomes of its token.

**What a client is given** are the keys of now, and in the last minute of an epoch those of the next. It asks at a random moment of that
minute, so that not all ask when the epoch begins; and a process whose clock is ahead seals with what the others give already. Nobody
gives a key whose time is over: who lacks one goes on from its last cursor, and is sent the same sealed anew.

**A rotation** of the master is a time in which some processes seal with one and some with the other. Each seals with its first and
gives the keys of both. So the new master is first added as the second one everywhere, then moved to the front, and the old one
taken away when nothing that it sealed is under way any more. Who adds it at the front at once has processes that seal with what
the others give no keys of.

**Shared.** Where only backends read, the master itself seals, as a string password and without an id, and no client is given anything.
"""

import hashlib
from functools import lru_cache

import msgspec

from relay.seal import KEY_BYTES, PASSWORD_CHARACTERS_MIN, SealingKey, make_key

ID_BYTES = 8
EARLY_MS = 60_000  # the next key is given so long before its epoch
KEYS_MAX = 20_000  # that a process remembers; making one takes some 10 µs
SEALING_KEYS_MAX = 4_000  # that have their ciphers set up
DIFFERENT_MIN = 10  # characters of a master; 32 random hexadecimal digits have fewer once in 20,000 times
PERIOD_MIN = 16  # a shorter piece that is repeated is as easy to guess as the piece
FINGERPRINT_DIGITS = 12


class TopicKey(msgspec.Struct, frozen=True):
    """A raw key of Iron's, for encryption and integrity both, and the time in which it seals."""

    topic: str
    id: str
    key: bytes
    from_ms: int
    until_ms: int


class Keyring(msgspec.Struct, frozen=True):
    masters: tuple[str, ...]  # the first one seals
    epoch_s: int = 3600
    shared: bool = False

    def epoch(self, now_ms: int) -> int:
        """Whatever changes it changes the keys that seal."""
        return 0 if self.shared else now_ms // (self.epoch_s * 1000)

    def sealing(self, topic: str, now_ms: int) -> SealingKey:
        if self.shared:
            return shared_key(self.masters[0])
        return topic_key(self.masters[0], self.epoch_s, self.epoch(now_ms), topic)

    def given(self, topic: str, now_ms: int) -> list[TopicKey]:
        """What a client needs to open this topic, now and in a moment."""
        epoch_ms = self.epoch_s * 1000
        now = self.epoch(now_ms)
        epochs = [now, now + 1] if (now + 1) * epoch_ms - now_ms <= EARLY_MS else [now]
        return [derive(master, self.epoch_s, epoch, topic) for master in self.masters for epoch in epochs]

    def fingerprint(self) -> str:
        """Of the master that seals."""
        return fingerprint(self.masters[0])


def fingerprint(secret: str) -> str:
    """What tells it from others, and gives it away to nobody: `printf %s "$KEY" | sha256sum | head -c 12`."""
    return hashlib.sha256(secret.encode()).hexdigest()[:FINGERPRINT_DIGITS]


@lru_cache(KEYS_MAX)
def derive(master: str, epoch_s: int, epoch: int, topic: str) -> TopicKey:
    from cryptography.hazmat.primitives.hashes import SHA256  # not at the top: see relay.seal.cipher
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = f"edge-relay v2 {epoch_s} {epoch} {topic}".encode()
    made = HKDF(SHA256(), KEY_BYTES + ID_BYTES, None, info).derive(master.encode())
    key, id = made[:KEY_BYTES], "k" + made[KEY_BYTES:].hex()
    return TopicKey(topic, id, key, epoch * epoch_s * 1000, (epoch + 1) * epoch_s * 1000)


@lru_cache(SEALING_KEYS_MAX)
def topic_key(master: str, epoch_s: int, epoch: int, topic: str) -> SealingKey:
    derived = derive(master, epoch_s, epoch, topic)
    return SealingKey(make_key(derived.key, derived.id))


@lru_cache(2)
def shared_key(master: str) -> SealingKey:
    """With salts of this process, so that it is stretched once."""
    return SealingKey(make_key(master))


def parse_masters(text: str) -> tuple[str, ...]:
    """`current` or `current,previous`. Raises ValueError for one that could be guessed: each seal is an invitation to try."""
    masters = tuple(part.strip() for part in text.split(","))
    if len(masters) > 2:
        raise ValueError("has more than two keys: write current, or current,previous")
    if any(len(master) < PASSWORD_CHARACTERS_MIN for master in masters):
        raise ValueError(f"needs at least {PASSWORD_CHARACTERS_MIN} characters, or two such keys joined by a comma")
    if any(map(is_guessable, masters)):
        raise ValueError("is long enough, but no random text: too few different characters, or a short piece repeated")
    return masters


def is_guessable(master: str) -> bool:
    period = (master + master).find(master, 1)  # after so many characters it begins again
    return len(set(master)) < DIFFERENT_MIN or period < min(PERIOD_MIN, len(master))

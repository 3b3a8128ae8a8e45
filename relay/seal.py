"""Iron Fe26.2: seals a text so that only who has the password can read it, or make one like it.

As npm's `@hapi/iron` and `iron-webcrypto` seal and open with their defaults, where the code is the specification
(https://hapi.dev/module/iron/api). A seal is eight parts, joined by stars, binary ones as base64url without padding:

    Fe26.2*<password id>*<salt>*<IV>*<ciphertext>*<expires, ms or empty>*<salt>*<HMAC>

The text is encrypted with AES-256-CBC, and HMAC-SHA-256 covers the first six parts as they are written, so it is checked
before anything is decrypted: a padding oracle has nothing to ask.

**Passwords.** 32 raw bytes are both keys as they are, and the salts are empty. A string becomes keys by PBKDF2-HMAC-SHA-1
with *one* iteration over the salt's text. That is Iron's default, and stretches nothing: a guessable string is found by whoever has
one seal. More iterations aren't told in a seal, so whoever opened it would have to know.

**What a seal doesn't say**: what it is about. One is as good as another under the same password, until it expires, so whoever
seals puts into the text what it is, and whoever opens compares (`relay.envelope`).
"""

import hashlib
import hmac
import re
import secrets
from base64 import urlsafe_b64decode
from binascii import b2a_base64
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from relay.errors import Unopened

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.modes import CBC

PREFIX = "Fe26.2"
KEY_BYTES = 32
BLOCK_BYTES = 16
SALT_BYTES = 32
PASSWORD_CHARACTERS_MIN = 32  # as both packages have it
SKEW_MS = 60_000  # how far clocks may be apart, as both packages have it
ID = re.compile(r"\w*", re.ASCII)
BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
TO_BASE64URL = bytes.maketrans(b"+/", b"-_")
EXPIRES = re.compile(r"[1-9][0-9]{0,15}", re.ASCII)

Password = str | bytes


class Key(msgspec.Struct, frozen=True):
    """What seals: a password and its salts, already turned into the two keys."""

    id: str
    encryption: bytes
    integrity: bytes
    encryption_salt: str = ""
    integrity_salt: str = ""


def make_key(password: Password, id: str = "", encryption_salt: str = "", integrity_salt: str = "") -> Key:
    """Salts are made for a string that comes without.

    Raises ValueError for a password that Iron doesn't take.
    """
    if not ID.fullmatch(id):
        raise ValueError(f"the password id {id!r} is not made of A-Z a-z 0-9 _")
    if isinstance(password, bytes):
        if len(password) != KEY_BYTES:
            raise ValueError(f"a raw key has {KEY_BYTES} bytes, not {len(password)}")
        return Key(id, password, password)
    if len(password) < PASSWORD_CHARACTERS_MIN:
        raise ValueError(f"a password has at least {PASSWORD_CHARACTERS_MIN} characters, not {len(password)}")
    salts = [salt or secrets.token_hex(SALT_BYTES) for salt in (encryption_salt, integrity_salt)]
    return Key(id, stretch(password, salts[0]), stretch(password, salts[1]), *salts)


def stretch(password: str, salt: str) -> bytes:
    return hashlib.pbkdf2_hmac("sha1", password.encode(), salt.encode(), 1, KEY_BYTES)


def cipher(key: bytes, iv: bytes) -> "Cipher[CBC]":
    # Not at the top: whoever seals nothing, as a polling function that starts cold, doesn't wait for this import.
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    return Cipher(algorithms.AES256(key), modes.CBC(iv))


class SealingKey:
    """A key with its ciphers set up, which costs several times what a seal does. For one thread."""

    def __init__(self, key: Key) -> None:
        # Not at the top: see `cipher`.
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.hmac import HMAC

        self.id = key.id
        self._encryptor = cipher(key.encryption, bytes(BLOCK_BYTES)).encryptor()
        self._last = 0  # the last block that it has made
        self._code = HMAC(key.integrity, SHA256())
        self._before_iv = f"{PREFIX}*{key.id}*{key.encryption_salt}*"
        self._before_code = f"*{key.integrity_salt}*".encode()

    def seal(self, text: bytes, expires_ms: int | None = None, *, iv: bytes = b"") -> bytes:
        """`text` is JSON, for those who open it elsewhere. An `iv` is given by tests alone."""
        iv = iv or secrets.token_bytes(BLOCK_BYTES)
        encrypted = self._encrypt(text, iv)
        head = f"{self._before_iv}{write_base64(iv)}*{write_base64(encrypted)}*{expires_ms or ''}".encode()
        code = self._code.copy()
        code.update(head)
        return b"%b%b%b" % (head, self._before_code, write_base64(code.finalize()).encode())

    def _encrypt(self, text: bytes, iv: bytes) -> bytes:
        """CBC adds to a block of text the block of cipher before it, and to the first one the IV (NIST SP 800-38A, 6.2). Here all texts
        are one long one, so the block before this text is that of the last: it is taken out, and the IV put in."""
        padding = BLOCK_BYTES - len(text) % BLOCK_BYTES  # PKCS #7: as many bytes as are missing, and of that value
        padded = text + bytes([padding]) * padding
        first = int.from_bytes(padded[:BLOCK_BYTES], "big") ^ int.from_bytes(iv, "big") ^ self._last
        encrypted = self._encryptor.update(first.to_bytes(BLOCK_BYTES, "big") + padded[BLOCK_BYTES:])
        self._last = int.from_bytes(encrypted[-BLOCK_BYTES:], "big")
        return encrypted


def unseal(sealed: str, passwords: Mapping[str, Password], now_ms: int) -> bytes:
    """The text. `passwords` by their ids; that of a seal without one is ''. Raises Unopened, which says why."""
    parts = sealed.split("*")
    if len(parts) != 8 or parts[0] != PREFIX or not sealed.isascii():
        raise Unopened("it is no Fe26.2 seal of eight parts")
    _, id, encryption_salt, iv, encrypted, expires, integrity_salt, code = parts
    if expires and not EXPIRES.fullmatch(expires):
        raise Unopened("its expiry is no number")
    if expires and int(expires) <= now_ms - SKEW_MS:
        raise Unopened("it has expired")
    if id not in passwords:
        raise Unopened(f"there is no password with the id {id[:80]!r}")
    password = passwords[id]
    if bool(encryption_salt and integrity_salt) != isinstance(password, str):
        raise Unopened("it was sealed with the other kind of password: raw keys have no salts, and strings have two")
    key = make_key(password, id, encryption_salt, integrity_salt)
    head = sealed.rsplit("*", 2)[0].encode()
    if not hmac.compare_digest(hmac.digest(key.integrity, head, "sha256"), read_base64(code)):
        raise Unopened("it was changed, or sealed with another password")
    return decrypt(read_base64(encrypted), key, read_base64(iv))


def decrypt(encrypted: bytes, key: Key, iv: bytes) -> bytes:
    """Of what has been found to be whole, so what is wrong here was wrong when it was sealed."""
    if len(iv) != BLOCK_BYTES or not encrypted or len(encrypted) % BLOCK_BYTES:
        raise Unopened("its parts have not the lengths of AES-CBC")
    decryptor = cipher(key.encryption, iv).decryptor()
    padded = decryptor.update(encrypted) + decryptor.finalize()
    padding = padded[-1]
    if not 1 <= padding <= BLOCK_BYTES or padded[-padding:] != bytes([padding]) * padding:
        raise Unopened("its padding is none")
    return padded[:-padding]


def write_base64(raw: bytes) -> str:
    return b2a_base64(raw, newline=False).translate(TO_BASE64URL, b"=").decode()


def read_base64(text: str) -> bytes:
    """Strict: Python's own decoder passes over what is no base64, and over the bits left at its end."""
    if BASE64URL.fullmatch(text) and len(text) % 4 != 1:
        raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        if write_base64(raw) == text:
            return raw
    raise Unopened("a part of it is no base64url")

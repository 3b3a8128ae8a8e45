"""Which addresses are the internet's: what IANA's registries say, whatever Python reads an address.

What is expected is worked out here from a copy of the registries, with the system's functions and plain numbers.
"""

import csv
import json
import random
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from relay.updates.addresses import CARRIERS, IPV4, IPV6, is_public
from tests.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]
FAMILIES = {socket.AF_INET: 32, socket.AF_INET6: 128}
# Of neither True nor False: Teredo, which we refuse, and 6to4, of which what it carries decides.
TEREDO, SIX_TO_FOUR = "2001::/32", "2002::/16"


def registry(version: int) -> list[dict[str, str]]:
    return list(csv.DictReader((ROOT / f"tests/data/iana-ipv{version}-special-registry.csv").read_text().splitlines()))


ENTRIES = {entry["Address Block"]: entry for version in (4, 6) for entry in registry(version)}


def number(text: str) -> tuple[socket.AddressFamily, int]:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    return family, int.from_bytes(socket.inet_pton(family, text))


def text(family: socket.AddressFamily, value: int) -> str:
    return socket.inet_ntop(family, value.to_bytes(FAMILIES[family] // 8))


def ends(block: str) -> tuple[socket.AddressFamily, int, int]:
    """Its first and its last address."""
    begin, _, length = block.partition("/")
    family, first = number(begin)
    return family, first, first + (1 << FAMILIES[family] - int(length)) - 1


BLOCKS = {block: ends(block) for block in ENTRIES}


def expected(address: str) -> bool:
    family, value = number(address)
    if family == socket.AF_INET6:
        for block, shift in (("::ffff:0:0/96", 0), ("64:ff9b::/96", 0), (SIX_TO_FOUR, 80)):
            if BLOCKS[block][1] <= value <= BLOCKS[block][2]:
                return expected(text(socket.AF_INET, value >> shift & 0xFFFFFFFF))
    around = [(last - first, block) for block, (of, first, last) in BLOCKS.items() if of == family and first <= value <= last]
    if around:
        return ENTRIES[min(around)[1]]["Globally Reachable"] == "True"
    return value >> 28 != 0b1110 if family == socket.AF_INET else value >> 125 == 0b001


def edges(block: str) -> list[str]:
    """Its own two ends, and those beside it, which are others'."""
    family, first, last = ends(block)
    return [text(family, value) for value in (first - 1, first, last, last + 1) if 0 <= value < 1 << FAMILIES[family]]


def sample() -> list[str]:
    """The edges of all blocks, as they are and carried by others, and addresses from anywhere."""
    drawn = random.Random(6890)
    plain = [address for block in [*ENTRIES, "224.0.0.0/4", "2000::/3", "fec0::/10", "ff00::/8"] for address in edges(block)]
    plain += [text(socket.AF_INET, drawn.getrandbits(32)) for _ in range(200)]
    plain += [text(socket.AF_INET6, drawn.getrandbits(128) >> drawn.randrange(64)) for _ in range(200)]
    plain += [text(socket.AF_INET6, 1 << 125 | drawn.getrandbits(125)) for _ in range(200)]
    carried = [number(address)[1] for address in plain if ":" not in address]
    for block, shift in (("::ffff:0:0/96", 0), ("64:ff9b::/96", 0), (SIX_TO_FOUR, 80), (TEREDO, 64), ("64:ff9b:1::/48", 0), ("::/96", 0)):
        plain += [text(socket.AF_INET6, ends(block)[1] | value << shift) for value in carried]
    return plain


@pytest.mark.parametrize("version", [4, 6])
def test_the_table_has_every_entry_of_the_registry_and_no_other(version: int) -> None:
    table = {4: IPV4, 6: IPV6}[version]
    assert list(table) == [entry["Address Block"] for entry in registry(version)]
    for entry in registry(version):
        reachable, what = table[entry["Address Block"]]
        assert re.findall(r"RFC ?(\d+)", entry["RFC"]) == re.findall(r"RFC (\d+)", what)
        assert reachable == (entry["Globally Reachable"] == "True" or entry["Address Block"] == SIX_TO_FOUR)


@pytest.mark.parametrize("block", ENTRIES)
def test_a_block_ends_where_its_entry_says(block: str) -> None:
    for address in edges(block):
        assert is_public(address) is expected(address), address


def test_any_address_is_what_the_registries_say() -> None:
    assert [address for address in sample() if is_public(address) is not expected(address)] == []


ADDRESSES = {
    "8.8.8.8": True, "127.0.0.1": False, "10.1.2.3": False, "172.16.0.1": False, "192.168.0.1": False, "169.254.169.254": False,
    "100.64.0.1": False, "0.0.0.0": False, "224.0.0.1": False, "240.0.0.1": False, "255.255.255.255": False, "192.0.2.1": False,
    "2606:4700:4700::1111": True, "::": False, "::1": False, "fe80::1": False, "fc00::1": False, "fec0::1": False, "ff02::1": False,
    "2001:db8::1": False, "::ffff:8.8.8.8": True, "::ffff:10.0.0.1": False, "::ffff:127.0.0.1": False, "::127.0.0.1": False,
    "64:ff9b::8.8.8.8": True, "64:ff9b::169.254.169.254": False, "64:ff9b:1::8.8.8.8": False,
    "2002:0808:0808::1": True, "2002:7f00:0001::1": False, "2001:0:7f00:1::1": False,
}  # fmt: skip


@pytest.mark.parametrize(("address", "public"), ADDRESSES.items(), ids=ADDRESSES)
def test_an_address_is_public_if_all_that_it_may_stand_for_are(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize("block", CARRIERS, ids=str)
def test_an_address_that_carries_another_is_as_public_as_that(block: object) -> None:
    shift = 80 if str(block) == SIX_TO_FOUR else 0
    for carried, public in (("8.8.8.8", True), ("10.0.0.1", False), ("127.0.0.1", False), ("169.254.169.254", False), ("224.0.0.1", False)):
        assert is_public(text(socket.AF_INET6, ends(str(block))[1] | number(carried)[1] << shift)) is public


@pytest.mark.parametrize(
    "address",
    [
        "2001:0:808:808::f7f7:f7f7",  # Teredo, by way of 8.8.8.8 to 8.8.8.8
        "::8.8.8.8",  # as IPv4 addresses were once written
        "::ffff:0:8.8.8.8",  # RFC 2765, long gone
        "64:ff9b:1::8.8.8.8",  # a translator of one's own
        "fe80::1%1",
        "fec0::1",
        "ff0e::1",  # multicast, though of the whole world
        "4000::1",
        "224.0.0.1",
        "239.255.255.255",
        "255.255.255.255",
    ],
)
def test_what_leads_nobody_knows_where_is_refused(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["", "localhost", "127.1", "0x7f.0.0.1", "010.0.0.1", "2130706433", "1.2.3.4/8", "::1/128", "[::1]"])
def test_what_is_no_address_is_not_taken_for_one(address: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        is_public(address)


def test_every_python_of_this_machine_says_the_same() -> None:
    """In their versions, `ipaddress` follows the registries of several years."""
    found = {path for minor in range(11, 20) if (path := shutil.which(f"python3.{minor}"))}
    pythons = {sys.executable, *(path for path in found if subprocess.run([path, "-c", ""], capture_output=True).returncode == 0)}
    addresses = sample()
    program = (
        "import json, sys; from relay.updates.addresses import is_public; print(json.dumps([is_public(a) for a in json.load(sys.stdin)]))"
    )
    verdicts = [expected(address) for address in addresses]
    for python in pythons:
        done = subprocess.run(
            [python, "-B", "-c", program],
            input=json.dumps(addresses),
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
            timeout=LIMIT_S,
        )
        assert json.loads(done.stdout) == verdicts, python

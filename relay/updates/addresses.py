"""Which addresses are the internet's: IANA's registries of special ones, and the address that another one stands for.

Our own table, since `ipaddress` follows the registries of the day on which its Python was made: 3.11, 3.12, 3.13.0 and later ones
each say something else of some addresses. So it is used here to read an address, and never asked what it thinks of one.

The most specific block counts, as in the registries. A block whose `Globally Reachable` is empty (it is deprecated) or no plain "True"
isn't reachable. Blocks that they don't list are unicast, of IPv6 only in 2000::/3: all else is reserved. When a registry gets an entry,
it comes into the table here and into its copy in `tests/data`.

What only carries an IPv4 address is judged by that one too:

- `::ffff:0:0/96` is how a socket of IPv6 writes an IPv4 address: the kernel connects to that.
- `64:ff9b::/96` leads a network without IPv4 to the IPv4 internet. (RFC 6052 forbids it for addresses that aren't global, but a translator
  beside us may not care.) Prefixes of a network's own for this can't be told from other addresses.
- `2002::/16` (6to4) leads to the host that has the IPv4 address, from which on it is that host's business.

Teredo, `2001::/32`, is refused whatever is in it: it leads to a host behind a NAT, by way of a relay that nobody knows, and it names two
IPv4 addresses, one of them disguised. No upstream has such an address. So is `::/96`, as IPv4 addresses were once written.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

# By block: whether it is globally reachable, and what it is by which RFC.
# https://www.iana.org/assignments/iana-ipv4-special-registry, as of 2025
IPV4: dict[str, tuple[bool, str]] = {
    "0.0.0.0/8": (False, "this network: RFC 791, section 3.2"),
    "0.0.0.0/32": (False, "this host on this network: RFC 1122, section 3.2.1.3"),
    "10.0.0.0/8": (False, "private use: RFC 1918"),
    "100.64.0.0/10": (False, "shared address space: RFC 6598"),
    "127.0.0.0/8": (False, "loopback: RFC 1122, section 3.2.1.3"),
    "169.254.0.0/16": (False, "link local: RFC 3927"),
    "172.16.0.0/12": (False, "private use: RFC 1918"),
    "192.0.0.0/24": (False, "IETF protocol assignments: RFC 6890, section 2.1"),
    "192.0.0.0/29": (False, "IPv4 service continuity prefix: RFC 7335"),
    "192.0.0.8/32": (False, "IPv4 dummy address: RFC 7600"),
    "192.0.0.9/32": (True, "Port Control Protocol anycast: RFC 7723"),
    "192.0.0.10/32": (True, "traversal using relays around NAT anycast: RFC 8155"),
    "192.0.0.170/32": (False, "NAT64/DNS64 discovery: RFC 8880, RFC 7050, section 2.2"),
    "192.0.0.171/32": (False, "NAT64/DNS64 discovery: RFC 8880, RFC 7050, section 2.2"),
    "192.0.2.0/24": (False, "documentation (TEST-NET-1): RFC 5737"),
    "192.31.196.0/24": (True, "AS112-v4: RFC 7535"),
    "192.52.193.0/24": (True, "AMT: RFC 7450"),
    "192.88.99.0/24": (False, "deprecated (6to4 relay anycast): RFC 7526"),
    "192.88.99.2/32": (False, "6a44-relay anycast address: RFC 6751"),
    "192.168.0.0/16": (False, "private use: RFC 1918"),
    "192.175.48.0/24": (True, "direct delegation AS112 service: RFC 7534"),
    "198.18.0.0/15": (False, "benchmarking: RFC 2544"),
    "198.51.100.0/24": (False, "documentation (TEST-NET-2): RFC 5737"),
    "203.0.113.0/24": (False, "documentation (TEST-NET-3): RFC 5737"),
    "240.0.0.0/4": (False, "reserved: RFC 1112, section 4"),
    "255.255.255.255/32": (False, "limited broadcast: RFC 8190, RFC 919, section 7"),
}
# https://www.iana.org/assignments/iana-ipv6-special-registry, as of 2025
IPV6: dict[str, tuple[bool, str]] = {
    "::1/128": (False, "loopback address: RFC 4291"),
    "::/128": (False, "unspecified address: RFC 4291"),
    "::ffff:0:0/96": (False, "IPv4-mapped address: RFC 4291"),
    "64:ff9b::/96": (True, "IPv4-IPv6 translation: RFC 6052"),
    "64:ff9b:1::/48": (False, "IPv4-IPv6 translation, of local use: RFC 8215"),
    "100::/64": (False, "discard-only address block: RFC 6666"),
    "100:0:0:1::/64": (False, "dummy IPv6 prefix: RFC 9780"),
    "2001::/23": (False, "IETF protocol assignments: RFC 2928"),
    "2001::/32": (False, "Teredo: RFC 4380, RFC 8190"),
    "2001:1::1/128": (True, "Port Control Protocol anycast: RFC 7723"),
    "2001:1::2/128": (True, "traversal using relays around NAT anycast: RFC 8155"),
    "2001:1::3/128": (True, "DNS-SD service registration protocol anycast: RFC 9665"),
    "2001:2::/48": (False, "benchmarking: RFC 5180"),
    "2001:3::/32": (True, "AMT: RFC 7450"),
    "2001:4:112::/48": (True, "AS112-v6: RFC 7535"),
    "2001:10::/28": (False, "deprecated (previously ORCHID): RFC 4843"),
    "2001:20::/28": (True, "ORCHIDv2: RFC 7343"),
    "2001:30::/28": (True, "drone remote ID protocol entity tags: RFC 9374"),
    "2001:db8::/32": (False, "documentation: RFC 3849"),
    "2002::/16": (True, "6to4, where its IPv4 address is reachable: RFC 3056"),
    "2620:4f:8000::/48": (True, "direct delegation AS112 service: RFC 7534"),
    "3fff::/20": (False, "documentation: RFC 9637"),
    "5f00::/16": (False, "Segment Routing (SRv6) SIDs: RFC 9602"),
    "fc00::/7": (False, "unique local: RFC 4193, RFC 8190"),
    "fe80::/10": (False, "link-local unicast: RFC 4291"),
}
# What holds where the registries say nothing.
ELSEWHERE: dict[str, tuple[bool, str]] = {
    "0.0.0.0/0": (True, "unicast: RFC 791"),
    "224.0.0.0/4": (False, "multicast: RFC 5771"),
    "::/0": (False, "reserved: RFC 4291, section 4"),
    "2000::/3": (True, "global unicast: RFC 4291, section 2.4"),
    "fec0::/10": (False, "deprecated (site-local unicast): RFC 3879"),
    "ff00::/8": (False, "multicast: RFC 4291, section 2.7"),
}
MOST_SPECIFIC_FIRST = sorted(
    ((ip_network(block), reachable) for block, (reachable, _) in {**IPV4, **IPV6, **ELSEWHERE}.items()),
    key=lambda entry: -entry[0].prefixlen,
)
# Blocks whose addresses carry an IPv4 address, and how many bits stand behind it.
CARRIERS = {ip_network("::ffff:0:0/96"): 0, ip_network("64:ff9b::/96"): 0, ip_network("2002::/16"): 80}


def is_public(text: str) -> bool:
    """Whether an address is one of the internet's, and so is the one that it carries. Raises ValueError where it is none."""
    address = ip_address(text)
    carried = carried_by(address)
    return is_reachable(address if carried is None else carried)


def carried_by(address: IPv4Address | IPv6Address) -> IPv4Address | None:
    bits = next((bits for block, bits in CARRIERS.items() if address in block), None)
    return None if bits is None else IPv4Address(int(address) >> bits & 0xFFFFFFFF)


def is_reachable(address: IPv4Address | IPv6Address) -> bool:
    return next(reachable for block, reachable in MOST_SPECIFIC_FIRST if address in block)

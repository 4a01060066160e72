"""Which network addresses a delivery may go to. Pure: no Django."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

# Everything the IANA registries keep from the open internet; the standard library's own idea of it differs between
# versions of Python.
_NOT_PUBLIC_V4 = [
    ip_network(block)
    for block in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
]
# Of IPv6 only this is given out. What embeds an IPv4 address (mapped ::ffff:0:0/96, NAT64 64:ff9b::/96) lies outside,
# or is taken out below (Teredo in 2001::/23, 6to4).
_GIVEN_OUT_V6 = ip_network("2000::/3")
_NOT_PUBLIC_V6 = [ip_network(block) for block in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]

# What VBATCH_WEBHOOK_ALLOW_PRIVATE adds: the own machine and the own network. Never link-local: cloud machines keep
# credentials there.
_PRIVATE = [
    ip_network(block)
    for block in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "::1/128",
        "fc00::/7",
    )
]


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return whether the address is one of the open internet's."""
    if isinstance(address, IPv4Address):
        return not any(address in block for block in _NOT_PUBLIC_V4)
    return address in _GIVEN_OUT_V6 and not any(address in block for block in _NOT_PUBLIC_V6)


def is_allowed(text: str, *, allow_private: bool) -> bool:
    """Return whether a delivery may go to the address; False for what is no address."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return is_public(address) or (allow_private and any(address in block for block in _PRIVATE))


def is_address(host: str) -> bool:
    """Return whether a host is written as an address, in any way that a resolver takes for one."""
    try:
        ip_address(host)
    except ValueError:
        # 2130706433, 0x7f.1 and 127.1 all mean 127.0.0.1 to the C library; no top-level domain is a number.
        last = host.rstrip(".").rpartition(".")[2].lower()
        return last.isdecimal() or last.startswith("0x")
    return True

"""Which addresses a download may connect to: public ones, and those that the recipe allows."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LOOPBACK = ("127.0.0.0/8", "::1/128")
# Link-local, and where clouds tell a machine its secrets: no setting opens these.
NEVER = tuple(
    ip_network(text)
    for text in (
        *("169.254.0.0/16", "fe80::/10"),  # AWS, Azure, Google and most others are in the first
        *("192.0.0.0/24", "168.63.129.16/32", "100.100.100.200/32"),  # Oracle, Azure, Alibaba
        *("fd00:ec2::/32", "fd20:ce::254/128"),  # AWS, Google
        "64:ff9b:1::/48",  # RFC 8215: holds an IPv4 address, and only its network knows where
    )
)
NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
HOST_NAME = re.compile(r"([a-z0-9_-]+\.)*(?=[a-z0-9_-]*[a-z])[a-z0-9_-]+")
WRITE = "write networks such as 10.0.0.0/8 and host names such as images.internal"


@dataclass(frozen=True)
class Allowed:
    """Addresses and hosts that may be connected to beside the public internet."""

    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()

    def admits(self, address: str, host: str) -> bool:
        """Whether a connection to this address may be made in search of this host.

        False for anything but the plain form of an address.
        """
        try:
            target = _target(ip_address(address))
        except ValueError:
            return False
        if any(target in network for network in NEVER):
            return False
        if _is_public(target) or any(target in network for network in self.networks):
            return True
        return host.lower().rstrip(".") in self.hosts


def allowed(setting: bool | Iterable[str]) -> Allowed:
    """What `allow_private_addresses` opens: true is loopback.

    ValueError, with what was found and what to write, for an entry that can open nothing.
    """
    if isinstance(setting, bool):
        setting = LOOPBACK if setting else ()
    networks, hosts = [], []
    for entry in (text.strip().lower() for text in setting):
        if HOST_NAME.fullmatch(entry.rstrip(".")):
            hosts.append(entry.rstrip("."))
        else:
            networks.append(_network(entry))
    return Allowed(tuple(networks), frozenset(hosts))


def _network(entry: str) -> Network:
    try:
        network = ip_network(entry, strict=False)
    except ValueError:
        raise ValueError(f"'{entry}' is no network and no host name", WRITE) from None
    first = network.network_address
    if _target(first) is not first:
        raise ValueError(f"'{entry}' is IPv4 inside IPv6", "write the IPv4 network itself")
    if str(first) != entry.partition("/")[0]:
        raise ValueError(f"'{entry}' is not how that network is written", f"write {network}")
    if any(first in never and network.prefixlen >= never.prefixlen for never in NEVER):
        raise ValueError(f"'{entry}' is link-local or tells secrets", "leave it out: none opens it")
    return network


def _target(address: Address) -> Address:
    """The address that packets reach: the IPv4 address inside an IPv6 one."""
    if not isinstance(address, IPv6Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _is_public(address: Address) -> bool:
    """Whether an address is on the public internet."""
    inner = address.is_multicast or address.is_reserved or getattr(address, "is_site_local", False)
    return address.is_global and not inner

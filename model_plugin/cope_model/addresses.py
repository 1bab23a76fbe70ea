"""Which hosts and addresses a media URL may lead to: public ones, and what the operator has opened."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

VARIABLE = "COPE_ALLOW_PRIVATE_MEDIA"

# Azure's host agent answers on an address of the public range. The metadata services of other clouds are link-local,
# private or shared addresses, which are refused as such.
_METADATA = frozenset({IPv4Address("168.63.129.16")})
# The only IPv6 range from which global unicast addresses are given out. ipaddress calls much else global, too.
_GLOBAL_UNICAST = IPv6Network("2000::/3")
# Of no use to anybody outside, and not yet known to older Pythons.
_SPECIAL = (IPv4Network("192.0.0.0/24"), IPv4Network("192.88.99.0/24"), IPv6Network("3fff::/20"))
_NAT64 = IPv6Network("64:ff9b::/96")
_TO4 = IPv6Network("2002::/16")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")


class RefusedUrlError(Exception):
    """A URL leads where this server does not fetch from; the message names no address."""


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """What media may be fetched from.

    Attributes:
        hosts: names whose addresses are taken as they are, lower case without a final dot.
        networks: opened although they are not public.
        domains: if there are any, no other hosts than these (vLLM's `--allowed-media-domains`); they open nothing.
    """

    hosts: frozenset[str] = frozenset()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    domains: tuple[str, ...] = ()

    @classmethod
    def parse(cls, entries: Iterable[str], domains: Sequence[str] = ()) -> AddressPolicy:
        """Read addresses (`10.0.0.7`), networks (`10.0.0.0/8`) and host names (`media.internal`).

        Raises:
            ValueError: an entry is neither; the message names it.
        """
        hosts, networks = set(), []
        for entry in entries:
            entry = entry.strip()
            if not entry:
                continue
            try:
                networks.append(ipaddress.ip_network(entry))
                continue
            except ValueError as error:
                name = bare(entry)
                if "/" in entry or _HOST.fullmatch(name) is None or is_number(name):
                    raise ValueError(f"{entry!r} is no host, address or network: {error}") from None
            hosts.add(name)
        return cls(frozenset(hosts), tuple(networks), tuple(domains))

    @classmethod
    def from_environment(
        cls, domains: Sequence[str] = (), environment: Mapping[str, str] = os.environ
    ) -> AddressPolicy:
        """Read `COPE_ALLOW_PRIVATE_MEDIA`, entries separated by commas or spaces.

        Raises:
            ValueError: an entry is no host, address or network.
        """
        try:
            return cls.parse(re.split(r"[,\s]+", environment.get(VARIABLE, "")), domains)
        except ValueError as error:
            raise ValueError(f"{VARIABLE}: {error}") from None

    def check_host(self, host: str) -> None:
        """Check what a URL says, before any name is looked up.

        Args:
            host: as in the URL: a name, or an address without brackets.

        Raises:
            RefusedUrlError: not among the domains, or an address that is not served or oddly written.
        """
        if self.domains and host not in self.domains:
            raise RefusedUrlError("the URL's host is not among the domains that this server fetches from")
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            if ":" in host or is_number(bare(host)):
                # `0`, `0177.0.0.1`, `2130706433` and the like, which the system would take for addresses.
                raise RefusedUrlError("an address in a URL must be written in its usual form") from None
            return
        if not self.allows(address):
            raise RefusedUrlError("the URL leads to an address that this server does not fetch from")

    def allows(self, address: IPv4Address | IPv6Address, host: str | None = None) -> bool:
        """Whether to connect to an address, perhaps because of the host name that it was found under."""
        if host is not None and bare(host) in self.hosts:
            return True
        for meant in {address, target(address)}:
            if any(meant in network for network in self.networks if network.version == meant.version):
                return True
        return is_public(address)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether anybody in the internet could connect to an address: it is of no network of our own.

    Private, loopback, link-local, shared (CGNAT), multicast, unspecified, reserved and documentation addresses are not
    public, nor are the metadata services of clouds, nor IPv6 addresses that stand for such an IPv4 address.
    """
    inner = target(address)
    if inner != address:
        return is_public(inner)
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    if any(address in network for network in _SPECIAL if network.version == address.version):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved and address not in _METADATA


def target(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 address carries (mapped, NAT64, 6to4), or the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _TO4:
        return IPv4Address(int(address) >> 80 & 0xFFFFFFFF)
    return address


def bare(host: str) -> str:
    """A host name in the form in which names are compared."""
    return host.lower().removesuffix(".")


def is_number(host: str) -> bool:
    """Whether the system would read a host as an IPv4 address, in whatever form."""
    try:
        socket.inet_aton(host)
    except OSError:
        return False
    return True

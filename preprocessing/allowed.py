"""Which servers may be asked for an image where others choose its URL: hosts by name, at public addresses alone."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

_PORTS = (80, 443)
_PATTERN = re.compile(r"(\*\.)?[\w-]+(\.[\w-]+)*(:\d{1,5})?")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class ForbiddenError(Exception):
    """A server that may not be asked; says why."""


@dataclass(frozen=True)
class Allowed:
    """What may be downloaded.

    Attributes:
        hosts: names that may be asked, at ports 80 and 443; `name:port` at that one; `*.name` all names below it.
        seconds: longest download, with look-ups and redirects.
        max_bytes: largest content.
    """

    hosts: Sequence[str]
    seconds: float = 20.0
    max_bytes: int = 20 * 2**20

    def check_host(self, host: str, port: int) -> None:
        """Raises ForbiddenError if a connection may not be asked for."""
        name = host.lower().rstrip(".")
        if not any(_matches(name, port, pattern.lower()) for pattern in self.hosts):
            raise ForbiddenError(f"images may not be fetched from {host!r:.100}, port {port}; send it as a data URL")

    def check_addresses(self, host: str, addresses: Sequence[str]) -> None:
        """Raises ForbiddenError if any address of a host is of a private network, this machine or the like."""
        for address in addresses:
            if not is_public(address):
                raise ForbiddenError(f"{host!r:.100} has an address that is not public; send it as a data URL")


def names_hosts(pattern: str) -> bool:
    """Whether a pattern is one of those that `Allowed.hosts` may have: another would match nothing, ever."""
    return _PATTERN.fullmatch(pattern) is not None


def _matches(name: str, port: int, pattern: str) -> bool:
    wanted, _, only = pattern.partition(":")
    if str(port) != only if only else port not in _PORTS:
        return False
    return name == wanted or (wanted.startswith("*.") and name.endswith(wanted[1:]))


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet, those of version 4 inside of version 6 too."""
    found = ipaddress.ip_address(address.partition("%")[0])
    inside = []
    if isinstance(found, ipaddress.IPv6Address):
        inside = [found.ipv4_mapped, found.sixtofour, *(found.teredo or ())]
        if found in _NAT64:
            inside.append(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF))
    others = [each for each in inside if each is not None]
    return all(each.is_global and not each.is_multicast for each in others or [found])

"""Which addresses of the network a message may be sent to.

Whoever registers a webhook has this machine open connections for it, so by default only the public Internet can be reached:
no loopback, no private or local networks, nothing reserved, whether named by a literal, hidden in another notation of an
IPv4 address, or found by a name. The check is of what a name resolves to at the moment of sending, and the connection goes to the
address that was checked: a name that resolves to something else a moment later gains nothing.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""A host's addresses as text, in the order to try them. Raises OSError when there are none."""

_REFUSED_4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
            "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        ),
    )
)  # fmt: skip
"""IANA's special-purpose registry, and multicast."""
_GLOBAL_6 = IPv6Network("2000::/3")
_REFUSED_6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20")))
"""Within global unicast: protocol assignments (Teredo is one) and documentation. All outside of it is refused, too."""
_MAPPED, _NAT64, _SIX_TO_FOUR = IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"), IPv6Network("2002::/16")


class AddressRefused(Exception):
    """Messages may not be sent there. The text says why, without the address."""


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether this is an address of the public Internet; one that carries an IPv4 address is as public as that."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _REFUSED_4)
    if address in _MAPPED or address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    if address in _SIX_TO_FOUR:
        return is_public(IPv4Address(int(address) >> 80 & 0xFFFF_FFFF))
    return address in _GLOBAL_6 and not any(address in network for network in _REFUSED_6)


def literal(host: str) -> IPv4Address | IPv6Address | None:
    """The address that a host is, when it is no name.

    Raises `AddressRefused` for a number in one of the old notations (``127.1``, ``0x7f000001``), which some resolvers read as an address.
    """
    try:
        return ip_address(host)
    except ValueError:
        if re.fullmatch(r"[0-9]+|0[xX][0-9a-fA-F]*", host.rstrip(".").rsplit(".", 1)[-1]):
            raise AddressRefused("A number is no host; write an IPv4 address as four.") from None
        return None


class Addresses:
    """The policy of one deployment. ``allow_private`` is for networks where the receivers are one's own, ``allow_http`` for tests."""

    def __init__(self, *, allow_private: bool = False, allow_http: bool = False, resolve: Resolve | None = None) -> None:
        self._allow_private, self._allow_http, self._resolve = allow_private, allow_http, resolve or _Resolver().resolve

    def check(self, url: str) -> None:
        """What can be told of a URL before anything is sent. Raises `AddressRefused`; any name passes."""
        parts = urlsplit(url)
        if parts.scheme != "https" and not (self._allow_http and parts.scheme == "http"):
            raise AddressRefused("Only https is allowed here.")
        address = literal(parts.hostname or "")
        if address is not None:
            self._check(address)

    async def of(self, url: str) -> Sequence[str]:
        """Addresses to connect to. Raises `AddressRefused` when even one of the host's is refused, OSError when there is none."""
        self.check(url)
        host = urlsplit(url).hostname or ""
        address = literal(host)
        found = [address] if address is not None else [ip_address(text) for text in await self._resolve(host)]
        if not found:
            raise OSError("no address")
        for each in found:
            self._check(each)
        return [str(each) for each in found]

    def _check(self, address: IPv4Address | IPv6Address) -> None:
        scoped = isinstance(address, IPv6Address) and address.scope_id is not None
        if not self._allow_private and (scoped or not is_public(address)):
            raise AddressRefused("This address is not of the public Internet.")


class _Resolver:
    """The system's resolver, in threads of its own: names that are slow to resolve must not keep others of the process waiting."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(8, "webhook-dns")

    async def resolve(self, host: str) -> Sequence[str]:
        """See ``Resolve``."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
        return list(dict.fromkeys(str(place[0]) for *_, place in found))

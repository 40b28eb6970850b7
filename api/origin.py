"""Where a request comes from: the client's address and whether it came by TLS, as far as the proxies before us can be believed.

``X-Forwarded-For`` is written by anybody. A proxy appends the address that it was called from, so the last entry is from the proxy that
called us, the one before it from the proxy before that; whoever is not one of ours ends the walk, and what stands further left may be
made up. The scheme is taken from the same hop.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple

from api.settings import Settings

UNKNOWN = "unknown"
"""The address of one who has none, as over a local socket."""

MOST_HOPS = 32
"""So many entries are read: a longer list is somebody's play."""

Address = IPv4Address | IPv6Address
Scope = Any


class Origin(NamedTuple):
    """Where a request comes from. ``secure``: the client spoke TLS with us or with the outermost of our proxies."""

    address: str
    secure: bool


def client_address(scope: Scope, settings: Settings) -> str:
    """The client's IP address in its shortest form; ``unknown`` when it has none."""
    return origin_of(scope, settings).address


def origin_of(scope: Scope, settings: Settings) -> Origin:
    """The client's address and whether it came by TLS."""
    client, secure = scope.get("client"), scope.get("scheme") == "https"
    if client is None:
        return Origin(UNKNOWN, secure)
    if not settings.trusted_proxies:
        return Origin(client[0], secure)
    trusted = _networks(settings.trusted_proxies)
    here = _address(client[0])
    if here is None or not _is_in(here, trusted):
        return Origin(client[0], secure)
    told = _listed(scope, b"x-forwarded-for")
    hops = 1
    for text in reversed(told[-MOST_HOPS:]):
        found = _address(text)
        if found is None:
            break  # who wrote this is no proxy of ours, or is broken: nothing left of it is believed
        here = found
        if not _is_in(found, trusted):
            break
        hops += 1
    schemes = _listed(scope, b"x-forwarded-proto")
    if schemes:
        secure = schemes[-min(hops, len(schemes))].lower() == "https"
    return Origin(str(here), secure)


def network_of(address: str) -> str:
    """The address without what tells neighbours apart: its /24, or its /48."""
    found = _address(address)
    if found is None:
        return UNKNOWN
    return str(ip_network((found, 24 if found.version == 4 else 48), strict=False))


def household_of(address: str) -> str:
    """What one client may change at will: an IPv4 address as it is, of an IPv6 address the /64 that is handed out as a whole."""
    found = _address(address)
    return address if found is None or found.version == 4 else str(ip_network((found, 64), strict=False))


def _listed(scope: Scope, wanted: bytes) -> list[str]:
    lines = [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]
    return [part.strip() for part in ",".join(lines).split(",")] if lines else []


@lru_cache(maxsize=8)
def _networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())


def _is_in(address: Address, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    return any(address in network for network in networks)


@lru_cache(maxsize=4096)
def _address(text: str) -> Address | None:
    """An address, with or without a port; None when it is none."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped
    return found

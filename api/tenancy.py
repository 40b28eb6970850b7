"""Whose a request is that brings no credential: of the tenant it names, or its host's, or the installation's only one."""

from __future__ import annotations

from uuid import UUID

from fastapi import Request

from api.edge import edge_of
from api.problems import Problem

HEADER = "Holdbook-Tenant"


async def tenant_of(request: Request) -> UUID:
    """The tenant that the request means; whether there is one of this id is another question.

    The header counts before the host name, the host name before the default. Naming a tenant gives nobody any right in it.
    Raises the problem auth.tenant_required.
    """
    settings = edge_of(request).settings
    named = request.headers.getlist(HEADER)
    if len(named) > 1:
        raise Problem("auth.tenant_required")
    if named:
        try:
            return UUID(named[0])
        except ValueError:
            raise Problem("auth.tenant_required") from None
    found = settings.tenant_hosts.get(host_name(request.headers.get("host", ""))) or settings.default_tenant
    if found is None:
        raise Problem("auth.tenant_required")
    return found


def host_name(host: str) -> str:
    """The Host header without its port, in lower case; an IPv6 address keeps its brackets."""
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() and not port.endswith("]") else host).rstrip(".").lower()

"""One attempt to hand one message to one address, over HTTP.

Nothing that a receiver does can hurt: all of it together has a limit in time, no redirect is followed, no proxy of the
environment is used, and of what it answers nothing is kept but the status and when it wants to be asked again. Each attempt has
a connection of its own, because one that was opened and verified for one name must not carry messages for another.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import httpx

from adapters.webhooks.addresses import Addresses, AddressRefused, literal

TIMEOUT_SECONDS = 15.0
READ_BYTES = 4096
"""Of the body, which a polite client does not cut off; it is forgotten as it comes."""
MOST_ADDRESSES = 3
USER_AGENT = "Holdbook-Webhooks/1"

Trouble = Literal["status", "redirect", "timeout", "connection", "tls", "dns", "address", "protocol"]


class Answer(NamedTuple):
    """What became of an attempt. Without ``trouble`` the receiver has the message."""

    status: int | None
    trouble: Trouble | None
    retry_after: float | None = None
    """In seconds, when the receiver said so."""

    @property
    def gone(self) -> bool:
        """Whether the receiver wants nothing ever again."""
        return self.status == 410


class Sender:
    """Sends by the rules of :mod:`adapters.webhooks.addresses`."""

    def __init__(self, addresses: Addresses, *, tls: ssl.SSLContext | None = None, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._addresses, self._timeout = addresses, timeout_seconds
        self._tls = tls or httpx.create_ssl_context()

    async def send(self, url: str, headers: Mapping[str, str], body: bytes, at: datetime) -> Answer:
        """Post a message; never raises for what the network or the receiver does. ``at`` is now, for dates in Retry-After."""
        try:
            async with asyncio.timeout(self._timeout):
                addresses = await self._addresses.of(url)
                for last, address in enumerate(addresses[:MOST_ADDRESSES], 1 - min(len(addresses), MOST_ADDRESSES)):
                    try:
                        return await self._post(_request(url, address, headers, body), at)
                    except httpx.ConnectError:
                        if not last:
                            raise
        except AddressRefused:
            return Answer(None, "address")
        except (TimeoutError, httpx.TimeoutException):
            return Answer(None, "timeout")
        except httpx.ConnectError as error:
            return Answer(None, "tls" if _of_tls(error) else "connection")
        except httpx.NetworkError:
            return Answer(None, "connection")
        except (httpx.HTTPError, httpx.InvalidURL):
            return Answer(None, "protocol")
        except (OSError, UnicodeError):  # a label that is too long for DNS is a UnicodeError
            return Answer(None, "dns")
        raise AssertionError("there is at least one address")

    async def _post(self, request: httpx.Request, at: datetime) -> Answer:
        async with httpx.AsyncClient(verify=self._tls, trust_env=False, follow_redirects=False, timeout=self._timeout) as client:
            response = await client.send(request, stream=True)
            try:
                return _answer(response, at)
            finally:
                await _read_some(response)
                await response.aclose()


def _request(url: str, address: str, headers: Mapping[str, str], body: bytes) -> httpx.Request:
    """The request to one of the host's addresses. Name and certificate that count are still the host's."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port is not None else ""
    named = f"[{host}]" if ":" in host else host
    extensions = {} if literal(host) is not None else {"sni_hostname": host.rstrip(".")}
    target = httpx.URL(scheme=parts.scheme, host=address, port=parts.port, raw_path=_target(url))
    told = {"Host": named + port, "User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
    return httpx.Request("POST", target, headers=told, content=body, extensions=extensions)


def _target(url: str) -> bytes:
    parts = urlsplit(url)
    return ((parts.path or "/") + (f"?{parts.query}" if parts.query else "")).encode("ascii")


def _answer(response: httpx.Response, at: datetime) -> Answer:
    if response.is_success:
        return Answer(response.status_code, None)
    trouble: Trouble = "redirect" if response.is_redirect else "status"
    return Answer(response.status_code, trouble, retry_after(response.headers.get("Retry-After"), at))


async def _read_some(response: httpx.Response) -> None:
    """Whatever goes wrong here: the status was the answer."""
    with contextlib.suppress(httpx.HTTPError, TimeoutError):
        async with asyncio.timeout(1):
            size = 0
            async for chunk in response.aiter_raw(READ_BYTES):
                size += len(chunk)
                if size >= READ_BYTES:
                    return


def retry_after(value: str | None, at: datetime) -> float | None:
    """Seconds from ``at`` (RFC 9110, 10.2.3: seconds or a date); None for what is neither, or past."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        seconds = (parsedate_to_datetime(value) - at).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return seconds if seconds > 0 else None


def _of_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False

"""Where messages may go: whatever is not the public Internet is refused, in every notation, and whenever it turns up."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.webhooks.addresses import Addresses, AddressRefused, is_public

REFUSED = [
    "0.0.0.0",  # noqa: S104  # nothing is bound here
    "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.0.1", "169.254.169.254",
    "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255", "198.51.100.7",
    "203.0.113.9", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::10.0.0.1", "64:ff9b::127.0.0.1",
    "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "2002:c0a8:101::1", "2002:a9fe:a9fe::", "3fff::1", "5f00::1",
    "fc00::1", "fd12:3456::1", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "4000::1",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0", "169.253.255.255",
    "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0", "223.255.255.255", "2606:4700::1111", "2a00:1450::1",
    "::ffff:1.1.1.1", "64:ff9b::1.1.1.1", "2002:101:101::1",
]  # fmt: skip


def url(host: str) -> str:
    return f"https://[{host}]/in" if ":" in host else f"https://{host}/in"


class Resolver:
    """Answers each question with the next of its lists, the last one for ever, and counts the questions."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers, self.asked = list(answers), 0

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.mark.parametrize("address", REFUSED)
async def test_an_address_that_is_not_public_is_refused_as_a_literal_and_behind_a_name(address: str) -> None:
    assert not is_public(ip_address(address)) or "%" in address

    with pytest.raises(AddressRefused):
        await Addresses(resolve=Resolver([address])).of(url("hooks.example.com"))
    if "%" not in address:
        with pytest.raises(AddressRefused):
            Addresses().check(url(address))


@pytest.mark.parametrize("address", PUBLIC)
async def test_a_public_address_is_taken(address: str) -> None:
    Addresses().check(url(address))

    assert await Addresses(resolve=Resolver([address])).of(url("hooks.example.com")) == [str(ip_address(address))]


@given(st.ip_addresses())
def test_what_is_taken_the_standard_library_calls_global(address: object) -> None:
    found = ip_address(str(address))
    if is_public(found):
        inner = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
        nat64 = str(found).startswith("64:ff9b::")
        assert (inner or found).is_global or nat64
        assert not found.is_multicast


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "127.0.1", "0x7f.1", "1.1.1.1.", "example.123", "1.2.3.4.5"]
)
async def test_a_number_in_an_old_notation_is_refused_without_asking(host: str) -> None:
    resolver = Resolver(["1.1.1.1"])

    with pytest.raises(AddressRefused):
        await Addresses(resolve=resolver).of(url(host))
    assert resolver.asked == 0


async def test_one_private_address_among_several_refuses_them_all() -> None:
    with pytest.raises(AddressRefused):
        await Addresses(resolve=Resolver(["1.1.1.1", "10.0.0.1"])).of(url("hooks.example.com"))


async def test_a_name_without_addresses_is_an_error_and_no_licence() -> None:
    with pytest.raises(OSError, match="no address"):
        await Addresses(resolve=Resolver([])).of(url("hooks.example.com"))


async def test_localhost_is_refused_by_the_systems_own_resolver() -> None:
    with pytest.raises(AddressRefused):
        await Addresses().of(url("localhost"))


async def test_http_is_refused_unless_allowed() -> None:
    with pytest.raises(AddressRefused, match="https"):
        Addresses().check("http://hooks.example.com/")
    Addresses(allow_http=True).check("http://hooks.example.com/")
    with pytest.raises(AddressRefused):
        Addresses(allow_http=True).check("ftp://hooks.example.com/")


async def test_private_addresses_are_taken_where_the_operator_allows_them() -> None:
    allowed = Addresses(allow_private=True, resolve=Resolver(["10.0.0.1"]))

    allowed.check(url("127.0.0.1"))
    assert await allowed.of(url("hooks.internal")) == ["10.0.0.1"]

"""Addresses are judged by what they are, however they were written or wrapped."""

from collections.abc import Callable
from ipaddress import ip_address

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from serve.fetching.address import (
    CARRIERS_V6,
    Address,
    is_public,
    is_public_or_private,
    read_address,
)
from serve.fetching.network import look_up

PUBLIC = ("8.8.8.8", "93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00::1")
PRIVATE = ("10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.9.9", "192.168.1.1", "fd12::1")
CLOSED = (
    "0.0.0.0",
    "0.1.2.3",
    "127.0.0.1",
    "127.255.255.254",
    "100.64.0.1",  # CGNAT
    "100.100.100.200",  # Alibaba's metadata
    "168.63.129.16",  # Azure's platform server
    "169.254.169.254",
    "169.254.170.2",  # credentials of ECS tasks
    "192.0.0.192",  # Oracle's metadata
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",  # IPv4-compatible
    "::ffff:0:7f00:1",  # IPv4-translated
    "64:ff9b:1::1",  # NAT64 of one's own
    "100::1",  # discard-only
    "2001::1",  # Teredo
    "2001:0:7f00:1::",
    "2001:2::1",  # benchmarking
    "2001:10::1",  # ORCHID
    "2001:db8::1",
    "2002:7f00:1::",  # 6to4 of 127.0.0.1
    "2002:a00:1::",
    "3fff::1",
    "5f00::1",
    "fd00:ec2::254",
    "fd00:c1::a9fe:a9fe",
    "fd20:ce::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
)
WRAPPERS = (lambda v4: f"::ffff:{v4}", lambda v4: f"64:ff9b::{v4}")


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_open(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize("address", [*CLOSED, *PRIVATE])
def test_everything_special_is_closed(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", [a for a in (*PUBLIC, *CLOSED, *PRIVATE) if ":" not in a])
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_ipv4_inside_ipv6_is_judged_as_itself(address: str, wrap: Callable[[str], str]) -> None:
    wrapped = ip_address(wrap(address))
    assert is_public(wrapped) == is_public(ip_address(address))
    assert is_public_or_private(wrapped) == is_public_or_private(ip_address(address))


@pytest.mark.parametrize("address", [*PUBLIC, *PRIVATE])
def test_private_networks_open_where_the_configuration_says_so(address: str) -> None:
    assert is_public_or_private(ip_address(address))


@pytest.mark.parametrize("address", CLOSED)
def test_loopback_link_local_and_metadata_never_open(address: str) -> None:
    assert not is_public_or_private(ip_address(address))


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_nothing_the_standard_library_calls_special_is_open(address: Address) -> None:
    assume(not any(address in network for network in CARRIERS_V6))
    special = address.is_private or address.is_loopback or address.is_link_local
    special = special or address.is_multicast or address.is_reserved or address.is_unspecified
    assert not (special and is_public(address))


@pytest.mark.parametrize(
    "spelling", ["127.0.0.1", "2130706433", "0x7f000001", "0x7f.1", "017700000001", "127.1", "0"]
)
def test_odd_spellings_resolve_to_what_they_mean(spelling: str) -> None:
    found = look_up(spelling)
    assert found
    assert not any(is_public(ip_address(address)) for address in found)


@pytest.mark.parametrize("host", ["a..b", f"{'x' * 80}.invalid"])
def test_hosts_that_cannot_exist_resolve_to_nothing(host: str) -> None:
    assert look_up(host) == ()


@pytest.mark.parametrize("answer", ["", "name.example", "fe80::1%eth0", "1.2.3", "1.2.3.4/8"])
def test_answers_that_are_no_plain_address_are_none(answer: str) -> None:
    assert read_address(answer) is None

"""Which addresses may be connected to: judged by number, never by how the name was spelled."""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
AddressRule = Callable[[Address], bool]

# IANA IPv4 Special-Purpose Address Registry (2025-10), multicast, and Azure's platform server,
# which hands out a machine's secrets from a number that looks public.
CLOSED_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",
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
)
# Everything public in IPv6 is global unicast (RFC 4291, 2.4); what is special inside of it:
# IETF assignments with Teredo and ORCHID, documentation, 6to4, documentation again (RFC 9637).
UNICAST_V6 = IPv6Network("2000::/3")
CLOSED_V6 = tuple(
    IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
# Both carry an IPv4 address in their last 32 bits, and the packet goes there: IPv4-mapped
# (RFC 4291, 2.5.5.2), and NAT64's well-known prefix (RFC 6052), which DNS64 answers for every
# IPv4-only name in an IPv6-only cluster.
CARRIERS_V6 = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))

PRIVATE_V4 = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
PRIVATE_V6 = IPv6Network("fc00::/7")
# Metadata and platform services of AWS, Oracle and Google inside the private range.
METADATA_V6 = tuple(map(IPv6Network, ("fd00:ec2::/32", "fd00:c1::/32", "fd20:ce::/32")))


def read_address(text: str) -> Address | None:
    """The address a resolver answered; None when it is none, or only means something on a link."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return None
    return address


def is_public(address: Address) -> bool:
    """Whether anyone on the internet could reach the same machine under this address."""
    address = _carried(address)
    if isinstance(address, IPv4Address):
        return not any(address in network for network in CLOSED_V4)
    return address in UNICAST_V6 and not any(address in network for network in CLOSED_V6)


def is_public_or_private(address: Address) -> bool:
    """is_public, or one of the networks people number themselves; loopback, link-local, shared
    (CGNAT) and metadata addresses stay closed."""
    carried = _carried(address)
    if isinstance(carried, IPv4Address):
        is_private = any(carried in network for network in PRIVATE_V4)
    else:
        is_metadata = any(carried in network for network in METADATA_V6)
        is_private = carried in PRIVATE_V6 and not is_metadata
    return is_private or is_public(address)


def _carried(address: Address) -> Address:
    if isinstance(address, IPv6Address) and any(address in net for net in CARRIERS_V6):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address

"""Addresses that are not connected to: those of one's own network, to which a list of URLs from outside must not lead.

What counts is the address of the socket that is connected, not what a name meant a moment before: so neither a
redirect nor a name that means another address the second time gets around it.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Any

#: Begins what is said of an address that is not connected to.
REFUSED = "address refused"
# Not of the public internet either, whatever `ipaddress` of this or that Python knows: protocol assignments, where
# Oracle's cloud has its metadata (RFC 6890), documentation (RFC 9637), site-local ones (RFC 3879), and the platform
# that Azure's machines reach at a public address (learn.microsoft.com, "What is IP address 168.63.129.16?").
_RESERVED = tuple(
    ipaddress.ip_network(each)
    for each in ("192.0.0.0/24", "3fff::/20", "fec0::/10", "64:ff9b:1::/48", "168.63.129.16/32")
)
# That of NAT64 (RFC 6052): an IPv4 address stands in its last 32 bits.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class RefusedAddressError(OSError):
    """A connection to an address that is not connected to."""

    def __init__(self, address: str, kind: str) -> None:
        super().__init__(errno.EACCES, f"{REFUSED}: {address} is {kind}")


def kind_of(text: str) -> str | None:
    """What an address is that is not of the public internet, in a word; None of one that is.

    Parameters
    ----------
    text
        An address of IPv4 or IPv6. IPv4 addresses within IPv6 ones (mapped, 6to4, Teredo, NAT64) count.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return kind_of(str(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)))
        if address.ipv4_mapped is not None:
            return kind_of(str(address.ipv4_mapped))
        teredo = None if address.teredo is None else address.teredo[1]
        within = address.sixtofour or teredo
        if within is not None and (kind := kind_of(str(within))) is not None:
            return kind
    for kind in ("loopback", "link_local", "multicast", "unspecified"):
        if getattr(address, f"is_{kind}"):
            return kind.replace("_", "-")
    if address.is_private:
        return "private"
    known = address.is_reserved or any(address in network for network in _RESERVED)
    return None if address.is_global and not known else "reserved"


def public_socket(info: Any) -> socket.socket:
    """A socket for an address that is about to be connected to, as `aiohttp.TCPConnector` asks for one.

    Parameters
    ----------
    info
        As `socket.getaddrinfo` gives it: family, type, protocol, name and address.

    Raises
    ------
    RefusedAddressError
        It is not of the public internet.
    """
    family, kind, protocol, _, address = info
    said = kind_of(str(address[0]))
    if said is not None:
        raise RefusedAddressError(str(address[0]), said)
    return socket.socket(family, kind, protocol)

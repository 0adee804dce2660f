# SPDX-License-Identifier: Apache-2.0
"""A host and a port: as people write them, and as a client on this machine reaches them."""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

MAX_PORT: Final = 65535
# The sidecar's, and that of serve() in the application: both run on one host, or in one pod. Browsers refuse 10080.
SIDECAR_PORT: Final = 10079
APPLICATION_PORT: Final = 10081
# An IPv6 address, or a host name of labels of at most 63 characters, or nothing; and a port.
_ADDRESS: Final = re.compile(
    r"(?:\[([0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|((?:[\w-]{1,63}\.)*[\w-]{1,63}\.?|)):([0-9]{1,5})", re.ASCII
)
# Address of all interfaces → address to connect to. `localhost` is tried as IPv6 and as IPv4.
_LOOPBACK: Final = {"": "localhost", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - it is replaced, not bound


class Address(NamedTuple):
    """A host and port to listen on; an empty host means every interface, IPv6 and IPv4."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse ``host:port``, ``:port`` or ``[ipv6]:port``; raises ValueError, which names the wrong part."""
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise ValueError("expected host:port, :port or [ipv6]:port")
        if match[1]:
            try:
                ipaddress.IPv6Address(match[1])
            except ValueError:
                raise ValueError("the text in brackets is not an IPv6 address") from None
        if int(match[3]) > MAX_PORT:
            raise ValueError(f"a port is at most {MAX_PORT}")
        return cls(match[1] or match[2], int(match[3]))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def local(self) -> Address:
        """The address to which a client on this machine connects."""
        return self._replace(host=_LOOPBACK.get(self.host, self.host))

# SPDX-License-Identifier: Apache-2.0
"""Addresses: as people write them, and as a client on this machine reaches them."""

from __future__ import annotations

import pytest

from sqlalchemy_pool_exporter.address import Address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":10079", Address("", 10079)),
        ("127.0.0.1:0", Address("127.0.0.1", 0)),
        ("db-1.example.org:65535", Address("db-1.example.org", 65535)),
        ("db.:1", Address("db.", 1)),
        ("[::1]:80", Address("::1", 80)),
        ("[fe80::1%eth0]:80", Address("fe80::1%eth0", 80)),
    ],
)
def test_address(text: str, expected: Address) -> None:
    """An address is parsed, and its text form is the parsed text."""
    assert Address.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost",
        "10079",
        "::1:80",
        "[::1]",
        "[]:80",
        "[::g]:80",
        ":65536",
        ":-1",
        ": 80",
        "a b:80",
        ":٣",
        "a..b:80",
        ".a:80",
        f"{'a' * 64}:80",
    ],
)
def test_no_address(text: str) -> None:
    """A malformed address is refused, and the error shows the expected form."""
    with pytest.raises(ValueError, match=r"expected host:port|not an IPv6 address|at most 65535"):
        Address.parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":80", "localhost:80"),
        ("0.0.0.0:80", "127.0.0.1:80"),
        ("[::]:80", "[::1]:80"),
        ("10.0.0.1:80", "10.0.0.1:80"),
    ],
)
def test_local(text: str, expected: str) -> None:
    """A client on this machine reaches a server on every interface at the loopback address of the same family."""
    assert expected == str(Address.parse(text).local)

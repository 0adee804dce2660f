# SPDX-License-Identifier: Apache-2.0
"""Errors of the driver and the server become reasons, without their messages."""

from __future__ import annotations

import ssl

import pytest

from sqlalchemy_pool_exporter.sidecar.probe.errors import classify_error

errors = pytest.importorskip("asyncmy.errors")
pytestmark = pytest.mark.newest


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (1040, "too_many_connections"),
        (1203, "too_many_connections"),
        (1226, "too_many_connections"),
        (1044, "authentication"),
        (1045, "authentication"),
        (1130, "authentication"),
        (1698, "authentication"),
        (1862, "authentication"),
        (3118, "authentication"),
        (1049, "configuration"),
        (1142, "configuration"),
        (1227, "configuration"),
        (2059, "configuration"),
        (1047, "unavailable"),
        (1053, "unavailable"),
        (1129, "unavailable"),
        (1317, "timeout"),
        (1969, "timeout"),
        (3024, "timeout"),
        (3159, "tls"),
        (1927, "disconnected"),
        (2006, "disconnected"),
        (2013, "disconnected"),
        (4031, "disconnected"),
        (1064, "other"),
    ],
)
def test_numbers(number: int, reason: str) -> None:
    """The number tells the reason; the text has the number and nothing of the message."""
    found = classify_error(errors.OperationalError(number, "for user 'hunter2'@'10.0.0.7'"))
    assert reason == found.reason
    assert f"(OperationalError {number})" in found.text
    assert "hunter2" not in found.text


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (ConnectionRefusedError(111, "hunter2"), "connect"),
        (ssl.SSLError(1, "hunter2"), "tls"),
        (TimeoutError("hunter2"), "timeout"),
    ],
)
def test_what_the_system_says_counts(cause: OSError, reason: str) -> None:
    """The driver wraps an error of the system in one of its own; the system's is classified."""
    error = errors.OperationalError(2003, "Can't connect to 'hunter2'")
    error.__cause__ = cause
    found = classify_error(error)
    assert reason == found.reason
    assert "hunter2" not in found.text


def test_an_error_without_a_number() -> None:
    """What the driver raises without a number is other."""
    assert ("other", "the driver reports an error (InternalError)") == classify_error(
        errors.InternalError("hunter2")
    )

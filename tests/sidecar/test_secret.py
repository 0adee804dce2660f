# SPDX-License-Identifier: Apache-2.0
"""Only `reveal()` shows a secret."""

from __future__ import annotations

import pytest

from sqlalchemy_pool_exporter.sidecar.probe.dsn import DSN
from sqlalchemy_pool_exporter.sidecar.secret import Secret

TEXT = "postgresql://user:hunter2-correct-horse@host/db"


@pytest.mark.parametrize("kind", [Secret, DSN])
def test_secret_shows_itself_only_when_asked(kind: type[Secret]) -> None:
    """Every text form of a secret, alone or in a list, is redacted."""
    secret = kind(TEXT)
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret!r:>10}", repr([secret])):
        assert "hunter2" not in shown
    assert (secret, hash(secret)) == (kind(TEXT), hash(kind(TEXT)))
    assert secret != kind("postgresql://other/db")
    assert secret != TEXT
    assert TEXT == secret.reveal()

# SPDX-License-Identifier: Apache-2.0
"""A MariaDB for the tests of the probe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import mariadb

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="package")
def one_maria() -> Iterator[mariadb.MariaDB]:
    """Run a MariaDB for the tests of this package."""
    with mariadb.running() as server:
        yield server


@pytest.fixture
def maria(one_maria: mariadb.MariaDB) -> mariadb.MariaDB:
    """Return the server, running, without sessions of the application, and as it was configured."""
    one_maria.start()
    one_maria.set(**mariadb.DEFAULTS)
    one_maria.end_sessions()
    return one_maria

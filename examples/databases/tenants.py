# SPDX-License-Identifier: Apache-2.0
"""An engine for each tenant's database: made at its first use, closed when too many others were used since.

``TENANT_URL`` is postgresql+psycopg://…/{tenant}.
"""

import os
import threading
from collections import OrderedDict

from sqlalchemy import Engine, create_engine

from sqlalchemy_pool_exporter import instrument

LIMIT = 50  # engines at one time; LIMIT times (pool_size + max_overflow) connections at most


class Tenants:
    """The engines of the tenants that were used last. All have one pool name: their series are sums.

    A name for each tenant would be a set of series for each. ``sqlalchemy_pool_instances`` says how many engines exist.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._engines: OrderedDict[str, Engine] = OrderedDict()
        self._lock = threading.Lock()

    def engine(self, tenant: str) -> Engine:
        with self._lock:
            engine = self._engines.pop(tenant, None) or self._make(tenant)
            self._engines[tenant] = engine  # the last is the one that was used last
            unused = self._engines.popitem(last=False)[1] if len(self._engines) > self._limit else None
        if unused is not None:
            unused.dispose()  # connections that are still held close when they are returned
        return engine

    def _make(self, tenant: str) -> Engine:
        engine = create_engine(
            os.environ["TENANT_URL"].replace("{tenant}", tenant),
            pool_size=1,
            max_overflow=4,
            connect_args={"application_name": "orders"},
        )
        instrument(engine, name="tenants")
        return engine

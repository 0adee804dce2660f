# SPDX-License-Identifier: Apache-2.0
"""A copy of an instrumented pool is what a copy of the bare pool is."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.pool import AssertionPool, NullPool, QueuePool, SingletonThreadPool, StaticPool

from sqlalchemy_pool_exporter import instrument
from tests.support.fakes import connect
from tests.support.samples import RegistrySamples

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry
    from sqlalchemy.pool import Pool


class OwnState(NullPool):
    """A pool that says itself what its state is."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "copied": True}


class OwnReduce(NullPool):
    """A pool that says itself how it is made anew."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (OwnReduce, (connect,))


POOLS = (QueuePool, NullPool, StaticPool, SingletonThreadPool, AssertionPool, OwnState, OwnReduce)


def attempt(copier: Callable[[Any], Any], pool: Pool) -> tuple[object, object]:
    """Return the class and the attributes of a copy, or the error."""
    try:
        copied = copier(pool)
    except Exception as error:  # noqa: BLE001 - any error
        return type(error), str(error)
    return type(copied), sorted(vars(copied))


def pickled(pool: Pool) -> Any:
    return pickle.loads(pickle.dumps(pool))  # noqa: S301 - our own


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, pickled], ids=["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize("kind", POOLS)
def test_a_copy_is_the_same_as_without(
    kind: type[Pool], copier: Callable[[Any], Any], registry: CollectorRegistry
) -> None:
    """A copy has the attributes of a copy of the bare pool, or fails as that does, before and after close()."""
    pool = kind(connect)
    pool.connect().close()
    bare = attempt(copier, pool)
    with instrument(pool, registry=registry):
        assert attempt(copier, pool) == bare
    assert attempt(copier, pool) == bare
    assert "__reduce_ex__" not in vars(pool)


@pytest.mark.parametrize("kind", [NullPool, OwnState, OwnReduce])
def test_a_copy_connects_for_itself(kind: type[Pool], registry: CollectorRegistry) -> None:
    """A copy calls its own creator, and its checkouts are not those of the pool."""
    pool = kind(connect)
    handle = instrument(pool, registry=registry)
    copied: Any = copy.copy(pool)
    made = []

    def create(*_: object) -> Any:
        made.append(connect())
        return made[-1]

    copied._creator = create
    copied._invoke_creator = create
    proxy = copied.connect()
    assert [proxy.dbapi_connection] == made
    proxy.invalidate(soft=True)
    proxy.close()
    assert RegistrySamples(registry).counters(handle.name) == {}


def test_an_attribute_that_the_application_set(registry: CollectorRegistry) -> None:
    """A method that the application had replaced on the pool is in the copy, too."""
    pool: Any = NullPool(connect)
    own = pool.connect
    pool.connect = partial(own)
    mine = pool.connect
    with instrument(pool, registry=registry):
        assert copy.copy(pool).connect is mine
    assert pool.connect is mine

# SPDX-License-Identifier: Apache-2.0
"""The label of a pool follows from all pools that are known, and not from their order."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from sqlalchemy_pool_exporter.segment.identity import Identity, Variant, read, written
from sqlalchemy_pool_exporter.segment.label import labels

INFO = {"pool_class": "QueuePool", "dialect": "", "driver": ""}
QUEUE = Variant("QueuePool", 5.0, 10.0, 30.0, None, pre_ping=False)
NULL = Variant("NullPool", None, None, None, None, pre_ping=False)

_limits = st.one_of(st.none(), st.sampled_from((0.0, 0.5, 5.0, 10.0, 1e6)))
VARIANTS = st.builds(
    Variant,
    st.sampled_from(("QueuePool", "NullPool", "A-B")),
    _limits,
    _limits,
    _limits,
    _limits,
    st.booleans(),
)
# Among them names that look like a name with a suffix.
NAMES = st.sampled_from(("orders@db", "orders@db-NullPool", "orders@db-5+10", "orders@db-A", "billing"))
IDENTITIES = st.lists(st.builds(Identity, NAMES, st.one_of(st.none(), VARIANTS)), max_size=8)


def of(*variants: Variant) -> list[str]:
    identities = [Identity("orders@db", variant) for variant in variants]
    return [labels(identities)[identity] for identity in identities]


def test_alone() -> None:
    """A pool alone has the default name, whatever its limits."""
    assert of(QUEUE) == of(NULL) == ["orders@db"]


def test_what_differs() -> None:
    """The suffix says in what the pools differ: the class, then the size, then any other limit."""
    assert of(QUEUE, NULL) == ["orders@db-QueuePool", "orders@db-NullPool"]
    small = QUEUE._replace(size=2.0, max_overflow=0.0)
    assert of(QUEUE, small) == ["orders@db-5+10", "orders@db-2+0"]
    assert of(QUEUE, QUEUE._replace(timeout=2.5)) == ["orders@db-timeout=30", "orders@db-timeout=2.5"]
    assert of(QUEUE, QUEUE._replace(recycle=1800.0)) == ["orders@db-recycle=off", "orders@db-recycle=1800"]
    assert of(QUEUE, QUEUE._replace(pre_ping=True)) == ["orders@db-pre_ping=off", "orders@db-pre_ping=on"]
    assert of(QUEUE, small, NULL) == [
        "orders@db-QueuePool-5+10",
        "orders@db-QueuePool-2+0",
        "orders@db-NullPool",
    ]
    assert of(QUEUE, QUEUE._replace(max_overflow=None)) == ["orders@db-5+10", "orders@db-5+unlimited"]


@given(IDENTITIES, st.randoms(use_true_random=False))
def test_order_does_not_matter(identities: list[Identity], dice: object) -> None:
    """The labels are the same in any order."""
    shuffled = list(identities)
    dice.shuffle(shuffled)  # type: ignore[attr-defined]
    assert labels(shuffled) == labels(identities)


@example(
    [Identity("orders@db", NULL._replace(max_overflow=0.0)), Identity("orders@db", NULL)],
)
@given(IDENTITIES)
def test_labels_are_unique(identities: list[Identity]) -> None:
    """A given name is the label. Pools that differ have different labels, except by one name that was given."""
    found = labels(identities)
    for identity, label in found.items():
        assert identity.variant is not None or label == identity.name
        assert label.startswith(identity.name)
    by_default = {identity: label for identity, label in found.items() if identity.variant is not None}
    assert len(set(by_default.values())) == len(by_default)
    suffixed = {label for identity, label in by_default.items() if label != identity.name}
    assert not suffixed & {identity.name for identity in identities}


@given(IDENTITIES)
def test_written_and_read(identities: list[Identity]) -> None:
    """A description in a file is read as it was written."""
    for identity in identities:
        description = read(written(identity, INFO, has_overflow=True) + b"\0" * 9)
        assert (description.identity, description.info, description.has_overflow) == (identity, INFO, True)

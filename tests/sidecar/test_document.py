# SPDX-License-Identifier: Apache-2.0
"""An unreadable, recursive, exponential or fuzzed configuration file is read, or refused with a ConfigError."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sqlalchemy_pool_exporter.errors import ConfigError
from sqlalchemy_pool_exporter.sidecar.config import Config, load
from sqlalchemy_pool_exporter.sidecar.document import MAX_BYTES
from tests.support.config_files import SHIPPED, all_options, faults

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("environment")


def test_aliases_cannot_explode(given_file: Callable[[str], Path]) -> None:
    """A file whose aliases expand to billions of nodes is refused quickly."""
    levels = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20))
    path = given_file(f"a0: &a0 [1]\n{levels}databases: *a19\n")
    assert any("databases[8]: expected a mapping, got a list" in fault for fault in faults(path))


def test_a_file_that_contains_itself(given_file: Callable[[str], Path]) -> None:
    """An alias of a node that contains the alias is refused, not followed."""
    assert faults(given_file("databases: &a [*a]"))
    assert faults(given_file("&a {web: *a}"))


def test_a_deeply_nested_file(given_file: Callable[[str], Path]) -> None:
    """A file of any depth is refused with a message: reading the values needs a deeper stack than parsing."""
    for depth in range(100, 600, 20):
        (fault,) = faults(given_file("[" * depth + "]" * depth))
        assert fault in ("line 1: expected a mapping, got a list", "not YAML: nested too deeply")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"web: \xff", "byte 5 is not UTF-8"),
        (b"#" * (MAX_BYTES + 1), f"longer than {MAX_BYTES} bytes"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, reason: str) -> None:
    """The error for a missing, binary or huge file names the file and the reason."""
    path = tmp_path / "exporter.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(f"cannot read {str(path)!r}: {reason}")):
        load(path)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    """A directory instead of a file is a ConfigError."""
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    """A file that begins with a UTF-8 byte order mark is read."""
    path = tmp_path / "exporter.yaml"
    path.write_bytes(b"\xef\xbb\xbflog: {level: error}")
    assert load(path).log.level == "error"


# -------------------------------------------------------------------- fuzz

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.dates(),
    st.binary(max_size=5),
    st.sampled_from(
        [":10079", "/metrics", "info", "json", "postgresql://h/db", "require", "A", "orders", 15, 5.0]
    ),
)
_KEYS = st.sampled_from(
    [name for option in all_options() for name in re.split(r"\[\]\.|\.", option.path)]
) | st.text(max_size=5)
_TREES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=6),
    max_leaves=30,
)


def _loads_or_says_why(content: bytes, directory: Path) -> None:
    path = directory / "fuzzed.yaml"
    path.write_bytes(content)
    try:
        config = load(path)
    except ConfigError as error:
        assert str(path) in str(error)  # noqa: PT017 - one of two outcomes
    else:
        assert isinstance(config, Config)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory that all examples of a property share."""
    return tmp_path_factory.mktemp("fuzz")


@settings(deadline=None)
@given(tree=_TREES)
def test_any_tree(tree: object, directory: Path) -> None:
    """Loading any YAML gives a configuration or a ConfigError."""
    _loads_or_says_why(yaml.safe_dump(tree).encode(), directory)


@settings(deadline=None)
@given(text=st.text(st.sampled_from("-:?&*!|>%@`'\"{}[],#<=~ \n\tabw0.1"), max_size=60) | st.text())
@example(text="? ? ?\n- !!int x\n")
@example(text="!!timestamp 2020-99-99")
@example(text="!!float 1:2:x")
@example(text="web: !!int ''")
@example(text="web: {max_request_bytes: !!int ''}")
@example(text="web: {max_request_bytes: 1:99999999999999999999}")
@example(text="= : =")
def test_any_text(text: str, directory: Path) -> None:
    """Loading any text gives a configuration or a ConfigError."""
    _loads_or_says_why(text.encode("utf-8", "surrogatepass"), directory)


@settings(deadline=None, max_examples=50)
@given(position=st.integers(0, len(SHIPPED.read_bytes()) - 1), byte=st.binary(min_size=1, max_size=3))
def test_any_damage_to_the_shipped_file(position: int, byte: bytes, directory: Path) -> None:
    """Loading a damaged copy of the shipped file gives a configuration or a ConfigError."""
    content = SHIPPED.read_bytes()
    _loads_or_says_why(content[:position] + byte + content[position + 1 :], directory)

# SPDX-License-Identifier: Apache-2.0
"""The wheel's bundled files equal the repository's, and ``write()`` writes files into the given directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sqlalchemy_pool_exporter import bundled
from sqlalchemy_pool_exporter.errors import BundleError
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.newest  # the bundled files do not depend on dependency versions


@pytest.mark.parametrize(
    "name", ["alerts.yml", "exporter.yaml", "thresholds.json", "prometheus/rules/opentelemetry.rules.yml"]
)
def test_bundled_files_are_the_repositorys(name: str) -> None:
    """The installed package has each file exactly as in ``config/``."""
    path = ROOT / "config" / name
    assert path.read_text("utf-8") == bundled.text(path.name)


def test_a_file_that_is_not_bundled_is_said_to_be_missing() -> None:
    """The error names the missing file or folder and says to install the package from a wheel."""
    with pytest.raises(BundleError, match=r"'no/such\.yml' is not bundled: install the package from a wheel"):
        bundled.text("no/such.yml")
    with pytest.raises(BundleError, match="'nowhere' is not bundled"):
        bundled.texts("nowhere")


def test_writes_into_a_directory_that_it_makes(tmp_path: Path) -> None:
    """``write()`` creates parent directories, replaces existing files, and returns the paths in order."""
    directory = tmp_path / "a" / "b"
    for content in ("old", "ö new"):
        written = bundled.write({"one": content, "two": ""}, directory)
    assert [directory / "one", directory / "two"] == written
    assert "ö new" == (directory / "one").read_text("utf-8")


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """The error names the path and the operating system's reason."""
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match=r"cannot write '.*/file/one': "):
        bundled.write({"one": ""}, tmp_path / "file")

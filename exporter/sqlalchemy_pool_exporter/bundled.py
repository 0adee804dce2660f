# SPDX-License-Identifier: Apache-2.0
"""Files that come with the wheel: rules, dashboards and the sample configuration.

The build copies them to ``bundled/`` in the package (see ``force-include`` in ``pyproject.toml``). So they have one
place in the repository, and an installed package can find them. A source checkout has no ``bundled/``.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from .errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.resources.abc import Traversable
    from pathlib import Path


def text(name: str) -> str:
    """Return the text of a bundled file, such as ``alerts.yml``.

    Raises:
        BundleError: the package was not installed from a wheel.
    """
    try:
        return _root().joinpath(*PurePosixPath(name).parts).read_text("utf-8")
    except OSError as error:
        raise BundleError(f"{name!r} is not bundled: install the package from a wheel") from error


def texts(folder: str) -> dict[str, str]:
    """Return the texts of a bundled folder, such as ``dashboards``, by file name in alphabetical order.

    Raises:
        BundleError: the package was not installed from a wheel.
    """
    try:
        names = sorted(entry.name for entry in _root().joinpath(folder).iterdir() if entry.is_file())
    except OSError as error:
        raise BundleError(f"{folder!r} is not bundled: install the package from a wheel") from error
    return {name: text(f"{folder}/{name}") for name in names}


def write(contents: Mapping[str, str], directory: Path) -> list[Path]:
    """Write each text to a file in ``directory``, which is made if necessary; return the paths.

    Raises:
        BundleError: a file cannot be written; the message names it.
    """
    written = []
    for name, content in contents.items():
        path = directory / name
        try:
            directory.mkdir(parents=True, exist_ok=True)
            path.write_text(content, "utf-8")
        except OSError as error:
            raise BundleError(f"cannot write {str(path)!r}: {error.strerror}") from error
        written.append(path)
    return written


def _root() -> Traversable:
    return files(__package__).joinpath("bundled")

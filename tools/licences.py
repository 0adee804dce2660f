# SPDX-License-Identifier: Apache-2.0
"""Fail if a licence does not allow shipping: ``python -m tools.licences SBOM`` reads a CycloneDX file.

It checks the packages that are installed beside this one in the image. It does not check the base image (Debian and
CPython), which its own makers distribute.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# SPDX identifier → why it may be shipped with an Apache-2.0 program. All of them require that their text is kept. Each
# distribution's metadata contains that text and is installed with the distribution.
ALLOWED = {
    "Apache-2.0": "the project's own",
    "BSD-2-Clause": "permissive",
    "BSD-3-Clause": "permissive",
    "ISC": "permissive",
    "MIT": "permissive",
    "PSF-2.0": "CPython's, permissive",
    "Python-2.0": "CPython's with those of its older releases, permissive",
}
# Classifiers, for releases whose metadata is older than SPDX expressions (PEP 639). Packages use this one only for
# version 2.0. A classifier that several licences share, such as "BSD License", is left out.
_CLASSIFIERS = {
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
}


def faults(sbom: dict[str, Any]) -> list[str]:
    """Return what is wrong with the licences of an SBOM's components, one line each."""
    return [
        f"{component['name']} {component.get('version', '')}: {fault}"
        for component in sbom.get("components", [])
        if (fault := _fault(list(_licences(component))))
    ]


def _fault(said: list[str]) -> str | None:
    if not said:
        return "says no licence"
    for expression in said:
        # OR is refused: we would have to say which licence we choose. No package that is shipped has an OR.
        names = re.split(r"\s+AND\s+", _CLASSIFIERS.get(expression, expression))
        if refused := [name for name in names if name.strip("() ") not in ALLOWED]:
            return f"{', '.join(refused)} is not among those that may be shipped"
    return None


def _licences(component: dict[str, Any]) -> Iterator[str]:
    for entry in component.get("licenses", []):
        yield entry.get("expression") or entry["license"].get("id") or entry["license"]["name"]


def main(arguments: list[str]) -> int:
    """Check the SBOM at the given path; return 1 if a component may not be shipped."""
    (path,) = arguments
    sbom = json.loads(Path(path).read_text())
    wrong = faults(sbom)
    for fault in wrong:
        print(f"licences: {fault}")
    if not wrong:
        print(f"licences: {len(sbom['components'])} components, all may be shipped")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: Apache-2.0
"""Refuse to ship what may not be: ``python -m tools.licences SBOM`` reads the licences of a CycloneDX file.

It is about what is installed beside the package in the image. What the image is based on, Debian and CPython, is
distributed by those who make it.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# SPDX identifier → why it may be shipped with an Apache-2.0 program. All ask for their text to be kept, and it is: in
# each distribution's metadata, which is installed with it.
ALLOWED = {
    "Apache-2.0": "the project's own",
    "BSD-2-Clause": "permissive",
    "BSD-3-Clause": "permissive",
    "ISC": "permissive",
    "MIT": "permissive",
    "PSF-2.0": "CPython's, permissive",
    "Python-2.0": "what a classifier calls the same",
}
# The classifier of releases whose metadata is older than SPDX expressions (PEP 639). One without a version, such as
# "BSD License", says too little, and is not here.
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
        # With OR one would be enough, but which one is taken is then to be said; nothing that is shipped has it.
        names = re.split(r"\s+AND\s+", _CLASSIFIERS.get(expression, expression))
        if refused := [name for name in names if name.strip("() ") not in ALLOWED]:
            return f"{', '.join(refused)} is not among those that may be shipped"
    return None


def _licences(component: dict[str, Any]) -> Iterator[str]:
    for entry in component.get("licenses", []):
        yield entry.get("expression") or entry["license"].get("id") or entry["license"]["name"]


def main(arguments: list[str]) -> int:
    """Check the SBOM at the path given; 1 if something may not be shipped."""
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

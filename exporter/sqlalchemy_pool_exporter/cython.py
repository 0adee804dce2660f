# SPDX-License-Identifier: Apache-2.0
"""What the modules ``*_cy.py`` use of Cython, for where they run interpreted.

These modules are ordinary Python. Cython compiles them where a wheel is built, and knows its own types and decorators
there by their names. Interpreted, a type is the one of Python and a decorator does nothing, whether Cython is installed
or not. Each of these modules has::

    from sqlalchemy_pool_exporter import cython

    if cython.compiled:  # never run; Cython takes the name for its own where it reads such an import
        import cython  # type: ignore[no-redef]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

compiled: Final = False

# Types.
bint = bool
double = float
Py_ssize_t = int


# Decorators.
def _same(decorated: T) -> T:
    return decorated


cclass = ccall = cfunc = final = inline = _same


def locals(**_types: Any) -> Callable[[T], T]:  # noqa: A001 - Cython's name
    """Declare the types of local variables."""
    return _same


def boundscheck(_flag: bool, /) -> Callable[[T], T]:  # noqa: FBT001 - Cython's signature
    """Check indexes of sequences and buffers, or not."""
    return _same


def cdivision(_flag: bool, /) -> Callable[[T], T]:  # noqa: FBT001 - as above
    """Divide integers as C does, which is the same for those that are not negative."""
    return _same


def wraparound(_flag: bool, /) -> Callable[[T], T]:  # noqa: FBT001 - as above
    """Let negative indexes count from the end, or not."""
    return _same

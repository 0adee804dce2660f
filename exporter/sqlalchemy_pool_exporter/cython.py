# SPDX-License-Identifier: Apache-2.0
"""What the modules ``*_cy.py`` use of Cython, for where they run interpreted.

These modules are ordinary Python. Cython compiles them where a wheel is built, and knows its own types and decorators
there by their names. Interpreted, a type is the one of Python and a decorator does nothing, whether Cython is installed
or not. Each of these modules has::

    try:
        from sqlalchemy_pool_exporter import cython
    except ImportError:  # never; Cython takes the name for its own where it reads such an import
        import cython  # type: ignore[no-redef]

With an ``if`` instead of ``try``, Cython 3.3 does not know the types of local variables. The C functions that replace
those of Python in a compiled module are in ``c_api.pxd``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

compiled: Final = False

# Types.
bint = bool
double = float
long = int
longlong = int
Py_ssize_t = int
p_double: TypeAlias = "memoryview[float]"  # noqa: PYI042 - the names are Cython's
p_uchar: TypeAlias = "memoryview[int]"  # noqa: PYI042


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

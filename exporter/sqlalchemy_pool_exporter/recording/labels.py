# SPDX-License-Identifier: Apache-2.0
"""What the application says that a thread or a task is doing, for example which route it serves."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy_pool_exporter.segment.texts import number_of

from .holders_cy import said

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Find = Callable[[], str | None]


class Label:
    """A label. ``number`` is that of its text, see ``LABEL``; 0 as long as the text is not known.

    A framework knows the route of a request only after its middlewares began, so the text may have to be looked up. A
    checkout does that until the text is known; then it reads a slot and calls nothing.

    Mutable state: both attributes.
    """

    __slots__ = ("_find", "number")

    number: int

    def __init__(self, find: Find) -> None:
        self._find = find

    def __getattr__(self, name: str) -> int:
        # The slot of ``number`` is empty.
        if name != "number":
            raise AttributeError(name)
        # Not again while it runs, since it may check a connection out.
        find, self._find = self._find, _unknown
        text = said(find)
        if not text:
            self._find = find
            return 0
        self.number = number = number_of(text)
        return number


def _unknown() -> None:
    return None


def _known(number: int) -> Label:
    label = Label(_unknown)
    label.number = number
    return label


NO_LABEL: Final = _known(0)
current_label: Final[ContextVar[Label]] = ContextVar("sqlalchemy_pool_exporter_label", default=NO_LABEL)


@contextmanager
def label(text: str | Find) -> Iterator[None]:
    """Say what this thread or task is doing, for example ``"GET /orders/{id}"``; checkouts inside show it.

    It costs nothing outside of checkouts, and follows the context: tasks that are started inside have it, too.

    Args:
        text: a route or the name of a job, without identifiers: there is room for 127 texts in a process, of 64 bytes
            each, and further ones are not shown. Anything else than a text is shown as ``str()`` does, None as nothing.
            If it is not known yet, a function that returns it, or None until it is known: a checkout calls it, until
            then.
    """
    new = Label(text) if callable(text) else _known(number_of(_shown(text)))
    before, token = current_label.get(), None
    try:
        token = current_label.set(new)
        yield
    finally:
        if token is None:  # a time limit of the application struck between the call and the store
            current_label.set(before)
        else:
            # No call may come before the reset: a time limit that strikes in it would leave the label for ever.
            try:  # noqa: SIM105 - suppress() is a call
                current_label.reset(token)
            except ValueError:
                # A framework may enter and leave a generator in different contexts, as FastAPI does with a dependency
                # that is not asynchronous. Then the context in which the label was set is gone, and the label with it.
                pass


def _shown(text: Any) -> str:
    if type(text) is str:
        return text
    return "" if text is None else said(text.__str__)

# SPDX-License-Identifier: Apache-2.0
"""Which words of a command may be shown: those that tell one process from another, and nothing that may be secret.

No list of the options that take a secret is ever complete. So the word after an option is shown only if the option is
one of those below, which the usual servers have.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LEFT_OUT: Final = "…"
# The word after these is shown.
_HARMLESS_OPTIONS: Final = re.compile(
    r"-[AQbln]|--(?:app|backlog|bind|callable|chdir|cheaper|class|concurrency|graceful-timeout|host|hostname|http"
    r"|http-socket|interface|keep-alive|limit-concurrency|limit-max-requests|log-level|loglevel|loop|max-requests"
    r"|max-requests-jitter|max-tasks-per-child|module|mules?|name|pool|port|prefetch-multiplier|processes|queues?"
    r"|root-path|socket|spooler|threads|timeout|timeout-keep-alive|worker-class|worker-connections|workers|wsgi-file)"
)
# These take no value, so the word after them is none.
_FLAGS: Final = re.compile(
    r"-[BE]|--(?:|access-log|beat|die-on-term|disable-logging|enable-threads|factory|lazy-apps|master|need-app"
    r"|no-access-log|preload|proxy-headers|reload|single-interpreter|vacuum|without-gossip|without-heartbeat"
    r"|without-mingle)"
)
# Of these characters a word may consist; code, JSON and connection strings have others.
_HARMLESS: Final = re.compile(r"[\w./:%+,-]+")
_COUNT: Final = re.compile(r"\d{1,3}")  # as in -w 4
_KEY_CHARACTERS: Final = 20  # a part of a word that is as long and has letters and digits may be an API key
_SECRET: Final = re.compile(
    r"pass|pwd|secret|token|key|auth|basic|cred|dsn|ur[il]|connect$|conn$|connection-?str|user|login|private|cookie|salt",
    re.IGNORECASE,
)
_SECRET_SHORT_OPTIONS: Final = frozenset(("-a", "-p", "-u", "-P", "-U"))


def shown_words(words: Sequence[str]) -> Iterator[str]:
    """Yield the words of a command that may be shown, and … for each other word or value.

    Hidden are URLs, words with an ``@``, values after ``=`` or attached to a short option, the word after a word that
    is by its name a secret or a user's name, or after an option that is not known to be harmless, what looks like a
    key, and what has unusual characters, as code has.
    """
    hides_next, hides_value = False, False  # the next word, whatever it is; the next one that is no option
    for word in words:
        is_option = word[:1] == "-" and len(word) > 1
        if hides_next or (hides_value and not (is_option or _COUNT.fullmatch(word))):
            hides_next = hides_value = False
            yield LEFT_OUT
            continue
        hides_next, hides_value = _hides(word, is_option=is_option)
        yield _shown(word)


def _hides(word: str, *, is_option: bool) -> tuple[bool, bool]:
    """Return whether the next word is hidden whatever it is, and whether it is if it is no option."""
    name, equals, _ = word.partition("=")
    if equals:
        return False, False
    if not is_option:
        last, _, value = name.rpartition("/")[2].partition(":")
        return not value and "." not in last and _SECRET.search(last) is not None, False
    if name[:2] == "--":
        is_secret = _SECRET.search(name) is not None
    else:
        is_secret = name in _SECRET_SHORT_OPTIONS or (len(name) > 2 and _SECRET.search(name) is not None)  # noqa: PLR2004 - a dash and a letter
    is_known = bool(_HARMLESS_OPTIONS.fullmatch(name) or _FLAGS.fullmatch(name))
    # A short option with a number or a value attached, as in -w4. Some programs have long options with one dash.
    has_value = len(name) > 2 and bool(_HARMLESS_OPTIONS.fullmatch(name[:2]) or name[2].isdigit())  # noqa: PLR2004
    return is_secret, not is_known and not has_value


def _shown(word: str) -> str:
    name, equals, _ = word.partition("=")
    is_short = name[:1] == "-" != name[1:2]
    if is_short:
        name, attached = name[:2], name[2:]
        equals = equals or attached
    if not _is_harmless(name):
        return LEFT_OUT
    return name + (f"{'' if is_short else '='}{LEFT_OUT}" if equals else "")


def _is_harmless(word: str) -> bool:
    if not _HARMLESS.fullmatch(word) or "://" in word:
        return False
    # user:password, and Authorization:…; but not package.users:app
    name, colon, _ = word.partition(":")
    if colon and _SECRET.search(name.rpartition(".")[2]):
        return False
    return not any(
        len(part) >= _KEY_CHARACTERS and re.search(r"\d", part) and re.search(r"[^\W\d]", part)
        for part in re.split(r"[/.:,]", word)
    )

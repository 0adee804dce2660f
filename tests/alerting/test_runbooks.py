# SPDX-License-Identifier: Apache-2.0
"""Runbooks, followed to the letter, work: their commands and queries, and the rules that hold for all of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.pool import QueuePool

from tests.support.incident_list import INCIDENTS
from tests.support.runbook_list import CASES
from tests.support.runbooks import INDEX, RUNBOOKS, blocks, libpq_variables, page, run_shell, to_libpq

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import pg
    from tests.support.incident_run import Played
    from tests.support.runbook_list import Case

PAGES = sorted(RUNBOOKS.glob("*.md"))

newest = pytest.mark.newest
each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


# The staged incidents.


@pytest.mark.soak
@pytest.mark.requires("prometheus", "prometheus-alertmanager", "psql", "curl")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_culprit_is_in_the_output(case: Case, incidents: Played) -> None:
    """Each query and command of a runbook, run while its incident is on, puts out what causes the incident."""
    answers = incidents.answered(case)
    assert len(answers) == sum(pattern is not None for pattern in case.patterns)
    assert [] == [
        (answer.asked, answer.pattern, answer.output) for answer in answers if not answer.has_culprit
    ]


@newest
def test_every_block_of_every_runbook_is_run() -> None:
    """Each runbook has an incident for which it is followed, and a pattern for each of its blocks."""
    assert {path.stem for path in PAGES} - {"README"} == {page(case.alert).stem for case in CASES}
    assert {case.incident for case in CASES} <= {incident.name for incident in INCIDENTS}
    for case in CASES:
        assert len(blocks(page(case.alert))) == len(case.patterns), str(case)


# Alerts about connections that somebody has.
OF_HOLDERS = ["Starvation", "SelfDeadlock", "Stuck", "HeldTooLong", "LeakedCheckouts"]


@newest
@pytest.mark.parametrize("alert", OF_HOLDERS)
def test_the_first_step_says_who_has_it(alert: str) -> None:
    """The first step is one command; its output has the place in the code, the process and the server's state."""
    first = blocks(page(alert))[0]
    assert re.fullmatch(r"kubectl exec .* sqlalchemy-pool-exporter top --once .*\n", first.text)
    patterns = [case.patterns[0] for case in CASES if case.alert == alert]
    assert patterns
    for pattern in patterns:
        assert re.search(r"__main__:.*<worker_pids>.*(active|idle)", str(pattern))


# What holds for all runbooks.


@newest
@each_page
def test_ages_are_taken_of_the_clock(path: Path) -> None:
    """No age is taken of ``now()``, which is the start of the transaction: ages of what began later are negative."""
    assert [] == re.findall(r".*\b(?:now\(\)|current_timestamp|transaction_timestamp).*", _code(path))


@newest
@each_page
def test_no_url_of_sqlalchemy_is_given_to_psql(path: Path) -> None:
    """``psql`` is started without a URL, after the one way to connect that the index has."""
    assert [] == re.findall(r".*(?:psql|pg_\w+) .*(?:\$\w*(?:URL|DSN)|postgresql\+).*", _code(path))
    if path != INDEX and any(block.kind == "sql" or "psql" in block.text for block in blocks(path)):
        assert "(README.md#connecting-to-the-database)" in path.read_text("utf-8")


@newest
@each_page
def test_the_process_is_the_worker(path: Path) -> None:
    """A process is named by ``$PID``, which the page or the index finds, and is never process 1 or a master's."""
    code = _code(path)
    assert [] == re.findall(r"(?:--pid|-p|kill(?: -\w+)?) +\d+", code)
    if path != INDEX and "$PID" in code:
        assert "(README.md#from-a-worker-to-its-process)" in path.read_text("utf-8")
        assert "sqlalchemy_pool_exporter_worker_info" in code


@newest
@each_page
def test_sessions_are_found_by_what_every_application_has(path: Path) -> None:
    """No session is looked for by ``application_name``, which nothing sets unless the application does."""
    assert [] == re.findall(r".*application_name\s*(?:=|~|LIKE|IN\b|<>|!=).*", _code(path), re.IGNORECASE)


@newest
@each_page
def test_placeholders_are_explained(path: Path) -> None:
    """What a reader has to replace is explained in the index; nothing is left out with an ellipsis or in brackets."""
    explained = set(re.findall(r"^\| `([^`]+)` \|", INDEX.read_text("utf-8"), re.MULTILINE))
    for block in blocks(path):
        code = block.text
        names = set(re.findall(r"\$\w+|\borders[\w-]*", code if block.kind != "python" else ""))
        names |= set(re.findall(r"(?<=-c )(\w+)(?= --)", code))
        assert names <= explained, code
        assert not re.search(r"…|<[a-z][\w -]*>|\bX{3,}\b", code), code


def _code(path: Path) -> str:
    """Return all code of a page, that in its sentences too."""
    text = path.read_text("utf-8")
    inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    if path == INDEX:
        inline = []  # it names what does not work, and says why
    return "\n".join([*(block.text for block in blocks(path)), *inline])


# From a URL of SQLAlchemy to libpq.

AWKWARD = "p@ss:w/rd %41'\"$x"


@newest
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://a@h/d", {"USER": "a", "HOST": "h", "DATABASE": "d"}),
        ("postgresql+psycopg://a@h:6432/d", {"USER": "a", "HOST": "h", "PORT": "6432", "DATABASE": "d"}),
        ("postgresql+asyncpg://a@h/d?ssl=require", {"HOST": "h", "SSLMODE": "require"}),
        ("postgresql+psycopg2://a@/d?host=/run/postgresql", {"HOST": "/run/postgresql", "USER": "a"}),
        ("postgresql+psycopg://h/d?sslmode=verify-full&sslrootcert=/ca.pem", {"SSLROOTCERT": "/ca.pem"}),
        ("postgresql+psycopg://h/d?target_session_attrs=read-write", {"TARGETSESSIONATTRS": "read-write"}),
        (
            make_url("postgresql+psycopg://h/d")
            .set(username="a b", password=AWKWARD)
            .render_as_string(hide_password=False),
            {"USER": "a b", "PASSWORD": AWKWARD, "HOST": "h"},
        ),
    ],
)
def test_a_url_of_sqlalchemy_becomes_variables_of_libpq(url: str, expected: dict[str, str]) -> None:
    """The script of the index sets what ``psql`` reads from any URL of SQLAlchemy for PostgreSQL."""
    found = libpq_variables(url)
    assert expected == {name: found.get(f"PG{name}") for name in expected}


@newest
@pytest.mark.requires("psql")
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_psql_connects_with_them(driver: str, server: pg.Server) -> None:
    """After the script, ``psql`` without an argument is a session of the application's role and database."""
    url = server.url(f"postgresql+{driver}", application_name="runbook")
    script = f"{to_libpq()}\npsql -XAt -c 'SELECT current_user, inet_server_port()'"
    assert f"{server.user}|{server.port}\n" == run_shell(
        script, DATABASE_URL=url, PGUSER="nobody", PGPORT="1"
    )


def test_the_stack_of_a_checkout_is_remembered() -> None:
    """The listener that the runbook of leaks gives remembers where each connection was checked out."""
    (listener,) = [block.text for block in blocks(page("LeakedCheckouts")) if block.kind == "python"]
    engine = create_engine("sqlite://", poolclass=QueuePool)
    exec(listener, {"engine": engine})  # noqa: S102 - the code of our own page
    with engine.connect() as connection:
        stack = "".join(connection.info["stack"])
    engine.dispose()
    assert "test_the_stack_of_a_checkout_is_remembered" in stack

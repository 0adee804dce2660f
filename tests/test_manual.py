# SPDX-License-Identifier: Apache-2.0
"""``--help`` is enough in place of a manual page, of each command that there is."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import sqlalchemy_pool_exporter
from sqlalchemy_pool_exporter import cli

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.newest  # of the standard library alone

VARIABLE = re.compile(r"SQLALCHEMY_POOL_EXPORTER_[A-Z]+(?:_[A-Z]+)*")
# What the build reads, and the package does not.
PACKAGE = Path(sqlalchemy_pool_exporter.__file__).parent


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield each command of a parser, also of commands that have commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield name, command
                for inner, one in commands(command):
                    yield f"{name} {inner}", one


COMMANDS = dict(commands(cli._parser()))
each_command = pytest.mark.parametrize("name", COMMANDS)


def help_of(name: str) -> str:
    return COMMANDS[name].format_help()


def section(name: str, heading: str) -> list[str]:
    """Return the lines of a part of the help, which begins with a heading and ends with an empty line."""
    found = re.search(rf"^{heading}:\n((?:[ ]+.*\n?)+)", help_of(name), re.MULTILINE)
    assert found is not None, f"{name} --help has no {heading}"
    return [line.strip() for line in found[1].splitlines()]


def test_there_are_commands() -> None:
    """The walk finds them."""
    assert {"serve", "check-config", "healthcheck", "run", "top", "audit", "rules", "dashboards"} <= set(
        COMMANDS
    )


@each_command
def test_purpose(name: str) -> None:
    """The help says what the command is for, in a sentence."""
    description = COMMANDS[name].description or ""
    assert re.fullmatch(r"[A-Z].*\.", description, re.DOTALL), description


@each_command
def test_options(name: str) -> None:
    """Each option and argument has a help, which says the default of an option that has one or a value."""
    for action in COMMANDS[name]._actions:
        what = "/".join(action.option_strings) or action.dest
        assert action.help, f"{name} {what} has no help"
        if isinstance(action.default, int | float) and not isinstance(action.default, bool):
            assert re.search(r"\(.*\d.*\)", action.help), f"{name} {what} does not say its default"
        if isinstance(action.metavar, str) and action.metavar in {"SECONDS", "TIME"}:
            assert re.search(r"second|\ds\b|\dm\b|\dms\b|\dd\b|default", action.help), (
                f"{name} {what} has no unit"
            )


@each_command
def test_exit_statuses(name: str) -> None:
    """The help says what each exit status means, those of a wrong option and of success among them."""
    statuses = {line.split()[0] for line in section(name, "exit status") if re.match(r"(\d+|other) ", line)}
    assert "2" in statuses
    assert statuses & {"0", "other"}


@each_command
def test_examples(name: str) -> None:
    """Each example is a call of the command that its parser takes."""
    examples = section(name, "examples?")
    assert examples
    for example in examples:
        program, *arguments = shlex.split(example)
        assert ("sqlalchemy-pool-exporter", name.split()) == (program, arguments[: len(name.split())])
        options = cli._parser().parse_args(arguments)
        assert options.command == name.split(maxsplit=1)[0]


@each_command
def test_wrong_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong option is status 2, as each help says; and the help itself is status 0, within 100 columns."""
    with pytest.raises(SystemExit) as ended:
        cli.main([*name.split(), "--no-such-option"])
    assert ended.value.code == 2
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main([*name.split(), "--help"])
    assert ended.value.code == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 110


def test_variables() -> None:
    """Each variable that a module of the package reads is in the help of a command, and no other is."""
    read = {
        variable
        for path in PACKAGE.rglob("*.py")
        if path.name != "manual.py"
        for variable in VARIABLE.findall(path.read_text("utf-8"))
    }
    said = {variable for name in COMMANDS for variable in VARIABLE.findall(help_of(name))}
    assert read == said


def test_program() -> None:
    """The help of the program names each command with its purpose, and where to read more."""
    text = cli._parser().format_help()
    for name in COMMANDS:
        if " " not in name:
            assert re.search(rf"^    {name}\s+\S", text, re.MULTILINE), name
    assert "COMMAND --help" in text

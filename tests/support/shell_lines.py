# SPDX-License-Identifier: Apache-2.0
"""Commands of the documentation, checked without being run: each by what its program itself takes."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import tomllib
from typing import TYPE_CHECKING, Final

from sqlalchemy_pool_exporter import cli
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Words = list[str]


def faults(script: str) -> list[str]:
    """Return what is wrong with the commands of a script."""
    syntax = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    if syntax.returncode:
        return [syntax.stderr]
    return [fault for words in simple_commands(script) for fault in _faults(words)]


def simple_commands(script: str) -> Iterator[Words]:
    """Yield the words of each simple command, without what is assigned before it and where its streams go."""
    # Without comments, documents and ends of lines that go on; what a substitution runs is a script of its own.
    script = re.sub(r"(?:^|(?<=\s))#(?= )[^\n]*$", "", script, flags=re.MULTILINE)
    script = re.sub(r"<<-?'?(\w+)'?([^\n]*)\n.*?^\1$", r"\2", script, flags=re.MULTILINE | re.DOTALL)
    script = script.replace("\\\n", " ")
    script = re.sub(
        r"\$\([^()']*'[^']*'\s*\)", "$substituted", script
    )  # a program in quotes, which bash has parsed
    for inner in re.findall(r"\$\(([^()]+)\)", script):
        yield from simple_commands(inner)
    script = re.sub(r"\$\([^()]+\)", "$substituted", script)

    lexer = shlex.shlex(script, posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace, lexer.commenters = " \t\r", ""
    lexer.wordchars += "$@%+,:{}[]!^…"
    words: Words = []
    is_file = False
    for token in [*lexer, ";"]:
        if set(token) <= set("<>&|;()\n") and token:
            if set(token) & set("<>"):
                is_file = True
                continue
            if words:
                yield words
            words, is_file = [], False
        elif is_file:
            is_file = False
        elif words or not re.match(r"\w+=", token):
            words.append(token)


def _faults(words: Words) -> list[str]:
    program, *rest = words
    if program in {"kubectl", "docker", "sudo", "env", "nohup", "systemd-run", "time"} and "--" in rest:
        inner = rest[rest.index("--") + 1 :]
        return _faults(inner) if inner else []
    if program in {"sh", "bash"} and rest[:1] == ["-c"]:
        return faults(rest[1])
    if program in {"sudo", "exec", "nohup"}:
        return _faults(rest)
    check = _CHECKS.get(program.rpartition("/")[2])
    if check is None:
        return [f"{program!r} is a program that no check knows"]
    fault = check(rest)
    return [f"{shlex.join(words)}: {fault}"] if fault else []


def _ours(words: Words) -> str:
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        try:
            cli._parser().parse_args(words)
        except SystemExit as end:
            return error.getvalue() if end.code else ""
    if words[:1] == ["run"]:
        inner = words[words.index("--") + 1 :] if "--" in words else []
        return "".join(_faults(inner))
    return ""


def _pip(words: Words) -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    if words[0] != "install":
        return f"pip {words[0]} is not in the documentation"
    for word in words[1:]:
        name, _, extras = word.rstrip("]").partition("[")
        unknown = set(filter(None, extras.split(","))) - set(project["optional-dependencies"])
        if name == project["name"] and unknown:
            return f"there is no extra {unknown}"
    return ""


def _make(words: Words) -> str:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    targets |= {"test-newest", "test-oldest"}
    unknown = [word for word in words if "=" not in word and word not in targets]
    return f"there is no target {unknown}" if unknown else ""


def _python(words: Words) -> str:
    if words[:1] != ["-m"]:
        return ""
    module = words[1].replace(".", "/")
    ours = words[1].startswith(("tools.", "benchmarks", "demo", "examples."))
    there = (ROOT / f"{module}.py").is_file() or (ROOT / module / "__main__.py").is_file()
    return "" if there or not ours else f"there is no module {words[1]}"


def _server(words: Words) -> str:
    """Check the module of an application, if it is one of ours: ``app:app`` is the reader's own."""
    for word in words:
        name, colon, _ = word.partition(":")
        if colon and re.fullmatch(r"[a-z_]\w*(?:\.\w+)+", name):
            path = ROOT / name.replace(".", "/")
            if not path.with_suffix(".py").is_file() and not (path / "__init__.py").is_file():
                return f"there is no module {name}"
    return ""


def _curl(words: Words) -> str:
    urls = [word for word in words if re.match(r"\w+://|[\w.-]+:\d+/", word)]
    return "" if urls else "there is no URL"


def _taken(_words: Words) -> str:
    return ""


# What these do needs a cluster, a server or a terminal; bash has parsed their lines. A test runs those of runbooks.
_OTHERS: Final = (
    "aws base64 cat cd chmod cp createdb cut df docker echo env eval export gcloud git grep head "
    "helm id install journalctl jq kill kubectl ls mariadb mkdir mysql openssl printf promtool ps "
    "psql py-spy redis-server sed sleep sort source systemctl systemd-run tail tee true wait xargs"
)
_CHECKS: Final[dict[str, Callable[[Words], str]]] = {
    **dict.fromkeys(_OTHERS.split(), _taken),
    **dict.fromkeys(
        ("gunicorn", "uvicorn", "uwsgi", "hypercorn", "celery", "dramatiq", "rq", "litestar"), _server
    ),
    **dict.fromkeys(("python", "python3"), _python),
    "curl": _curl,
    "make": _make,
    "pip": _pip,
    "sqlalchemy-pool-exporter": _ours,
}

# SPDX-License-Identifier: Apache-2.0
"""What ``COMMAND --help`` says beside the options: environment variables, exit statuses and examples.

There is no manual page, so the help has to be enough. A test holds that each command has these parts, and that each
variable that the sources read is in one of them.
"""

from __future__ import annotations

import argparse
import textwrap
from typing import Final, NamedTuple

from . import environment

_NAME: Final = "sqlalchemy-pool-exporter"
_WIDTH: Final = 96


class Manual(NamedTuple):
    """What is known of a command beside its options."""

    statuses: dict[str, str]
    examples: tuple[str, ...]
    variables: dict[str, str] = {}  # noqa: RUF012 - nobody changes it


_WRONG: Final = "a wrong option"
_CONFIGURED: Final = {
    environment.CONFIG: "the configuration, as --config",
    environment.LISTEN_ADDRESS: "as --listen-address",
    environment.DIRECTORY: "as --directory",
    environment.LOG_LEVEL: "as --log-level",
}
_ASKING: Final = {
    environment.DIRECTORY: "the directory, if neither that nor a URL is given",
    environment.PASSWORD: "the password of --user, unless --password-file is given",
    environment.TOKEN: "a bearer token, unless --token-file is given",
}
_LAUNCHED: Final = {
    environment.DIRECTORY: "as --directory",
    environment.SERVE: "as --serve",
    environment.SITES: "as --sites (0.5; each checkout where leaks are looked for)",
    environment.APPLICATION: "as --application (all code that is neither installed nor part of Python)",
    environment.LEAK_AFTER: "as --leak-after, in seconds (0: no connection is suspected)",
    environment.EXCLUDE: "as --exclude, with commas between the patterns",
    environment.OTEL: "as --otel: 1 or 0 (0)",
    environment.AUTO: "1 where engines are instrumented without code; this command sets it",
    environment.GROUP_READABLE: "1 lets the group read the files, for a sidecar that runs as another user (0)",
    environment.LOOP_LAG: "off: event loops are not watched (on)",
    environment.REQUEST_DEADLINE: "how many seconds a request may take, for the audit (0: not known)",
    environment.SIDECAR: "1: a sidecar shows the pools, the application's own endpoint does not (0)",
    environment.TRACE_AFTER: "checkouts that wait for so many seconds are tied to their trace (0.1; 0: none)",
    "SQLALCHEMY_POOL_EXPORTER_LOCKS": "1: take the locks of interpreters without the GIL with it, too; for tests (0)",
}

MANUALS: Final = {
    "serve": Manual(
        {
            "0": "ended by SIGTERM or SIGINT",
            "1": "it cannot listen there, or a library of the extra 'sidecar' is missing",
            "2": "a wrong option or configuration; all of its faults are listed",
        },
        (
            "serve",
            "serve --directory /run/orders/pools --listen-address 127.0.0.1:10079",
            "serve --config /etc/pools/exporter.yaml --web-config-file /etc/pools/web.yaml",
        ),
        _CONFIGURED,
    ),
    "check-config": Manual(
        {
            "0": "the configuration is valid",
            "1": "a library of the extra 'sidecar' is missing",
            "2": "a wrong option, or the configuration has faults",
        },
        ("check-config --config /etc/pools/exporter.yaml",),
        _CONFIGURED,
    ),
    "healthcheck": Manual(
        {
            "0": "it answers; also with 401 or 429, and if it wants a client certificate",
            "1": "no answer within 4 seconds, or an error",
            "2": _WRONG,
        },
        ("healthcheck", "healthcheck --listen-address 127.0.0.1:10079"),
        _CONFIGURED,
    ),
    "run": Manual(
        {
            "2": "a wrong option, or no command",
            "126": "the command cannot be executed",
            "127": "there is no such command",
            "other": "of the command, or of the signal that ended it",
        },
        (
            "run --serve 10081 -- gunicorn --workers 4 app:app",
            "run --directory /run/orders/pools --exclude 'sqlite:*' -- celery --app tasks worker",
            "run --otel -- opentelemetry-instrument python -m orders",
        ),
        _LAUNCHED,
    ),
    "top": Manual(
        {
            "0": "ended by a key, or the table or JSON was printed",
            "1": "nothing can be read, there is no terminal, or a library of the extra 'top' is missing",
            "2": _WRONG,
        },
        (
            "top --directory /run/orders/pools",
            "top --url http://localhost:10079 --pool orders --interval 5",
            "top --once --url https://exporter:10079 --token-file token --ca-file ca.pem",
        ),
        _ASKING,
    ),
    "audit": Manual(
        {"0": "nothing is found", "1": "something is", "2": "it could not look, or a wrong option"},
        ("audit http://localhost:10079", "audit /run/orders/pools --ignore no_pre_ping --json"),
        _ASKING,
    ),
    "rules": Manual(
        {"0": "written, or listed", "1": "a file cannot be written", "2": "a wrong option or threshold"},
        (
            "rules --out /etc/prometheus/rules",
            "rules --out . --set held_seconds=60 --set starvation_for=5m",
            "rules --list",
        ),
    ),
    "dashboards": Manual(
        {"0": "written", "1": "a file cannot be written", "2": _WRONG},
        ("dashboards --out /etc/grafana/dashboards/sqlalchemy-pools",),
    ),
    "advise": Manual({}, (), _ASKING),
}


def complete(name: str, command: argparse.ArgumentParser) -> None:
    """Add what is known of a command to what its parser says."""
    manual = MANUALS.get(name)
    if manual is not None:
        command.formatter_class = _Formatter
        command.epilog = "\n\n".join(filter(None, (command.epilog, _written(manual))))


def _written(manual: Manual) -> str:
    return "\n\n".join(
        part
        for part in (
            _listed("environment variables", manual.variables),
            _listed("exit status", manual.statuses),
            "\n  ".join(["examples:", *(f"{_NAME} {one}" for one in manual.examples)])
            if manual.examples
            else "",
        )
        if part
    )


def _listed(heading: str, entries: dict[str, str]) -> str:
    if not entries:
        return ""
    lines = [f"{heading}:"]
    width = max(map(len, entries))
    for name, text in entries.items():
        if width > _WIDTH // 4:  # as argparse does: what a long name means is on the next line
            lines += [
                f"  {name}",
                *textwrap.wrap(text, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6),
            ]
        else:
            indent = " " * (width + 4)
            lines += textwrap.wrap(
                text, _WIDTH, initial_indent=f"  {name:<{width}}  ", subsequent_indent=indent
            )
    return "\n".join(lines)


class _Formatter(argparse.HelpFormatter):
    """Wraps the description, and leaves the lines of the epilog as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)

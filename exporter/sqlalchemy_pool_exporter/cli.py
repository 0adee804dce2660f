# SPDX-License-Identifier: Apache-2.0
"""The commands: ``sqlalchemy-pool-exporter COMMAND``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import environment, manual
from .advise import options as advise_options
from .errors import BoardError, BundleError, ConfigError, EndpointError, LaunchError, ThresholdError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .sidecar.config import Config

# With two statuses, a shell or an init system can distinguish a wrong call from a failure.
_WRONG_CONFIGURATION = 2
_FAILED = 1
_INTERRUPTED = 130  # as shells say it of a program that Ctrl-C ended
_COULD_NOT_LOOK = 2  # of `audit`, where 1 says that something was found
_LEAST_INTERVAL, _MOST_INTERVAL = 0.5, 3600.0  # of `top`, in seconds


class _Version(argparse.Action):
    """Read the version only for ``--version``: its imports load as much as the rest of the command line."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from .about import package_version  # noqa: PLC0415 - see above

        sys.stdout.write(f"{parser.prog} {package_version()}\n")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 for a failure, 2 for a wrong call or configuration."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "advise":
        advise_options.check(options, parser.error)
    try:
        return _run(options)
    except ModuleNotFoundError as error:
        extra = "top" if options.command == "top" else "sidecar"
        return _say(f"{error.name!r} is missing: pip install 'sqlalchemy-pool-exporter[{extra}]'", _FAILED)
    except (ConfigError, LaunchError, ThresholdError) as error:
        return _say(str(error), _WRONG_CONFIGURATION)
    except BoardError as error:
        return _say(str(error), _COULD_NOT_LOOK if options.command == "audit" else _FAILED)
    except (BundleError, EndpointError) as error:
        return _say(str(error), _FAILED)
    except KeyboardInterrupt:
        return _INTERRUPTED


# Each command imports its modules when it runs: a health check every 30 seconds must not load the server, and `rules`
# works without the sidecar's libraries.
def _run(options: argparse.Namespace) -> int:
    commands = {
        "advise": _advise,
        "audit": _audit,
        "check-config": _check_config,
        "dashboards": _write_dashboards,
        "healthcheck": _check_health,
        "rules": _write_rules,
        "run": _launch,
        "serve": _serve,
        "top": _top,
    }
    return commands[options.command](options)


def _overrides(options: argparse.Namespace) -> Mapping[str, str | None]:
    return {
        "web.listen_address": options.listen_address,
        "web.config_file": options.web_config_file,
        "segments.directory": options.directory,
        "log.level": options.log_level,
    }


def _check_config(options: argparse.Namespace) -> int:
    from .sidecar.config import load  # noqa: PLC0415 - see _run()

    load(options.config, _overrides(options))
    sys.stdout.write("the configuration is valid\n")
    return 0


def _check_health(options: argparse.Namespace) -> int:
    from .sidecar.healthcheck import check, find_endpoint  # noqa: PLC0415 - see _run()

    sys.stdout.write(f"{check(find_endpoint(options.config, _overrides(options)))}\n")
    return 0


def _serve(options: argparse.Namespace) -> int:
    import asyncio  # noqa: PLC0415 - see _run()

    from .sidecar import log  # noqa: PLC0415 - see _run()
    from .sidecar.config import load  # noqa: PLC0415 - see _run()
    from .sidecar.main import Sidecar  # noqa: PLC0415 - see _run()

    def read() -> Config:
        return load(options.config, _overrides(options))

    config = read()
    log.set_up(config.log)
    asyncio.run(Sidecar(config, read).run())
    return 0


def _top(options: argparse.Namespace) -> int:
    from .top.main import run  # noqa: PLC0415 - see _run()

    run(options)
    return 0


def _audit(options: argparse.Namespace) -> int:
    from .top.main import run_audit  # noqa: PLC0415 - see _run()

    return run_audit(options)


def _advise(options: argparse.Namespace) -> int:
    from .advise.main import run  # noqa: PLC0415 - see _run()

    run(options)
    return 0


def _launch(options: argparse.Namespace) -> int:
    from .launch.command import run  # noqa: PLC0415 - see _run()

    return run(options)


def _write_rules(options: argparse.Namespace) -> int:
    from . import bundled  # noqa: PLC0415 - see _run()
    from .alerting import rules  # noqa: PLC0415 - see _run()

    known = rules.bundled_thresholds()
    if options.list:
        sys.stdout.write(rules.listing(known))
        return 0
    contents = {rules.FILE: rules.render(rules.source(), rules.parse(options.set), known)}
    if options.opentelemetry:
        contents[rules.OPENTELEMETRY] = bundled.text(rules.OPENTELEMETRY)
    sys.stdout.writelines(f"{path}\n" for path in bundled.write(contents, options.out))
    return 0


def _write_dashboards(options: argparse.Namespace) -> int:
    from . import bundled  # noqa: PLC0415 - see _run()

    for path in bundled.write(bundled.texts("dashboards"), options.out):
        sys.stdout.write(f"{path}\n")
    return 0


def _say(message: str, status: int) -> int:
    sys.stderr.write(f"sqlalchemy-pool-exporter: {message}\n")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sqlalchemy-pool-exporter",
        description="Shows Prometheus the connection pools of all worker processes of an application, "
        "and the connections that their databases count.",
        epilog="COMMAND --help says all of a command: its options, environment variables, exit statuses and examples.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show program's version number and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, what in (
        ("serve", "serve the metrics until SIGTERM; SIGHUP reads the configuration again"),
        ("check-config", "check the configuration and exit; list its faults, with exit status 2"),
        ("healthcheck", "ask the exporter that runs with this configuration whether it is alive"),
    ):
        command = commands.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
        _add_options(command)
    _add_run(commands)
    _add_top(commands)
    _add_audit(commands)
    _add_credentials(advise_options.add(commands))
    _add_rules(commands)
    _add_dashboards(commands)
    for name, command in commands.choices.items():
        manual.complete(name, command)
    return parser


def _add_run(commands: Any) -> None:
    what = "run an application with all of its engines instrumented, without a line in it"
    command = commands.add_parser(
        "run",
        help=what,
        usage="%(prog)s [OPTION ...] -- COMMAND [ARGUMENT ...]",
        description=f"{what[0].upper()}{what[1:]}. The command replaces this process, so its signals, exit status and "
        "streams are its own. The Python processes that it starts are instrumented, too.",
    )
    for option, metavar, text in (
        (
            "--directory",
            "DIR",
            "that the processes share, for a sidecar or for --serve (none: each process has its numbers for itself)",
        ),
        (
            "--serve",
            "[HOST:]PORT",
            "serve the metrics of all processes on this port (nothing is served); the default directory is a new one",
        ),
        (
            "--sites",
            "SITES",
            "find the place of each checkout (on), of none (off), or from this share of the pool in use on (0.5)",
        ),
        (
            "--application",
            "PREFIXES",
            "prefixes of the application's modules, with commas between them (all code that is not installed)",
        ),
        ("--leak-after", "SECONDS", "suspect a leak if a connection is held for more seconds (0: never)"),
    ):
        command.add_argument(option, metavar=metavar, help=text)
    command.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave engines alone whose URL matches (sqlite:*), whose pool has this class (class:NullPool), or that "
        "this module makes (module:airflow.*); may be given many times (no engine is left alone)",
    )
    command.add_argument(
        "--otel",
        action="store_true",
        help="hand the pools to OpenTelemetry's meter provider, which the application or opentelemetry-instrument sets",
    )
    command.add_argument("arguments", nargs="*", metavar="COMMAND", help="the command and its arguments")


def _add_top(commands: Any) -> None:
    what = "show in the terminal which pool hurts, and who holds its connections since when"
    command = commands.add_parser("top", help=what, description=f"{what[0].upper()}{what[1:]}.")
    origin = command.add_mutually_exclusive_group()
    origin.add_argument(
        "--directory",
        metavar="DIR",
        help=f"of the applications, on this machine (${environment.DIRECTORY})",
    )
    origin.add_argument("--url", help="of a sidecar or of serve(), such as http://localhost:10079")
    how = command.add_mutually_exclusive_group()
    how.add_argument(
        "--once", action="store_true", help="print a table and exit; this needs no extra library"
    )
    how.add_argument("--json", action="store_true", help="print the JSON of /api/v1/pools and exit")
    command.add_argument(
        "--pool", action="append", default=[], metavar="NAME", help="this pool; may be given many times (all)"
    )
    command.add_argument(
        "--filter",
        default="",
        metavar="TEXT",
        help="pools whose name, site or process contains the text (all)",
    )
    command.add_argument(
        "--interval",
        type=_seconds,
        default=2.0,
        metavar="SECONDS",
        help=f"between two reads, in seconds, {_LEAST_INTERVAL:g} to {_MOST_INTERVAL:g} (2)",
    )
    _add_credentials(command)


def _add_audit(commands: Any) -> None:
    what = "print common mistakes in how pools are configured and used"
    command = commands.add_parser(
        "audit",
        help=what,
        description=f"{what[0].upper()}{what[1:]}. The exit status is 0 if none is found, 1 if any is, and 2 if the "
        "audit could not look.",
    )
    command.add_argument(
        "where",
        nargs="?",
        metavar="DIR_OR_URL",
        help=f"directory of the applications, on this machine (also {environment.DIRECTORY}), or URL of a sidecar or "
        "of serve(), such as http://localhost:10079",
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="RULE",
        help="a rule whose findings are meant to be; may be given many times (none)",
    )
    _add_credentials(command)


def _add_credentials(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--user", metavar="NAME", help=f"for basic auth; the password is in {environment.PASSWORD}"
    )
    command.add_argument("--password-file", type=Path, metavar="FILE", help="file with the password instead")
    command.add_argument(
        "--token-file", type=Path, metavar="FILE", help=f"file with a bearer token (also {environment.TOKEN})"
    )
    command.add_argument(
        "--ca-file",
        type=Path,
        metavar="FILE",
        help="authority of the endpoint's certificate (those of the system)",
    )
    command.add_argument("--cert-file", type=Path, metavar="FILE", help="certificate of this client")
    command.add_argument("--key-file", type=Path, metavar="FILE", help="key of that certificate")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not _LEAST_INTERVAL <= seconds <= _MOST_INTERVAL:
        raise argparse.ArgumentTypeError(f"{_LEAST_INTERVAL:g} to {_MOST_INTERVAL:g} seconds")
    return seconds


def _add_rules(commands: Any) -> None:
    what = "write recording rules and alerts for Prometheus"
    command = commands.add_parser(
        "rules", help=what, description=f"{what[0].upper()}{what[1:]}, with thresholds of your own."
    )
    action = command.add_mutually_exclusive_group(required=True)
    action.add_argument("--out", type=Path, metavar="DIR", help="directory to write them into")
    action.add_argument("--list", action="store_true", help="list the thresholds and what each means")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a threshold, such as held_seconds=60; may be given many times (each has its default, see --list)",
    )
    command.add_argument(
        "--opentelemetry",
        action="store_true",
        help="write as well the rules that record pools that come over OTLP under our names",
    )


def _add_dashboards(commands: Any) -> None:
    what = "write dashboards for Grafana 10 to 13"
    command = commands.add_parser(
        "dashboards",
        help=what,
        description=f"{what[0].upper()}{what[1:]}, to be provisioned or imported; existing files are replaced.",
    )
    command.add_argument(
        "--out", type=Path, metavar="DIR", required=True, help="directory to write them into"
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML file (none: every option has its default)",
    )
    parser.add_argument(
        "--listen-address",
        "--web.listen-address",
        metavar="HOST:PORT",
        help="overrides web.listen_address (:10079, all addresses of the machine)",
    )
    parser.add_argument(
        "--web-config-file",
        "--web.config.file",
        metavar="FILE",
        help="overrides web.config_file: TLS, basic auth and rate limit, in the exporter-toolkit's format (none)",
    )
    parser.add_argument(
        "--directory",
        metavar="DIR",
        help="overrides segments.directory, which the applications share (none: no pools are shown)",
    )
    parser.add_argument(
        "--log-level",
        metavar="LEVEL",
        help="overrides log.level: debug, info, warning or error (info)",
    )

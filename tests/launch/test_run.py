# SPDX-License-Identifier: Apache-2.0
"""``sqlalchemy-pool-exporter run``: applications that know nothing of it, in real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import urllib.request
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_pool_exporter import environment
from sqlalchemy_pool_exporter.segment.block import FIRST_COUNTER, WAIT, WAIT_FAILED
from sqlalchemy_pool_exporter.segment.directory import Reader
from tests.support.ports import free_port
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

# The environments of the tests may have the package on PYTHONPATH alone.
PATH = os.pathsep.join(filter(None, sys.path))
RUN = [sys.executable, "-m", "sqlalchemy_pool_exporter", "run"]

# What an application does that knows nothing of this.
APPLICATION = """
import os, sys
from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool

def use(name):
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_logging_name=name)
    for _ in range(3):
        engine.connect().close()
    engine.dispose()
    return engine
"""


def launched(
    *command: str, options: tuple[str, ...] = (), variables: dict[str, str] | None = None, **how: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *options, "--", *command],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": PATH, **(variables or {})},
        **how,
    )


def python(program: str, *arguments: str) -> tuple[str, ...]:
    return sys.executable, "-c", APPLICATION + textwrap.dedent(program), *arguments


def checkouts(directory: Path) -> dict[str, float]:
    """Return the checkouts of each pool, over all processes that ever ran."""
    fleet = Reader(directory).read()
    found: dict[str, float] = {}
    for worker in fleet.workers:
        for pool in worker.pools:
            found[pool.name] = found.get(pool.name, 0.0) + checkouts_of(pool.snapshot.counts)
    return found


def checkouts_of(counts: Sequence[float]) -> float:
    return sum(counts[WAIT - FIRST_COUNTER : WAIT_FAILED - FIRST_COUNTER - 1])


# -- what is instrumented


@pytest.mark.parametrize(
    ("program", "names"),
    [
        ("use('a'); use('b')", {"a", "b"}),
        (
            "pid = os.fork()\nif pid == 0:\n    use('a')\n    os._exit(0)\nos.waitpid(pid, 0)\nuse('b')",
            {"a", "b"},
        ),
        ("import subprocess\nsubprocess.run([sys.executable, '-c', sys.argv[1]], check=True)", {"child"}),
    ],
    ids=["processes", "forked", "started"],
)
def test_each_engine_of_the_process_tree(tmp_path: Path, program: str, names: set[str]) -> None:
    """Engines are instrumented when they are made, also those of children that are forked or started."""
    done = launched(*python(program, f"{APPLICATION}\nuse('child')"), options=("--directory", str(tmp_path)))
    assert (done.returncode, done.stderr) == (0, "")
    assert checkouts(tmp_path) == dict.fromkeys(names, 3.0)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(tmp_path: Path, method: str) -> None:
    """So are those of processes that multiprocessing starts, in each of its ways."""
    program = tmp_path / "program.py"
    program.write_text(
        APPLICATION
        + textwrap.dedent(
            f"""
            import multiprocessing
            if __name__ == "__main__":
                process = multiprocessing.get_context({method!r}).Process(target=use, args=("child",))
                process.start()
                process.join()
                sys.exit(process.exitcode)
            """
        )
    )
    directory = tmp_path / "pools"
    directory.mkdir()
    done = launched(sys.executable, str(program), options=("--directory", str(directory)))
    assert (done.returncode, done.stderr) == (0, "")
    assert checkouts(directory) == {"child": 3.0}


def test_options(tmp_path: Path) -> None:
    """The options reach every engine; those that are excluded are left alone."""
    program = """
        use("kept")
        engine = create_engine("sqlite:///other.db", poolclass=QueuePool, pool_logging_name="other")
        print("connect" in vars(engine.pool), {key: value for key, value in os.environ.items() if "_EXPORTER_" in key})
    """
    options = ("--exclude", "*other.db", "--exclude", "class:NullPool", "--sites", "on", "--leak-after", "5")
    done = launched(
        *python(program), options=("--directory", str(tmp_path), *options, "--application", "a,b")
    )
    assert done.stderr == ""
    is_recorded, _, variables = done.stdout.partition(" ")
    assert is_recorded == "False"
    assert eval(variables) == {  # noqa: S307 - what the program above printed
        environment.AUTO: "1",
        environment.DIRECTORY: str(tmp_path),
        environment.EXCLUDE: "*other.db,class:NullPool",
        environment.SITES: "on",
        environment.LEAK_AFTER: "5",
        environment.APPLICATION: "a,b",
    }
    assert checkouts(tmp_path) == {"kept": 3.0}


# -- how a process starts


def test_a_sitecustomize_is_not_hidden(tmp_path: Path) -> None:
    """A ``sitecustomize`` that would be imported without this is imported, and the path is as without."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.theirs = __file__\n")
    program = "import sys, sitecustomize; print(sys.theirs, sitecustomize.__file__, sys.path)"
    variables = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{PATH}"}
    bare = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **variables},
        check=True,
        capture_output=True,
        text=True,
    )
    assert str(tmp_path / "sitecustomize.py") in bare.stdout
    done = launched(sys.executable, "-c", program, variables=variables)
    assert (done.stdout, done.stderr) == (bare.stdout, "")


def test_the_working_directory_on_the_path(tmp_path: Path) -> None:
    """An empty path in ``PYTHONPATH`` is the working directory, as without this."""
    (tmp_path / "beside.py").write_text("print('found')\n")
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "app"
    script.write_text("import beside\n")
    variables = {"PYTHONPATH": f"{os.pathsep}{PATH}"}
    done = launched(sys.executable, str(script), variables=variables, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("found\n", "")


def test_a_relative_directory(tmp_path: Path) -> None:
    """A relative directory is that of the command's start, also if the command goes elsewhere."""
    (tmp_path / "pools").mkdir()
    done = launched(*python("os.chdir('/'); use('a')"), options=("--directory", "pools"), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert checkouts(tmp_path / "pools") == {"a": 3.0}


def test_a_sitecustomize_that_fails(tmp_path: Path) -> None:
    """If it raises, Python says so as without this, and the engines are instrumented all the same."""
    (tmp_path / "sitecustomize.py").write_text("import missing_module_of_theirs\n")
    directory = tmp_path / "pools"
    directory.mkdir()
    done = launched(
        *python("use('a')"),
        options=("--directory", str(directory)),
        variables={"PYTHONPATH": f"{tmp_path}{os.pathsep}{PATH}"},
    )
    assert done.returncode == 0
    assert "missing_module_of_theirs" in done.stderr
    assert checkouts(directory) == {"a": 3.0}


def test_a_process_without_sqlalchemy() -> None:
    """A process that does not import SQLAlchemy loads only this way to wait for it; one that cannot is told as ever."""
    program = """
        import json, sys
        import_error = None
        try:
            sys.modules.pop("sqlalchemy", None)
            sys.path[:] = []
            import sqlalchemy
        except ImportError as error:
            import_error = [type(error).__name__, str(error)]
        print(json.dumps([sorted(name for name in sys.modules if "sqlalchemy" in name), import_error]))
    """
    done = launched(sys.executable, "-c", textwrap.dedent(program))
    assert done.stderr == ""
    modules, error = json.loads(done.stdout)
    assert modules == [
        "sqlalchemy_pool_exporter",
        "sqlalchemy_pool_exporter.environment",
        "sqlalchemy_pool_exporter.launch",
        "sqlalchemy_pool_exporter.launch.activation",
        "sqlalchemy_pool_exporter.straight_lines",
    ]
    assert error == ["ModuleNotFoundError", "No module named 'sqlalchemy'"]


def test_an_environment_without_this_package(tmp_path: Path) -> None:
    """A child that runs in another environment, in which this is not installed, runs as ever."""
    venv.create(tmp_path / "other", symlinks=True)
    other = tmp_path / "other" / "bin" / "python"
    (tmp_path / "sqlalchemy.py").write_text("def create_engine(): pass\n")
    program = "import sitecustomize, sqlalchemy; print(sitecustomize.__file__)"
    # The first folder of PYTHONPATH is the one of run.
    command = f"""PYTHONPATH="${{PYTHONPATH%%:*}}:{tmp_path}" exec '{other}' -c '{program}'"""
    # Debian's interpreters have a sitecustomize of their own, which is the one that a program sees.
    own = subprocess.run(
        [other, "-c", "import sitecustomize; print(sitecustomize.__file__)"],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    ).stdout
    done = launched("sh", "-c", command, options=("--directory", str(tmp_path)))
    assert done.stderr == ""
    assert done.stdout.endswith(own or "/launch/site/sitecustomize.py\n")


def test_under_opentelemetry(tmp_path: Path) -> None:
    """``opentelemetry-instrument`` has a ``sitecustomize`` that hides all others; both work, in either order."""
    pytest.importorskip("opentelemetry.instrumentation.auto_instrumentation")
    # Its instrumentation of SQLAlchemy refuses releases that it does not know.
    program = python("use('a'); print('opentelemetry.instrumentation.auto_instrumentation' in sys.modules)")
    otel = (
        sys.executable,
        "-c",
        "from opentelemetry.instrumentation.auto_instrumentation import run; run()",
        "--traces_exporter=none",
        "--metrics_exporter=none",
        "--logs_exporter=none",
    )
    for number, command in enumerate(
        (
            [*RUN, "--directory", str(tmp_path), "--", *otel, *program],
            [*otel, *RUN, "--directory", str(tmp_path), "--", *program],
        ),
        1,
    ):
        environ = {**os.environ, "PYTHONPATH": PATH}
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environ, timeout=120)
        assert done.returncode == 0, done.stderr
        assert checkouts(tmp_path) == {"a": 3.0 * number}, done.stderr
        assert done.stdout == "True\n"


def test_pools_are_seen_where_opentelemetry_is_not_installed(tmp_path: Path) -> None:
    """``--otel`` without the API is a line in the log; the segments have the pools all the same."""
    (tmp_path / "opentelemetry.py").write_text("raise ModuleNotFoundError('no API')")
    (tmp_path / "shared").mkdir()
    done = launched(
        *python("use('a')"),
        options=("--otel", "--directory", str(tmp_path / "shared")),
        variables={"PYTHONPATH": os.pathsep.join((str(tmp_path), PATH))},
    )
    assert (0, {"a": 3.0}) == (done.returncode, checkouts(tmp_path / "shared")), done.stderr
    assert "OpenTelemetry gets no metrics of the pools, since its API is not installed: no API" in done.stderr


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--serve", "foo", "--serve foo: expected host:port, :port or [ipv6]:port, or a port alone"),
        ("--serve", "99999", "--serve 99999: a port is at most 65535"),
        ("--sites", "bogus", "--sites bogus: expected on, off or a share between 0 and 1"),
        ("--sites", "1.5", "--sites 1.5: expected on, off or a share"),
        ("--leak-after", "-1s", "--leak-after -1s: expected a number of seconds"),
        ("--exclude", "class:", "--exclude 'class:': the pattern is empty"),
        ("--exclude", "sqlite:*,module:", "--exclude 'module:': the pattern is empty"),
    ],
)
def test_a_wrong_option_is_said_before_the_command_starts(option: str, value: str, said: str) -> None:
    """The status is 2, and the command does not start."""
    done = launched(*python("print('started')"), options=(f"{option}={value}",))
    assert (2, "") == (done.returncode, done.stdout)
    assert said in done.stderr


def test_the_loader_leaves_no_trace() -> None:
    """SQLAlchemy's module has the loader and the source that it has without this."""
    program = (
        "import inspect, sqlalchemy, sys; "
        "print(sqlalchemy.__loader__, sqlalchemy.__spec__, len(inspect.getsource(sqlalchemy)), len(sys.meta_path))"
    )
    bare = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": PATH},
        check=True,
        capture_output=True,
        text=True,
    )

    def shown(text: str) -> list[str]:
        return [word for word in text.split() if not word.startswith("0x")]

    assert shown(launched(sys.executable, "-c", program).stdout) == shown(bare.stdout)


# -- as if it were not there


@pytest.mark.parametrize("status", [0, 1, 3, 255])
def test_the_exit_status(status: int) -> None:
    """The exit status is the command's."""
    assert launched(sys.executable, "-c", f"raise SystemExit({status})").returncode == status


def test_the_streams() -> None:
    """Standard input, output and error are the command's own."""
    program = "import sys; print(sys.stdin.read(), end=''); print('e', file=sys.stderr)"
    done = launched(sys.executable, "-c", program, input="line\n")
    assert (done.stdout, done.stderr) == ("line\n", "e\n")


def test_streams_that_are_closed() -> None:
    """A command runs without standard streams, too, as a daemon does."""
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *RUN, "--"]
    done = subprocess.run(
        [*command, sys.executable, "-c", "raise SystemExit(7)"],
        check=False,
        env={**os.environ, "PYTHONPATH": PATH},
    )
    assert done.returncode == 7


@pytest.mark.parametrize("name", ["PIPE", "XFSZ"])
def test_ignored_signals(name: str) -> None:
    """Signals that Python ignores end the command, as without this."""
    assert launched("sh", "-c", f"kill -{name} $$").returncode == -signal.Signals[f"SIG{name}"]


def test_signals() -> None:
    """The process that a supervisor knows is the command, so a signal reaches it."""
    program = (
        "import os, signal\n"
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(7))\n"
        "print(os.getpid(), flush=True)\n"
        "while True: signal.pause()\n"
    )
    command = [*RUN, "--", sys.executable, "-c", program]
    environ = {**os.environ, "PYTHONPATH": PATH}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{process.pid}\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 7


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        ((), 2, "give a command to run, such as: sqlalchemy-pool-exporter run -- gunicorn app:app"),
        (("no-such-program",), 127, "cannot run 'no-such-program': No such file or directory"),
        (("/",), 126, "cannot run '/': Permission denied"),
    ],
)
def test_commands_that_cannot_run(command: tuple[str, ...], status: int, message: str) -> None:
    """What cannot be run is said in a line, with the exit status of a shell."""
    done = launched(*command)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr == f"sqlalchemy-pool-exporter: {message}\n"


def test_a_file_that_is_no_program(tmp_path: Path) -> None:
    """People give a file of Python: the message says how to run it."""
    file = tmp_path / "app.py"
    file.write_text("print()\n")
    done = launched(str(file))
    assert done.returncode == 126
    assert f"(try: run -- python {file})" in done.stderr


def test_options_of_the_command() -> None:
    """Options behind ``--`` are the command's, also those that this has, too."""
    done = launched(sys.executable, "-c", "import sys; print(sys.argv[1:])", "--serve", "--", "-x", "--help")
    assert done.stdout == "['--serve', '--', '-x', '--help']\n"


# -- serving


def test_serve() -> None:
    """With ``--serve`` one of the processes serves all of them, without an option for the directory."""
    port = free_port()
    program = """
        import time
        children = []
        for name in ("a", "b"):
            pid = os.fork()
            if pid == 0:
                engine = use(name)
                sys.stdin.read()
                os._exit(0)
        sys.stdin.read()
        os.wait(), os.wait()
        print(os.environ["SQLALCHEMY_POOL_EXPORTER_DIR"])
    """
    command = [*RUN, "--serve", f"127.0.0.1:{port}", "--", *python(program)]
    environ = {**os.environ, "PYTHONPATH": PATH}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
    ) as process:

        def served() -> bool:
            try:
                text = scraped(port)
            except OSError:
                return False
            return all(f'sqlalchemy_pool_checkins_total{{pool="{name}"}} 3.0' in text for name in "ab")

        assert eventually(served)
        out, _ = process.communicate("")
        assert process.returncode == 0
    assert Path(out.strip()).is_dir()


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """A port that another program has costs the endpoint, and a warning, not the application."""
    import socket  # noqa: PLC0415

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        done = launched(
            *python("use('a'); use('b'); print('done')"),
            options=("--serve", where, "--directory", str(tmp_path)),
        )
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert done.stderr.count(f"{environment.SERVE}={where}: cannot listen on") == 1

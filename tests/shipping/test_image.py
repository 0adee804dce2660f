# SPDX-License-Identifier: Apache-2.0
"""The image, checked without Docker: hadolint, properties that hadolint does not check, and its steps run by hand."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from packaging.requirements import Requirement

from tests.support.builds import DISABLE, REQUIRE
from tests.support.paths import ROOT
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.newest

DOCKERFILE = ROOT / "Dockerfile"
LOCKS = ("requirements/build.lock", "requirements/exporter.lock")
LABELS = (
    "title",
    "description",
    "licenses",
    "source",
    "documentation",
    "version",
    "revision",
    "created",
    "base.name",
)
UID = 65532
# The image's user, which only root can switch to.
SOMEBODY: Any = {"user": UID, "group": UID, "extra_groups": []} if os.geteuid() == 0 else {}


class Step(NamedTuple):
    """An instruction of a Dockerfile."""

    name: str
    text: str

    @property
    def array(self) -> list[str]:
        """The arguments of an exec form; a shell form fails."""
        value = json.loads(self.text)
        assert isinstance(value, list)
        return value

    @property
    def sources(self) -> list[str]:
        """The sources of a COPY from the build context."""
        words = self.text.split()
        return [] if any(word.startswith("--from=") for word in words) else words[:-1]


def stages() -> list[list[Step]]:
    """Read the Dockerfile; return the steps of each stage, from its FROM on."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    found: list[list[Step]] = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if line.strip():
            name, _, rest = line.partition(" ")
            if name == "FROM":
                found.append([])
            if found:
                found[-1].append(Step(name, rest.strip()))
    return found


def the(name: str, steps: Sequence[Step]) -> Step:
    """Return the only step with a name."""
    (step,) = (step for step in steps if step.name == name)
    return step


def pins(lock: str) -> dict[str, list[str]]:
    """Return the pins of a lock file, each with its hashes."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / lock).read_text().splitlines():
        if line.startswith("    --hash=sha256:"):
            found[list(found)[-1]].append(line)
        elif line and not line.startswith("#"):
            found[line.removesuffix(" \\")] = []
    return found


def test_hadolint() -> None:
    """Hadolint finds nothing, but finds a flaw that the test adds."""
    hadolint = Path(sys.executable).with_name("hadolint")
    assert "" == subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=True).stdout
    worse = DOCKERFILE.read_text().replace('ENTRYPOINT ["sqlalchemy-pool-exporter"]', "ENTRYPOINT exporter")
    said = subprocess.run([hadolint, "-"], input=worse, capture_output=True, text=True, check=False)
    assert "DL3025" in said.stdout


def test_what_the_wheel_bundles_is_copied() -> None:
    """Each file that setup.py bundles is copied into its own folder."""
    setup = (ROOT / "setup.py").read_text()
    copied = {
        (source, step.text.split()[-1].rstrip("/"))
        for step in stages()[0]
        if step.name == "COPY"
        for source in step.sources
    }
    bundled = re.findall(r'^    "([^"]+)": "bundled/', setup, flags=re.MULTILINE)
    assert len(bundled) > 5
    assert {(source, source.rpartition("/")[0]) for source in bundled} <= copied


def test_user_is_a_number() -> None:
    """The last stage ends as a non-root user and group, given as numbers, so that Kubernetes can check this."""
    steps = stages()[-1]
    assert f"{UID}:{UID}" == the("USER", steps).text
    after = [step.name for step in steps[steps.index(the("USER", steps)) :]]
    assert not {"RUN", "COPY", "ADD"} & set(after)


def test_exec_forms() -> None:
    """Commands start without a shell, so that they receive signals; the health check is our own command."""
    steps = stages()[-1]
    assert ["sqlalchemy-pool-exporter"] == the("ENTRYPOINT", steps).array
    assert ["serve"] == the("CMD", steps).array
    options, _, command = the("HEALTHCHECK", steps).text.partition(" CMD ")
    assert ["sqlalchemy-pool-exporter", "healthcheck"] == json.loads(command)
    assert {"--interval", "--timeout", "--start-period", "--retries"} == set(
        re.findall(r"--[a-z-]+", options)
    )
    assert "SIGTERM" == the("STOPSIGNAL", steps).text


def test_last_stage_installs_nothing() -> None:
    """The last stage copies one directory from the build stage and installs nothing."""
    last = stages()[-1]
    assert {"--from=build /opt/exporter /opt/exporter"} == {step.text for step in last if step.name == "COPY"}
    runs = " ".join(step.text for step in last if step.name == "RUN")
    assert [] == re.findall(r"apt-get|apk|gcc|make|install|curl|wget|python3? ", runs)
    assert " AS " not in the("FROM", last).text


def test_nothing_from_the_network_unhashed() -> None:
    """Nothing is added from a URL; pip installs only packages with a hash in a lock file, and only prebuilt ones."""
    steps = [step for stage in stages() for step in stage]
    assert "ADD" not in {step.name for step in steps}
    installs = [
        command
        for step in steps
        if step.name == "RUN"
        for command in step.text.split("&&")
        if " install " in command
    ]
    assert 3 == len(installs)
    for command in installs:
        hashed = {"--require-hashes", "--only-binary=:all:"} <= set(command.split())
        assert hashed or {"--no-index", "--no-deps"} <= set(command.split())


def test_labels() -> None:
    """The image has all the usual OCI labels."""
    label = the("LABEL", stages()[-1]).text
    assert set() == {f"org.opencontainers.image.{name}" for name in LABELS} - set(
        re.findall(r"([\w.]+)=", label)
    )


def test_context() -> None:
    """Every copied file exists, and the build context has exactly the copied files."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = {
        source.rstrip("/")
        for stage in stages()
        for step in stage
        if step.name == "COPY"
        for source in step.sources
    }
    assert [] == [source for source in sources if not (ROOT / source).exists()]
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()
    assert sources == allowed


@pytest.mark.parametrize("lock", LOCKS)
def test_lock(lock: str) -> None:
    """A lock file pins exact versions with hashes, and names no index or URL."""
    found = pins(lock)
    assert [] == [pin for pin, hashes in found.items() if "==" not in pin or not hashes]
    assert [] == re.findall(r"\w+://\S+|--(?:extra-)?index-url.*", (ROOT / lock).read_text())


def test_locks_have_what_the_project_asks_for() -> None:
    """The lock files satisfy the project's requirements; `make lock` updates them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = {
        "requirements/build.lock": project["build-system"]["requires"],
        "requirements/exporter.lock": [
            *project["project"]["dependencies"],
            *project["project"]["optional-dependencies"]["sidecar"],
        ],
    }
    for lock, requirements in asked.items():
        pinned = dict(pin.partition(";")[0].strip().split("==") for pin in pins(lock))
        for requirement in map(Requirement, requirements):
            assert requirement.specifier.contains(pinned[requirement.name]), (lock, str(requirement))


@pytest.fixture
def prefix() -> Iterator[Path]:
    """Return a directory that every user may enter, unlike pytest's tmp_path."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def interpreter() -> str:
    """Return a Python that the image's user can run; one in a home directory is often closed to other users."""
    for python in (sys.executable, "/usr/bin/python3"):
        command = [python, "-c", "import sys; assert sys.version_info >= (3, 11)"]
        with contextlib.suppress(OSError):
            if subprocess.run(command, cwd="/", check=False, **SOMEBODY).returncode == 0:
                return python
    pytest.fail(f"no Python 3.11 or later that user {UID} can run")


def build(prefix: Path) -> Path:
    """Run the steps of the build stage below ``prefix`` instead of `/`, and return the installed directory.

    The image has one Python. Where its user cannot run the one of the tests, the exporter gets another one, for which
    nothing can be compiled.
    """
    context, exporter = prefix / "build", prefix / "opt" / "exporter"
    runs = interpreter()
    exporter.parent.mkdir(parents=True)
    for step in stages()[0]:
        if step.name == "COPY":
            *_, target = step.text.split()
            for source in step.sources:
                into = context / target
                into.mkdir(parents=True, exist_ok=True)
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, into, dirs_exist_ok=True)
                else:
                    shutil.copy(ROOT / source, into)
        elif step.name == "RUN":
            command = step.text.replace("/opt/exporter", str(exporter)).replace("/build/", f"{context}/")
            command = command.replace("python3 -m venv --", f"{runs} -m venv --")
            if runs != sys.executable:
                command = command.replace(REQUIRE, DISABLE)
            command = command.replace("python3 -m venv /", f"{shlex.quote(sys.executable)} -m venv /")
            subprocess.run(["/bin/sh", "-ec", command], cwd=context, check=True)
    shutil.rmtree(context)
    return exporter


def read_only(tree: Path) -> None:
    """Remove all write permissions."""
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))


@pytest.mark.soak
def test_steps_by_hand(prefix: Path) -> None:
    """The installed exporter runs as a user that cannot write to its files, and answers its health check."""
    exporter = build(prefix)
    read_only(exporter)
    assert not (exporter / "bin" / "pip").exists()
    environment = {
        "PATH": f"{exporter}/bin:/usr/bin:/bin",
        "SQLALCHEMY_POOL_EXPORTER_LISTEN_ADDRESS": "127.0.0.1:0",
    }
    (entry,) = the("ENTRYPOINT", stages()[-1]).array
    command = [str(exporter / "bin" / entry), *the("CMD", stages()[-1]).array]
    with subprocess.Popen(
        command, env=environment, cwd="/", stderr=subprocess.PIPE, text=True, **SOMEBODY
    ) as process:
        assert process.stderr is not None
        address = process.stderr.readline().strip().rpartition("//")[2]
        check = [command[0], "healthcheck", "--listen-address", address]
        assert eventually(lambda: 0 == subprocess.run(check, cwd="/", check=False, **SOMEBODY).returncode)
        process.terminate()
        process.communicate()  # read its last output, or its writes to the pipe could fail
    assert 0 == process.returncode

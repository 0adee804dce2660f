# SPDX-License-Identifier: Apache-2.0
"""The workflows have only the rights they need, actions are pinned, and the pre-commit hooks are our own."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.support.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.newest

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TOOLS = Path(sys.executable).parent
# Job → its write permissions.
RIGHTS = {
    "attest": {"id-token", "attestations"},
    "publish": {"id-token"},
    "image": {"packages", "id-token", "attestations"},
    "chart": {"packages", "id-token", "attestations"},
}
workflows = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)


def jobs(path: Path) -> dict[str, Any]:
    """Return the jobs of a workflow."""
    found: dict[str, Any] = yaml.safe_load(path.read_text())["jobs"]
    return found


def steps(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the steps of all jobs of a workflow."""
    for job in jobs(path).values():
        yield from job["steps"]


def test_there_are_some() -> None:
    """The workflows are the two that the documentation names."""
    assert ["ci.yml", "release.yml"] == [path.name for path in WORKFLOWS]


@workflows
def test_rights(path: Path) -> None:
    """A workflow has no permissions, its jobs only those listed above, and no workflow runs on pull_request_target."""
    workflow = yaml.safe_load(path.read_text())
    assert {} == workflow["permissions"]
    assert "pull_request_target" not in path.read_text()
    for name, job in workflow["jobs"].items():
        writes = {right for right, kind in job["permissions"].items() if kind == "write"}
        assert RIGHTS.get(name, set()) == writes
        assert {"contents"} >= set(job["permissions"]) - writes
        assert job["timeout-minutes"] <= 60


@workflows
def test_actions_are_pinned(path: Path) -> None:
    """Each action is pinned to a commit, with its release in a comment; checkouts keep no credentials."""
    used = [line.strip() for line in path.read_text().splitlines() if "uses:" in line]
    assert used
    pinned = re.compile(r"(- )?uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
    assert [] == [line for line in used if not pinned.fullmatch(line)]
    checkouts = [step for step in steps(path) if step.get("uses", "").startswith("actions/checkout@")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


@workflows
def test_nothing_is_put_into_scripts(path: Path) -> None:
    """Scripts contain no ``${{ }}`` expressions, which could inject code, and workflows use no stored secrets."""
    assert [] == [step["run"] for step in steps(path) if "${{" in step.get("run", "")]
    assert "secrets." not in path.read_text()


def test_zizmor() -> None:
    """zizmor, a checker of workflows, finds nothing in its pedantic mode."""
    command: list[str | Path] = [
        TOOLS / "zizmor",
        "--offline",
        "--pedantic",
        "--no-progress",
        "--quiet",
        "--color",
        "never",
        ROOT / ".github",
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (0, "") == (
        said.returncode,
        said.stdout.replace("No findings to report. Good job!", "").strip(),
    ), said.stderr


def test_nothing_untested_is_published() -> None:
    """Every job that publishes comes after the test job, which compares the built wheel with the tested one.

    The index gets the compiled wheels, too, each of which has been tried where it was compiled.
    """
    needs = {
        name: job.get("needs") for name, job in jobs(ROOT / ".github" / "workflows" / "release.yml").items()
    }

    def before(name: str) -> set[str]:
        first = needs[name] or []
        names = [first] if isinstance(first, str) else first
        return {*names, *(earlier for each in names for earlier in before(each))}

    assert {"attest", "publish", "image", "chart"} == {name for name in needs if "test" in before(name)}
    assert {"attest", "wheels"} <= before("publish")
    assert "cmp .venv/pure/*.whl built/*.whl" in (ROOT / ".github" / "workflows" / "release.yml").read_text()


def test_hooks_are_of_this_repository() -> None:
    """The pre-commit configuration is valid, and all its hooks are targets of the Makefile."""
    path = ROOT / ".pre-commit-config.yaml"
    subprocess.run([TOOLS / "pre-commit", "validate-config", path], check=True)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for repository in yaml.safe_load(path.read_text())["repos"]:
        assert "local" == repository["repo"]
        for hook in repository["hooks"]:
            make, target = hook["entry"].split()
            assert "make" == make
            assert target in targets


@pytest.mark.parametrize(
    ("platform", "archs"), [("linux", "x86_64"), ("linux", "aarch64"), ("macos", "arm64")]
)
def test_wheels_of_every_interpreter(platform: str, archs: str) -> None:
    """cibuildwheel, in the release that the workflow pins, compiles wheels for each interpreter and C library."""
    command = [
        str(TOOLS / "cibuildwheel"),
        "--platform",
        platform,
        "--archs",
        archs,
        "--print-build-identifiers",
    ]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    systems = ("manylinux", "musllinux") if platform == "linux" else ("macosx",)
    assert {
        f"cp3{minor}-{system}_{archs}"
        for minor in ("11", "12", "13", "14", "14t", "15", "15t")
        for system in systems
    } == set(printed)
    (action,) = (
        line
        for line in (ROOT / ".github/workflows/release.yml").read_text().splitlines()
        if "/cibuildwheel@" in line
    )
    assert action.endswith(f"# v{version('cibuildwheel')}")

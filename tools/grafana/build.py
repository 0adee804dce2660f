# SPDX-License-Identifier: Apache-2.0
"""Put the page together that draws and checks dashboards: npm installs Grafana's packages, esbuild bundles them.

Everything is made in ``.venv/grafana``. ``npm ci`` runs again only if the lock file changes, which takes two minutes.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).parent / "page"
BUILD = ROOT / ".venv" / "grafana"
PACKAGES = ("package.json", "package-lock.json", ".npmrc")


class BuildError(Exception):
    """npm, esbuild or TypeScript failed; the message is what it said."""


def built() -> Path:
    """Return the directory with the page's scripts, which is up to date with its sources."""
    BUILD.mkdir(parents=True, exist_ok=True)
    _install()
    for name in ("src", "schema"):
        shutil.rmtree(BUILD / name, ignore_errors=True)
    shutil.copytree(SOURCE, BUILD, dirs_exist_ok=True)
    run("node", "build.mjs")
    return BUILD


def run(*command: str) -> str:
    """Run a program in the directory and return its output."""
    try:
        done = subprocess.run(command, cwd=BUILD, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BuildError(f"{command[0]} is missing: Debian's packages nodejs and npm have it") from None
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def _install() -> None:
    """Install the packages that the lock file names, unless they are there."""
    wanted = "".join((SOURCE / name).read_text("utf-8") for name in PACKAGES)
    ready = BUILD / ".ready"
    if ready.exists() and ready.read_text("utf-8") == wanted:
        return
    for name in PACKAGES:
        shutil.copy(SOURCE / name, BUILD)
    # No package's own script runs. Grafana's packages ask for a newer Node.js than their bundle needs.
    run("npm", "ci", "--ignore-scripts", "--loglevel=error")
    ready.write_text(wanted, "utf-8")

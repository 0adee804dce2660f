# SPDX-License-Identifier: Apache-2.0
"""Runs first in each Python process below ``sqlalchemy-pool-exporter run``: PYTHONPATH begins with this folder.

Any Python can be among them, also one that is too old for this package, or that does not have it installed. So this
file is written for all of them, and does nothing there. Python imports one module of this name, so the one that this
hides is imported here.
"""

import os
import sys


def _import_hidden():
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]
    mine = sys.modules.pop("sitecustomize")
    try:
        import sitecustomize  # noqa: F401 - not this one
    except ImportError as error:
        if getattr(error, "name", "sitecustomize") != "sitecustomize":
            raise
    finally:
        sys.modules.setdefault("sitecustomize", mine)


def _activate():
    if sys.version_info < (3, 11):
        return
    try:
        from sqlalchemy_pool_exporter.launch.activation import activate
    except ImportError:
        return
    activate()


try:
    _import_hidden()
finally:
    _activate()

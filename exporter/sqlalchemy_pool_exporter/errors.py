# SPDX-License-Identifier: Apache-2.0
"""Exceptions that this package raises.

A checkout or a return never raises one of them; recording counts its faults instead.
"""

from __future__ import annotations


class PoolExporterError(Exception):
    """Root of every exception raised on purpose by this package."""


class TargetError(PoolExporterError, TypeError):
    """An argument of ``instrument()`` or ``uninstrument()`` cannot be used: no engine or pool, name or registry."""


class ConfigError(PoolExporterError, ValueError):
    """A configuration is wrong; the message lists every fault with its dotted path."""


class EndpointError(PoolExporterError, OSError):
    """An HTTP endpoint cannot listen on its address or port."""


class SegmentError(PoolExporterError):
    """A segment file cannot be used: damaged, foreign, or of another layout version."""


class BundleError(PoolExporterError, OSError):
    """A bundled file is missing, or cannot be written to the given directory."""


class ThresholdError(PoolExporterError, ValueError):
    """A threshold of the rules has an unknown name or an invalid value; the message lists every fault."""


class BoardError(PoolExporterError, OSError):
    """The board of a directory or of an endpoint cannot be read."""


class LaunchError(PoolExporterError, ValueError):
    """The command ``run`` was called with something that it cannot run."""

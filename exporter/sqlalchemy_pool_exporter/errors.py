# SPDX-License-Identifier: Apache-2.0
"""Exceptions the project raises: one root, few leaves.

Nothing here is ever raised out of a checkout or a return; recording counts its faults instead.
"""

from __future__ import annotations


class PoolExporterError(Exception):
    """Root of every exception raised on purpose by this package."""


class TargetError(PoolExporterError, TypeError):
    """What was given to ``instrument()`` or ``uninstrument()`` is not an engine or a pool."""


class ConfigError(PoolExporterError, ValueError):
    """A configuration is wrong; the message lists every fault with its dotted path."""


class EndpointError(PoolExporterError, OSError):
    """An HTTP endpoint cannot listen where it was told to."""


class SegmentError(PoolExporterError):
    """A shared segment cannot be used: truncated, foreign, or of another layout version."""


class BundleError(PoolExporterError, OSError):
    """A bundled file is missing, or cannot be written where it was told to go."""


class ThresholdError(PoolExporterError, ValueError):
    """A threshold of the rules has an unknown name or a value that is none; the message lists every fault."""

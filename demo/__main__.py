# SPDX-License-Identifier: Apache-2.0
"""``python -m demo``."""

import signal
import sys

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Run the demo and return its exit status."""
    # The import below takes a second on a slow machine, and a Ctrl-C during it would print a traceback. So the kernel
    # holds the signals back until the event loop handles them and cli unblocks them.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    from .cli import main as run  # noqa: PLC0415 - see above

    return run(sys.argv[1:], STOP_SIGNALS)


if __name__ == "__main__":
    sys.exit(main())

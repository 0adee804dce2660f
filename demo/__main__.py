# SPDX-License-Identifier: Apache-2.0
"""``python -m demo``."""

import signal
import sys

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Run the demo and return its exit status."""
    # The imports below take a second on a slow machine. The kernel keeps a Ctrl-C that falls into it until the event
    # loop can take it (cli unblocks), so there is no moment in which it would be a traceback.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    from .cli import main as run  # noqa: PLC0415 - see above

    return run(sys.argv[1:], STOP_SIGNALS)


if __name__ == "__main__":
    sys.exit(main())

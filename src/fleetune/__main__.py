"""The command `fleetune`, and `python -m fleetune`: one line and its exit code where Ctrl-C comes before anything is loaded."""

from __future__ import annotations

import sys

from fleetune.errors import INTERRUPTED


def main() -> None:
    """Load the command line and run it."""
    try:
        from fleetune.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("fleetune: interrupted\n")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()

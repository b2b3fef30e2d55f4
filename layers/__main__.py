"""`python -m layers`: the command with the ids of the caller, in no user namespace of its own (see `layers.cli`)."""

from __future__ import annotations

import sys

from layers.cli.command import main

if __name__ == "__main__":
    sys.exit(main())

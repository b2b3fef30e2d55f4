"""`python -m layers`: the command without the ids that `layers` gives it (see `layers.cli`)."""

from __future__ import annotations

import sys

from layers.cli.command import main

if __name__ == "__main__":
    sys.exit(main())

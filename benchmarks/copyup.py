"""The cost of copy-up: `unionfs bench copyup`, from a checkout. `python -m benchmarks.copyup --quick`."""

from __future__ import annotations

import sys

from unionfs.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["bench", "copyup", *sys.argv[1:]]))

"""The program that the keeper of a mount executes for an upgrade (fuse.upgrade).

The arguments are the number of a descriptor with values, and the words that the process is to show as its command line.
The file has this name in all versions.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Continue the mount, in the package that this file is in."""
    packages = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if packages not in sys.path:
        sys.path.insert(0, packages)
    from unionfs import compiled

    compiled.use_compiled()
    from unionfs.daemon import upgrade

    upgrade.main(sys.argv[1:])


if __name__ == "__main__":
    main()

"""The version of the installed package, and whether its hot modules are compiled, as `unionfs --version` prints it.

The version is in the name of the metadata's directory: importing importlib.metadata takes as long as starting Python.
"""

from __future__ import annotations

import os
import sys

from unionfs import compiled

_SUFFIX = ".dist-info"


def text() -> str:
    """`unionfs VERSION, CODE`."""
    found = installed()
    return f"unionfs {found}, {compiled.code_in_use()}" if found else "unionfs (not installed as a package)"


def installed() -> str:
    """The version; "" if the package is not installed (a checkout on PYTHONPATH)."""
    for directory in sys.path:
        try:
            names = os.listdir(directory or ".")
        except OSError:
            continue
        for name in names:
            if name.startswith("unionfs-") and name.endswith(_SUFFIX):
                return name[len("unionfs-") : -len(_SUFFIX)]
    return ""

"""Which code runs: the hot modules compiled to machine code, or the same modules as ordinary Python.

An installed unionfs has the compiled modules beside their sources, where Python prefers them by itself: nothing here is
needed then. A checkout must never run yesterday's code. `.build/setup.py compile_checkout` (called by .ci/setup) puts
its compiled modules into build/compiled, where Python finds none of them, beside a stamp that tells the state of each
source they were made of. `prefer` lets them be imported if all sources still look like that, else none of them: a
changed source takes effect at once, as Python, until it is compiled anew.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from types import ModuleType
from typing import Final

CHECKOUT: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PLACE: Final = os.path.join("build", "compiled")
STAMP: Final = "stamp"
PURE: Final = "UNIONFS_PURE"
"""Set in the environment: build nothing, and run a checkout as Python. Says nothing to what is installed."""

_ONE_OF_THEM: Final = "unionfs.core.union"


class _Finder:
    """Knows where each compiled module of the checkout is (importlib.abc.MetaPathFinder)."""

    def __init__(self, paths: dict[str, str]) -> None:
        self._paths = paths  # immutable: by full name

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What importlib asks for."""
        there = self._paths.get(name)
        if there is None:
            return None
        return ModuleSpec(name, ExtensionFileLoader(name, there), origin=there)


def prefer() -> None:
    """Let this process import the checkout's compiled modules, if they are there and up to date. Comes before the first
    import of any of them."""
    top = os.path.join(CHECKOUT, PLACE)
    if os.environ.get(PURE) or state_of_checkout() != "":
        return
    suffix = EXTENSION_SUFFIXES[0]
    paths = {}
    for directory, _, names in os.walk(top):
        below = os.path.relpath(directory, top)
        package = "" if below == "." else below.replace(os.sep, ".") + "."
        for name in names:
            if name.endswith(suffix):
                paths[package + name.removesuffix(suffix)] = os.path.join(directory, name)
    sys.meta_path.insert(0, _Finder(paths))


def state_of_checkout() -> str:
    """Why `prefer` does nothing; "" when it does something."""
    try:
        with open(os.path.join(CHECKOUT, PLACE, STAMP), encoding="utf-8") as file:
            made_with, *sources = file.read().splitlines()
    except OSError:
        return "not compiled"
    if made_with != EXTENSION_SUFFIXES[0]:
        return "compiled for another Python"
    if any(line != stamp_line(line.rpartition("\t")[2]) for line in sources):
        return "sources have changed since they were compiled"
    return ""


def stamp_line(source: str) -> str:
    """The state of one source of the checkout, and its path there."""
    try:
        st = os.stat(os.path.join(CHECKOUT, source))
    except OSError:
        return ""
    return f"{st.st_size}\t{st.st_mtime_ns}\t{source}"


def in_words() -> str:
    """What this process runs or would run, for people: "compiled" or "Python", with the reason where there is one."""
    if is_in_use():
        return "compiled"
    if os.environ.get(PURE):
        return f"Python ({PURE} is set)"
    return f"Python ({state_of_checkout() or 'not compiled'})"


def is_in_use() -> bool:
    """Whether the hot modules are compiled ones, imported already or not."""
    from importlib.util import find_spec

    loaded = sys.modules.get(_ONE_OF_THEM)
    spec = loaded.__spec__ if loaded is not None else find_spec(_ONE_OF_THEM)
    return spec is not None and isinstance(spec.loader, ExtensionFileLoader)

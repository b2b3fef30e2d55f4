"""Chooses which code runs: the hot modules compiled to machine code, or the same modules as ordinary Python.

An installed unionfs has the compiled modules beside their sources, where Python finds them by itself. A checkout must
never run outdated code: `.build/setup.py compile_checkout` (called by .ci/setup) puts its compiled modules into
build/compiled, where Python does not search, beside a stamp with the digest of each source. `use_compiled` makes them
importable if all sources still have these digests, else none of them: a changed source takes effect at once, as Python,
until it is compiled again.

Each start of a command makes this check, so a source is only read when its size, mtime or ctime differs from the one in
the stamp. The ctime is compared because a program can set the mtime of a changed file, but not the ctime. A copy of a
checkout differs in these times: its commands start a millisecond later, and run the same code.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec

TYPE_CHECKING = False  # each start of a command imports this module
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Final

CHECKOUT: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COMPILED_DIR: Final = os.path.join("build", "compiled")
"""Where a checkout's compiled modules are, relative to CHECKOUT."""
STAMP: Final = "stamp"
"""The file in COMPILED_DIR: the suffix of the modules, a line about the compiler, one `stamp_line` for each source."""
PURE: Final = "UNIONFS_PURE"
"""Set in the environment: build nothing, and run a checkout as Python. Has no effect on what is installed."""

_SETUP_SCRIPT: Final = os.path.join(".build", "setup.py")
_HOT_MODULE: Final = "unionfs.core.union"
_SOURCE_MAX: Final = 1 << 20  # bytes; the architecture test allows 600 lines

_reason = ""  # why this process runs Python; set once, by `use_compiled`


class _Finder:
    """Finds the compiled modules of the checkout (importlib.abc.MetaPathFinder)."""

    def __init__(self, paths: dict[str, str]) -> None:
        self._paths = paths  # immutable: by full name

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer importlib: the spec of `name` if it is compiled, else None."""
        there = self._paths.get(name)
        if there is None:
            return None
        return ModuleSpec(name, ExtensionFileLoader(name, there), origin=there)


def use_compiled() -> None:
    """Make the checkout's compiled modules importable in this process, if they are up to date.

    Changes nothing if one of them is already imported, since compiled code and Python cannot use each other's objects.
    """
    global _reason  # noqa: PLW0603 - one process runs one kind of code
    _reason = why_not_usable()
    if _reason:
        return
    top = os.path.join(CHECKOUT, COMPILED_DIR)
    suffix = EXTENSION_SUFFIXES[0]
    paths = {}
    for directory, _, names in os.walk(top):
        below = os.path.relpath(directory, top)
        package = "" if below == "." else below.replace(os.sep, ".") + "."
        for name in names:
            if name.endswith(suffix):
                paths[package + name.removesuffix(suffix)] = os.path.join(directory, name)
    if not any(name in sys.modules for name in paths):
        sys.meta_path.insert(0, _Finder(paths))


def why_not_usable() -> str:
    """Compare the checkout's compiled modules with its sources. Returns why they cannot be used, "" if they can."""
    try:
        with open(os.path.join(CHECKOUT, COMPILED_DIR, STAMP), encoding="utf-8") as file:
            made_with, _, *lines = file.read().splitlines()
    except (OSError, ValueError):
        made_with, lines = "", []
    if not made_with and not os.path.exists(os.path.join(CHECKOUT, _SETUP_SCRIPT)):
        return "installed without compiled modules"
    if os.environ.get(PURE):
        return f"{PURE} is set"
    if not made_with:
        return "not compiled: run .ci/setup"
    if made_with != EXTENSION_SUFFIXES[0]:
        return "compiled for another Python: run .ci/setup"
    changed = [line.rpartition("\t")[2] for line in lines if not _is_unchanged(line)]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        return f"{changed[0]}{more} changed since it was compiled: run .ci/setup"
    return ""


def _is_unchanged(line: str) -> bool:
    """Whether the source of a stamp line has the content that the line was made of."""
    times, _, rest = line.partition("\t")
    digest, _, source = rest.partition("\t")
    try:
        return _times_of(source) == times or _digest_of(source) == digest
    except OSError:
        return False


def stamp_line(source: str) -> str:
    """Describe the present state of a source: size and times, digest, path in the checkout. Raises: OSError."""
    return f"{_times_of(source)}\t{_digest_of(source)}\t{source}"


def _times_of(source: str) -> str:
    st = os.stat(os.path.join(CHECKOUT, source))
    return f"{st.st_size} {st.st_mtime_ns} {st.st_ctime_ns}"


def _digest_of(source: str) -> str:
    import xxhash  # late: seldom needed. Not for security: who can change sources can also replace the modules

    fd = os.open(os.path.join(CHECKOUT, source), os.O_RDONLY | os.O_CLOEXEC)
    try:
        return xxhash.xxh3_128_hexdigest(os.read(fd, _SOURCE_MAX))
    finally:
        os.close(fd)


def code_in_use() -> str:
    """The kind of code that this process runs, for people: "compiled", or "Python" with the reason."""
    return "compiled" if is_in_use() else f"Python ({_reason or why_not_usable() or 'imported as a library'})"


def is_in_use() -> bool:
    """Whether the hot modules, imported or not, are compiled."""
    loaded = sys.modules.get(_HOT_MODULE)
    if loaded is not None:
        return _is_machine_code(loaded.__spec__)
    # As importlib.util.find_spec, which imports as much as the rest of `unionfs --version` does.
    package = [os.path.join(CHECKOUT, *_HOT_MODULE.split(".")[:-1])]
    for finder in sys.meta_path:
        if (spec := finder.find_spec(_HOT_MODULE, package)) is not None:
            return _is_machine_code(spec)
    return False


def _is_machine_code(spec: ModuleSpec | None) -> bool:
    return spec is not None and isinstance(spec.loader, ExtensionFileLoader)

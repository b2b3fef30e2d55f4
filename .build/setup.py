"""Builds the hot modules as machine code with mypyc, where that can be had; everything else is in pyproject.toml.

    pip install .                      the compiled modules beside their sources; without C compiler or mypy, Python
    UNIONFS_PURE=1 pip install .       never compiled
    python .build/setup.py compile_checkout   into build/compiled, for `unionfs` in a checkout (see unionfs.compiled)

The modules stay ordinary Python and behave the same in both ways, with two differences to keep in mind. Compiled code
lets go of an object after the last use of its name (see core.fds.FileFd). And a function within a function forms a
cycle with what they share, which only the seldom garbage collection ends: where that would keep a descriptor open, use
`functools.partial`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from unionfs.compiled import CHECKOUT, PLACE, PURE, STAMP, stamp_line

CORE = """acl attrs branch content copy_metadata copyup create deferred emulated_owners fds flatten hardlinks
    inodes ledger listing lookup lower marks metadata namecache names node owner_override owners ownership prefetch
    remove rename staging tree union"""
KERNEL = "abi data decode device dispatch encode handlers handshake listing turn"
SOURCES = [
    "unionfs/markers.py",
    "unionfs/id_ranges.py",
    "unionfs/posix_acl.py",
    "unionfs/trees/open_beneath.py",
    *(f"unionfs/core/{name}.py" for name in CORE.split()),
    "unionfs/fuse/errors.py",
    *(f"unionfs/fuse/kernel/{name}.py" for name in KERNEL.split()),
]
"""What a request passes through. The rest would gain nothing; what inherits from OSError or ctypes.Structure (options,
copydata, session, syscalls.files), or is async, mypyc does not compile."""

DIGESTS = "digests"
_BUILDING = {"build", "build_ext", "bdist_wheel", "install", "compile_checkout"}


def extensions() -> list[Extension]:
    """The modules as C, or none, said in a line."""
    if os.environ.get(PURE):
        return _none(f"{PURE} is set")
    if shutil.which(os.environ.get("CC", "cc")) is None:
        return _none("there is no C compiler (Debian's package gcc)")
    try:
        from mypyc.build import mypycify
    except ImportError:
        return _none("mypy is not installed")
    try:
        made: list[Extension] = mypycify(
            ["--config-file=pyproject.toml", "--cache-dir=build/c/mypy", *SOURCES],
            opt_level="2",
            debug_level="0",
            group_name="unionfs",
            target_dir="build/c",
        )
    except SystemExit as why:  # mypycify's way to say that it refuses a module
        return _none(f"mypyc refuses the sources: {why}")
    return made


def _none(why: str) -> list[Extension]:
    sys.stderr.write(f"unionfs: the hot modules stay Python, which is slower: {why}\n")
    return []


class BuildOrNot(build_ext):
    """As build_ext, but all or nothing, and nothing is no failure."""

    def run(self) -> None:
        """Compile; when that fails, take away what there is."""
        try:
            super().run()
        except Exception as why:  # noqa: BLE001 - a compiler can fail in many ways, and ours is optional
            _none(f"compiling failed: {why}")
            for extension in self.extensions:
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            self.extensions = []


class CompileCheckout(Command):
    """compile_checkout: bring build/compiled up to date. Does nothing when only the times of sources have changed."""

    user_options: list[tuple[str, str, str]] = []  # noqa: RUF012 - setuptools wants a class attribute

    def initialize_options(self) -> None:
        """No options."""

    def finalize_options(self) -> None:
        """No options."""

    def run(self) -> None:
        """Compile aside, then exchange directories."""
        place, new = Path(CHECKOUT, PLACE), Path(CHECKOUT, PLACE + ".new")
        digests = _digests()
        is_same = (place / DIGESTS).is_file() and (place / DIGESTS).read_text() == digests
        if is_same and not os.environ.get(PURE):
            _write_stamp(place)
            return
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(new, ignore_errors=True)
        stamp = _stamp()  # before compiling: a source that is changed meanwhile makes it stale
        build = self.get_finalized_command("build_ext")
        build.build_lib, build.build_temp, build.inplace = str(new), "build/objects", False
        build.run()
        if build.extensions:
            (new / DIGESTS).write_text(digests)
            (new / STAMP).write_text(stamp)
            new.rename(place)
        shutil.rmtree(new, ignore_errors=True)


def _digests() -> str:
    """What decides on the outcome: the compiler, Python, the sources."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        mypy = version("mypy")
    except PackageNotFoundError:
        mypy = ""
    lines = [f"{mypy} {sys.version}"]
    lines += [f"{hashlib.sha256(Path(path).read_bytes()).hexdigest()} {path}" for path in [".build/setup.py", *SOURCES]]
    return "\n".join(lines)


def _stamp() -> str:
    return "\n".join([EXTENSION_SUFFIXES[0], *map(stamp_line, SOURCES)])


def _write_stamp(place: Path) -> None:
    new = place / (STAMP + ".new")
    new.write_text(_stamp())
    new.rename(place / STAMP)


def main() -> None:
    """What pip and .ci/setup call."""
    os.chdir(CHECKOUT)
    made: Any = extensions() if _BUILDING & set(sys.argv) and not _is_up_to_date() else []
    setup(ext_modules=made, cmdclass={"build_ext": BuildOrNot, "compile_checkout": CompileCheckout})


def _is_up_to_date() -> bool:
    """Nothing is to be done: then mypyc need not be asked."""
    digests = Path(CHECKOUT, PLACE, DIGESTS)
    wanted = "compile_checkout" in sys.argv and not os.environ.get(PURE)
    return wanted and digests.is_file() and digests.read_text() == _digests()


if __name__ == "__main__":
    main()

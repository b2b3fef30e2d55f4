"""Builds the hot modules as machine code with mypyc, where that can be had; everything else is in pyproject.toml.

    pip install .                      the compiled modules beside their sources; without C compiler or mypy, Python
    UNIONFS_PURE=1 pip install .       never compiled
    python -m build                    a source archive, and a wheel of it
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
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from unionfs.compiled import CHECKOUT, COMPILED_DIR, PURE, STAMP, stamp_line

CORE = """acl attrs backing branch branches content copy_metadata copyup create data_files emulated_owners fds fill
    flatten frozen_names handle_table hardlinks inode_flags inodes ledger listing lookup lower marks metadata
    namecache names node node_record node_table owner_override owners ownership partial placement readdir
    recorded_entry recorded_listing recorded_node remove
    rename sparse_copyup staging union union_state view"""
KERNEL = """abi activity activity_sums busy_poll data decode device dispatch encode handlers handshake listing opens
    turn views"""
SOURCES = [
    "unionfs/markers.py",
    "unionfs/partial_record.py",
    "unionfs/id_ranges.py",
    "unionfs/posix_acl.py",
    "unionfs/trees/open_beneath.py",
    *(f"unionfs/core/{name}.py" for name in CORE.split()),
    "unionfs/fuse/errors.py",
    *(f"unionfs/fuse/kernel/{name}.py" for name in KERNEL.split()),
]
"""What a request passes through. The rest would gain nothing; what inherits from OSError or ctypes.Structure (options,
copydata, session, syscalls.files), or is async, mypyc does not compile."""

IN_SDIST = [".build", ".ci", ".github", "benchmarks", "docs", "tests"]
"""Directories that a source archive holds besides the packages: it builds, and is tested, as a checkout is."""
TOP_FILES = ["ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", ".gitignore"]
"""... and files, besides those that setuptools takes by itself."""

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
            multi_file=True,
            group_name="unionfs",
            target_dir="build/c",
        )
    except SystemExit as why:  # mypycify's way to say that it refuses a module
        return _none(f"mypyc refuses the sources: {why}")
    return made


def _none(why: str) -> list[Extension]:
    sys.stderr.write(f"unionfs: the hot modules stay Python, which is slower: {why}\n")
    return []


def shared_files() -> list[tuple[str, list[str]]]:
    """Write man pages and completion of both commands below build/share: (directory below the prefix, its files)."""
    from unionfs.cli import completion, man, parsers

    made: list[tuple[str, list[str]]] = []
    for command in (parsers.of_unionfs(), parsers.of_layers()):
        texts = {
            f"share/man/man1/{command.name}.1": man.page(command),
            f"share/bash-completion/completions/{command.name}": completion.script(command, "bash"),
            f"share/zsh/site-functions/_{command.name}": completion.script(command, "zsh"),
            f"share/fish/vendor_completions.d/{command.name}.fish": completion.script(command, "fish"),
        }
        for name, text in texts.items():
            path = Path("build", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
            made.append((os.path.dirname(name), [str(path)]))
    return made


class BuildOrNot(build_ext):
    """As build_ext, but all or nothing, and nothing is no failure. Each processor compiles some of the files."""

    def run(self) -> None:
        """Compile; when that fails, take away what there is."""
        try:
            super().run()
        except Exception as why:  # noqa: BLE001 - a compiler can fail in many ways, and ours is optional
            _none(f"compiling failed: {why}")
            for extension in self.extensions:
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            self.extensions = []

    def build_extension(self, ext: Extension) -> None:
        """Compile the files of an extension side by side: setuptools does so with extensions only, and one of ours has
        nearly all the code."""
        compile_files = type(self.compiler).compile.__get__(self.compiler)

        def compile_side_by_side(sources: list[str], **how: Any) -> list[str]:
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
                objects = threads.map(lambda source: compile_files([source], **how), sources)
                return [name for names in objects for name in names]

        self.compiler.compile = compile_side_by_side
        super().build_extension(ext)


class SourceArchive(sdist):
    """As sdist, with the rest of the checkout: a MANIFEST.in would have to be at the top."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Take IN_SDIST and TOP_FILES along."""
        ours = [name for name in TOP_FILES if os.path.exists(name)]
        for top in IN_SDIST:
            ours += [str(path) for path in Path(top).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        super().make_release_tree(base_dir, sorted({*files, *ours}))


class CompileCheckout(Command):
    """compile_checkout: bring build/compiled up to date. Compiles nothing when no digest of a source differs."""

    user_options: list[tuple[str, str, str]] = []  # noqa: RUF012 - setuptools wants a class attribute

    def initialize_options(self) -> None:
        """No options."""

    def finalize_options(self) -> None:
        """No options."""

    def run(self) -> None:
        """Compile aside, then exchange directories."""
        place, new = Path(CHECKOUT, COMPILED_DIR), Path(CHECKOUT, COMPILED_DIR + ".new")
        stamp = _stamp()  # before compiling: a source that is changed meanwhile makes it stale
        if _is_up_to_date(stamp):
            Path(place, STAMP + ".new").write_text(stamp)  # the times may be new
            Path(place, STAMP + ".new").rename(place / STAMP)
            return
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(new, ignore_errors=True)
        build = self.get_finalized_command("build_ext")
        build.build_lib, build.build_temp, build.inplace = str(new), "build/objects", False
        build.run()
        if build.extensions:
            (new / STAMP).write_text(stamp)
            new.rename(place)
        shutil.rmtree(new, ignore_errors=True)


def _stamp() -> str:
    """Describe what decides on the outcome: Python, the compiler with the list of sources, the sources."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        mypy = version("mypy")
    except PackageNotFoundError:
        mypy = ""
    script = hashlib.sha256(Path(".build/setup.py").read_bytes()).hexdigest()
    compiler = f"{mypy} {sys.version} {script}".replace("\n", " ")
    return "\n".join([EXTENSION_SUFFIXES[0], compiler, *map(stamp_line, SOURCES)])


def _is_up_to_date(stamp: str) -> bool:
    """Whether build/compiled was made of what `stamp` describes, times aside."""
    try:
        present = Path(CHECKOUT, COMPILED_DIR, STAMP).read_text()
    except OSError:
        return False
    return not os.environ.get(PURE) and _without_times(present) == _without_times(stamp)


def _without_times(stamp: str) -> list[str]:
    return [line.partition("\t")[2] or line for line in stamp.splitlines()]


def main() -> None:
    """What pip and .ci/setup call."""
    os.chdir(CHECKOUT)
    asked = _BUILDING & set(sys.argv)
    is_done = asked == {"compile_checkout"} and _is_up_to_date(_stamp())  # then mypyc need not be asked
    made: Any = extensions() if asked and not is_done else []
    commands = {"build_ext": BuildOrNot, "sdist": SourceArchive, "compile_checkout": CompileCheckout}
    shared = (
        shared_files() if "bdist_wheel" in sys.argv else []
    )  # a checkout has `unionfs man` and `unionfs completion`
    setup(ext_modules=made, data_files=shared, cmdclass=commands)


if __name__ == "__main__":
    main()

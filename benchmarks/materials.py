"""Make the input of the workloads: a Debian root filesystem, a tar of sources, synthetic trees.

All is made once, never changed, and kept in /var/cache/unionfs/bench (root) or $XDG_CACHE_HOME/unionfs/bench. A name
contains a digest of the recipe, so a change here makes a new material. The content of all but Debian is fixed;
`Materials.facts` gives the size of the root filesystem.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unionfs.bench import run_directory

_SUITE: Final = "bookworm"
_RECIPE: Final = (
    "mmdebstrap",
    "--quiet",
    "--variant=minbase",
    "--format=tar",
    # libc6-dev, g++ and their headers make it a machine for building programs, with some 13,000 files.
    "--include=python3,git,gcc,g++,libc6-dev",
    "--skip=output/dev",
    "--aptopt=Acquire::Languages none",
    _SUITE,
)
_BUILD_TIMEOUT_S: Final = 900
_FIXED_MTIME: Final = 1_700_000_000
_SOURCE_TREES: Final = ("usr/lib/python3.11", "usr/include")  # of the root filesystem: what `untar` unpacks


class NoMaterialError(Exception):
    """A material cannot be made here; the message says why."""


@dataclass(frozen=True, slots=True)
class Materials:
    """The cached materials. With `small` tiny ones that any machine can make, for the tests."""

    cache: Path
    small: bool = False

    def debian(self) -> Path:
        """Return the usual lower: the directory of a Debian root filesystem.

        Raises: NoMaterialError when mmdebstrap is missing or fails (most often: no network).
        """
        if self.small:
            return self._kept("tiny-rootfs", "3", _make_tiny_rootfs)
        return self._kept("debian", "\0".join(_RECIPE), _make_debian)

    def sources(self) -> Path:
        """Return a directory with `sources.tar`: thousands of small files in some hundred directories."""
        rootfs = self.debian()
        return self._kept("sources", rootfs.name, lambda into: _pack_sources(rootfs, into / "sources.tar"))

    def spread(self, files: int, directories: int, lowers: int, size: int = 0) -> list[Path]:
        """Return `lowers` lowers, with `files` files of `size` bytes in `directories` directories dealt out in turn."""

        def make(into: Path) -> None:
            for number in range(lowers):
                (into / str(number)).mkdir()
            for number in range(files):
                directory = into / str(number % lowers) / f"d{number % directories}"
                directory.mkdir(exist_ok=True)
                (directory / f"file{number}").write_bytes(b"x" * size)

        top = self._kept(f"spread-{lowers}", f"{files} {directories} {lowers} {size} 1", make)
        return [top / str(number) for number in range(lowers)]

    def large_file(self, size: int) -> Path:
        """Return a directory with the file `large` of `size` bytes, none of which are holes."""

        def make(into: Path) -> None:
            block = hashlib.sha256(b"unionfs").digest() * (1 << 15)
            with (into / "large").open("wb") as large:
                for start in range(0, size, len(block)):
                    large.write(block[: size - start])

        return self._kept("large", f"{size} 1", make)

    def made(self, name: str, recipe: str, make: Callable[[Path], None]) -> Path:
        """Return a directory that `make` has filled; `recipe` must change whenever `make` does."""
        return self._kept(name, recipe, make)

    def facts(self) -> dict[str, int | str]:
        """Return the name of the root filesystem and its numbers of files and directories."""
        top = self.debian()
        files = directories = 0
        for _, below, names in os.walk(top):
            directories += len(below)
            files += len(names)
        return {"name": top.name, "files": files, "directories": directories}

    def _kept(self, name: str, recipe: str, make: Callable[[Path], None]) -> Path:
        digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
        kept = self.cache / f"{name}-{digest}"
        with self._locked():
            if not kept.exists():
                part = self.cache / f"{kept.name}.part"
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir(mode=0o755)
                make(part)
                part.rename(kept)
        return kept

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the cache, so that two runs at once make a material once."""
        self.cache.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.cache / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def default_cache() -> Path:
    """Return the directory of materials: $UNIONFS_BENCH_CACHE if that is set."""
    if "UNIONFS_BENCH_CACHE" in os.environ:
        return Path(os.environ["UNIONFS_BENCH_CACHE"])
    if os.geteuid() == 0:
        return Path("/var/cache/unionfs/bench")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unionfs" / "bench"


def default_run_base() -> Path:
    """Return the directory below which runs have theirs: in $UNIONFS_BENCH_DIR, else in /var/tmp."""
    return run_directory.base(os.environ.get("UNIONFS_BENCH_DIR"))


def _make_debian(into: Path) -> None:
    if not shutil.which("mmdebstrap"):
        raise NoMaterialError("mmdebstrap is not installed (make bench installs it)")
    with tempfile.TemporaryDirectory(prefix="unionfs-bench-", dir="/var/tmp") as aside:
        tar = Path(aside) / "debian.tar"
        _run([*_RECIPE, os.fspath(tar)], cwd=Path(aside))
        # For an ordinary user all files belong to that user: files of other owners could not be copied up in any union.
        owners = ["--same-owner"] if os.geteuid() == 0 else ["--no-same-owner"]
        _run(["tar", "-xp", "--numeric-owner", *owners, "-f", os.fspath(tar)], cwd=into)


def _run(argv: list[str], cwd: Path) -> None:
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=cwd,
            env={**os.environ, "TMPDIR": "/var/tmp"},
            timeout=_BUILD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NoMaterialError(f"{argv[0]} did not end within {_BUILD_TIMEOUT_S} s") from None
    if done.returncode != 0:
        raise NoMaterialError(f"{argv[0]} failed: {done.stderr.strip()[-500:]}")


def _make_tiny_rootfs(into: Path) -> None:
    """Make the directories of the root filesystem that workloads name, with a handful of files each."""
    library = into / "usr/lib/python3.11"
    for package in ("", "json", "email"):
        directory = library / package
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "__init__.py").write_text("import sys\n")
        for number in range(5):
            (directory / f"module{number}.py").write_text(f"NUMBER = {number}\n")
    for place in ("usr/include/sys", "usr/share/doc/thing", "usr/share/perl/thing", "etc"):
        (into / place).mkdir(parents=True)
        for number in range(5):
            (into / place / f"file{number}.h").write_text(f"/* {number} */\n" * 50)
    (into / "etc/link").symlink_to("file0.h")


def _pack_sources(rootfs: Path, tar: Path) -> None:
    """Pack sources in the order of their names, with one owner and one time: the same bytes from the same files."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if "__pycache__" in member.name:
            return None
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = _FIXED_MTIME
        return member

    with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT) as archive:
        for tree in _SOURCE_TREES:
            archive.add(rootfs / tree, tree, filter=plain)  # TarFile.add sorts the content of a directory

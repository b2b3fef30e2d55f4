"""The same random steps on a Union and on a plain directory holding the merged tree: nobody may see a difference.

Layers, marks, formats and steps are drawn by hypothesis. Quick by default; `HYPOTHESIS_PROFILE=deep` looks for long.
A failure prints a call of `replay`; a bug found this way is kept below as one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.core.acl import acl
from tests.core.differential import Pair, replay
from tests.core.drivers import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.core.layers_at_random import CONTENTS, DIR_PERMS, FILE_PERMS, MTIMES, NAMES, OWNERS, layers
from tests.core.snapshots import Snapshot
from tests.core.stack import Whiteout
from tests.support.timing import limit

_DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
_EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "2000" if _DEEP else "40"))
_STEPS = int(os.environ.get("MODEL_STEPS", "60" if _DEEP else "25"))

MODEL_SETTINGS = settings(
    max_examples=_EXAMPLES,
    stateful_step_count=_STEPS,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

_pick = st.integers(0, 1 << 16)
_name = st.sampled_from(NAMES)
_offset = st.sampled_from((0, 1, 3, 4096, 5000, 70_000))
_user_xattr = st.sampled_from((b"user.a", b"user.b", b"user.long"))
_fallocate_mode = st.sampled_from((0, 1, 3, 0x10, 0x11, 0x08, 0x20))


class UnionMachine(RuleBasedStateMachine):
    """Each rule is one verb. Paths are picked by number among those that exist, so that most steps do something."""

    pair: Pair
    here: Snapshot
    overrides = ""
    keeps = False

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="model"))
        self.base.chmod(0o755)
        self.started = False

    @initialize(
        lowers=st.lists(layers(), min_size=1, max_size=4),
        upper=layers(),
        whiteout=st.sampled_from(("aufs", "overlay")),
        caching=st.booleans(),
    )
    def start(self, lowers: list[str], upper: str, whiteout: str, caching: bool) -> None:
        self.pair = Pair(
            self.base,
            lowers,
            upper,
            cast(Whiteout, whiteout),
            caching=caching or self.keeps,
            overrides=self.overrides,
            keeps=self.keeps,
        )
        self.started = True
        self.here = self.pair.check()

    def do(self, verb: str, *args: object) -> None:
        self.pair.do(verb, *args)
        self.here = self.pair.check()

    def old(self, pick: int) -> bytes:
        """A path that exists, the root excepted if there is another."""
        paths = sorted(path for path in self.here if path) or [b"a"]
        return paths[pick % len(paths)]

    def is_dir(self, path: bytes) -> bool:
        return path in self.here and self.here[path].kind == 0o040000

    def file(self, pick: int) -> bytes:
        """A regular file mostly, so that data verbs find data."""
        files = sorted(path for path, snap in self.here.items() if snap.kind == 0o100000)
        return files[pick % len(files)] if files and pick % 8 else self.old(pick)

    def new(self, pick: int, name: bytes) -> bytes:
        """A path that may exist or not, in a directory that does."""
        parents = sorted(path for path, snap in self.here.items() if snap.kind == 0o040000)
        parent = parents[pick % len(parents)]
        return parent + b"/" + name if parent else name

    # -- names --

    @rule(pick=_pick, name=_name, perm=st.sampled_from(FILE_PERMS))
    def create(self, pick: int, name: bytes, perm: int) -> None:
        self.do("create", self.new(pick, name), perm)

    @rule(pick=_pick, name=_name, perm=st.sampled_from(DIR_PERMS))
    def mkdir(self, pick: int, name: bytes, perm: int) -> None:
        self.do("mkdir", self.new(pick, name), perm)

    @rule(pick=_pick, name=_name)
    def symlink(self, pick: int, name: bytes) -> None:
        self.do("symlink", self.new(pick, name), b"../some\xffwhere")

    @rule(pick=_pick, name=_name)
    def mkfifo(self, pick: int, name: bytes) -> None:
        self.do("mknod", self.new(pick, name), 0o010640, 0)

    @rule(pick=_pick, to=_pick, name=_name)
    def link(self, pick: int, to: int, name: bytes) -> None:
        self.do("link", self.old(pick), self.new(to, name))

    @rule(pick=_pick)
    def unlink(self, pick: int) -> None:
        self.do("unlink", self.old(pick))

    @rule(pick=_pick)
    def rmdir(self, pick: int) -> None:
        self.do("rmdir", self.old(pick))

    @rule(pick=_pick)
    def remove_whole(self, pick: int) -> None:
        """As rm -r: the way to an empty merged directory, which chance alone seldom finds."""
        top = self.old(pick)
        below = sorted((path for path in self.here if path == top or path.startswith(top + b"/")), reverse=True)
        for path in below:
            self.pair.do("rmdir" if self.here[path].kind == 0o040000 else "unlink", path)
        self.here = self.pair.check()

    @rule(pick=_pick, to=_pick, name=_name, flags=st.sampled_from((0, 0, 0, RENAME_NOREPLACE)))
    def rename(self, pick: int, to: int, name: bytes, flags: int) -> None:
        self.do("rename", self.old(pick), self.new(to, name), flags)

    @rule(pick=_pick, to=_pick, flags=st.sampled_from((0, RENAME_EXCHANGE)))
    def rename_over(self, pick: int, to: int, flags: int) -> None:
        self.do("rename", self.old(pick), self.old(to), flags)

    @precondition(lambda self: not self.overrides)
    @rule()
    def freeze(self) -> None:
        self.do("freeze")

    # -- data --

    @rule(pick=_pick, offset=_offset, data=st.sampled_from(CONTENTS))
    def write(self, pick: int, offset: int, data: bytes) -> None:
        self.do("write", self.file(pick), offset, data)

    @rule(pick=_pick, size=_offset)
    def truncate(self, pick: int, size: int) -> None:
        self.do("truncate", self.file(pick), size)

    @rule(pick=_pick, mode=_fallocate_mode, offset=_offset, length=st.sampled_from((1, 4096, 8192)))
    def fallocate(self, pick: int, mode: int, offset: int, length: int) -> None:
        self.do("fallocate", self.file(pick), mode, offset, length)

    @rule(pick=_pick, offset=_offset, whence=st.sampled_from((os.SEEK_DATA, os.SEEK_HOLE)))
    def lseek(self, pick: int, offset: int, whence: int) -> None:
        self.do("lseek", self.file(pick), offset, whence)

    @rule(pick=_pick, to=_pick, offset=_offset, length=st.sampled_from((1, 3, 9000)))
    def copy_file_range(self, pick: int, to: int, offset: int, length: int) -> None:
        self.do("copy_file_range", self.file(pick), 0, self.file(to), offset, length)

    # -- attributes --

    @rule(pick=_pick, perm=st.sampled_from(FILE_PERMS + DIR_PERMS))
    def chmod(self, pick: int, perm: int) -> None:
        path = self.old(pick)
        if os.geteuid() != 0 and self.is_dir(path):
            perm |= 0o700  # else the plain directory could not be walked: nobody checks rights in the union here
        self.do("chmod", path, perm)

    @precondition(lambda self: os.geteuid() == 0)
    @rule(pick=_pick, owner=st.sampled_from(OWNERS))
    def chown(self, pick: int, owner: tuple[int, int] | None) -> None:
        self.do("chown", self.old(pick), *(owner or (0, 0)))

    @rule(pick=_pick, mtime_ns=st.sampled_from(MTIMES))
    def utime(self, pick: int, mtime_ns: int | None) -> None:
        self.do("utime", self.old(pick), 17, mtime_ns or 0)

    @rule(
        pick=_pick,
        name=_user_xattr,
        value=st.sampled_from((b"", b"v", b"w" * 300)),
        flags=st.sampled_from((0, 0, 1, 2)),
    )
    def setxattr(self, pick: int, name: bytes, value: bytes, flags: int) -> None:
        self.do("setxattr", self.old(pick), name, value, flags)

    @rule(pick=_pick, name=_user_xattr)
    def removexattr(self, pick: int, name: bytes) -> None:
        self.do("removexattr", self.old(pick), name)

    @rule(pick=_pick, which=st.sampled_from(("access", "default")), value=st.integers(0, 1))
    def set_acl(self, pick: int, which: str, value: int) -> None:
        path = self.old(pick)
        if os.geteuid() != 0 and self.is_dir(path):
            value = 0  # for the reason that chmod has; a default one is what directories made below will have
        self.do("setxattr", path, f"system.posix_acl_{which}".encode(), ACLS[value], 0)

    # -- open files --

    @precondition(lambda self: len(self.pair.handles) < 4)
    @rule(pick=_pick)
    def open(self, pick: int) -> None:
        self.do("open", self.file(pick))

    @precondition(lambda self: len(self.pair.handles) < 4)
    @rule(pick=_pick)
    def tmpfile(self, pick: int) -> None:
        self.do("tmpfile", os.path.dirname(self.old(pick)), 0o640)

    @precondition(lambda self: self.pair.handles)
    @rule(pick=_pick, offset=_offset, data=st.sampled_from(CONTENTS))
    def pwrite(self, pick: int, offset: int, data: bytes) -> None:
        self.do("on_handle", pick % len(self.pair.handles), "pwrite", offset, data)

    @precondition(lambda self: self.pair.handles)
    @rule(pick=_pick, offset=_offset)
    def pread(self, pick: int, offset: int) -> None:
        self.do("on_handle", pick % len(self.pair.handles), "pread", offset, 100_000)

    @precondition(lambda self: self.pair.handles)
    @rule(pick=_pick, size=_offset)
    def ftruncate(self, pick: int, size: int) -> None:
        self.do("on_handle", pick % len(self.pair.handles), "ftruncate", size)

    @precondition(lambda self: self.pair.handles)
    @rule(pick=_pick)
    def close(self, pick: int) -> None:
        self.do("close", pick % len(self.pair.handles))

    # -- the daemon --

    @rule()
    def forget(self) -> None:
        self.do("forget")

    @rule()
    def remount(self) -> None:
        self.do("remount")

    @rule()
    def restack(self) -> None:
        self.do("restack")

    def teardown(self) -> None:
        failed = sys.exc_info()[0] is not None
        try:
            if self.started and not failed:
                self.pair.finish()
        finally:
            if self.started:
                self.pair.stack.abandon()
                for native, _ in self.pair.handles:
                    os.close(native)
            shutil.rmtree(self.base)


ACLS = (acl("u::rwx,u:1234:rw-,g::r-x,m::rwx,o::--x"), acl("u::rw-,g::r--,g:4321:rwx,m::r-x,o::---"))


def test_union_behaves_as_a_plain_directory() -> None:
    before = os.umask(0)
    try:
        run_state_machine_as_test(UnionMachine, settings=MODEL_SETTINGS)
    finally:
        os.umask(before)


class WithOverrides(UnionMachine):
    """The same where owners, modes and types are kept in attributes."""

    overrides = "user"


def test_with_overrides_too() -> None:
    before = os.umask(0)
    try:
        run_state_machine_as_test(WithOverrides, settings=settings(MODEL_SETTINGS, max_examples=_EXAMPLES // 4))
    finally:
        os.umask(before)


class WithTakeovers(UnionMachine):
    """The same while daemons die between two requests."""

    keeps = True

    @rule()
    def take_over(self) -> None:
        self.do("take_over")


def test_with_takeovers_too() -> None:
    before = os.umask(0)
    try:
        run_state_machine_as_test(WithTakeovers, settings=settings(MODEL_SETTINGS, max_examples=_EXAMPLES // 4))
    finally:
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="the run above is already an ordinary user's")
def test_as_an_ordinary_user() -> None:
    """The same as nobody: whiteouts without CAP_MKNOD, no trusted.* xattrs, no chown."""
    with tempfile.TemporaryDirectory(prefix="model-user") as scratch:
        os.chmod(scratch, 0o777)
        done = subprocess.run(
            [
                sys.executable,
                "-B",
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                f"--basetemp={scratch}/pytest",
                f"{__file__}::test_union_behaves_as_a_plain_directory",
                f"{__file__}::test_with_overrides_too",
            ],
            user=65534,
            group=65534,
            extra_groups=[],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "HOME": scratch, "TMPDIR": scratch},
            capture_output=True,
            text=True,
            timeout=limit(3600),
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_time_of_a_directory_that_a_symlink_replaced(tmp_path: Path) -> None:
    """Once the plain directory's fault: it gave the time to what the symlink leads to."""
    lowers = ["a/ a/a->../b", "a/a/ b/ b/c/:0755 a/a/c/:0755@12.000000003"]
    replay(tmp_path, lowers, "./", "aufs", caching=False, steps=[])


@pytest.mark.parametrize("whiteout", ["aufs", "overlay"])
def test_a_hard_link_in_a_directory_that_was_moved_into_a_new_one(tmp_path: Path, whiteout: Whiteout) -> None:
    """Names of copied-up files were not looked for below directories that only the upper has."""
    moved = [("mkdir", b"new", 0o755), ("rename", b"d", b"new/d", 0), ("write", b"y", 0, b"data"), ("freeze",)]
    replay(tmp_path, ["d/x=1 y==d/x"], "", whiteout, caching=False, steps=[*moved, ("unlink", b"y"), ("remount",)])

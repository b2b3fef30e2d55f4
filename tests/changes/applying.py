"""Drive an apply in a test: all its parts in one call, and in a child that is killed at a chosen step."""

from __future__ import annotations

import os
import stat
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.changes.views import walk
from tests.core.trees import tree
from unionfs import markers
from unionfs.changes import check, listing
from unionfs.changes.apply import Applied, apply, resume
from unionfs.changes.check import ApplyPlan
from unionfs.changes.ids import ShownIds
from unionfs.changes.objects import Branches
from unionfs.changes.owners import OwnerChoice
from unionfs.changes.stage import Progress
from unionfs.syscalls import files

STEPS = {"open", "ctypes.call", "fcntl.ioctl"} | {
    f"os.{verb}"
    for verb in (
        "rename",
        "mkdir",
        "link",
        "remove",
        "rmdir",
        "symlink",
        "setxattr",
        "removexattr",
        "chmod",
        "chown",
        "utime",
    )
}
"""Audit events before which a child may be killed: all system calls by which an apply changes anything, and opens."""


def quiet(_what: str, _path: bytes) -> None:
    pass


class Setting:
    """A target directory, an upper on it, and the place of the journal."""

    def __init__(self, upper: Path, target: Path, began_ns: int | None = None, ids: ShownIds | None = None) -> None:
        self.upper = upper
        self.target = target
        self.journal = upper.with_name("apply.journal")
        self.began_ns = began_ns
        self.ids = ids or ShownIds()
        self.owners = OwnerChoice(self.ids, os.geteuid() == 0)

    def plan(self) -> ApplyPlan:
        with self.branches() as branches:
            return check.plan(branches, listing.changes(branches), self.owners, self.began_ns)

    def branches(self) -> Branches:
        return Branches(str(self.upper), [str(self.target)], ids=self.ids)

    def apply(self, *, force: bool = False, progress: Progress = quiet) -> Applied | None:
        """Carry on what was interrupted, then apply what is left; objections fail the test."""
        applied = resume(str(self.journal), force=force, progress=progress)
        if applied is not None:
            return applied
        with self.branches() as branches:
            found = listing.changes(branches)
            plan = check.plan(branches, found, self.owners, self.began_ns)
            assert not plan.problems
            assert force or not plan.conflicts
            return apply(
                branches,
                plan,
                found.unchanged_links,
                self.owners,
                str(self.target),
                str(self.journal),
                force=force,
                progress=progress,
            )

    def listed(self) -> list[str]:
        with self.branches() as branches:
            return [f"{change.kind} {os.fsdecode(change.path)}" for change in listing.changes(branches).changes]


def setting(tmp_path: Path, before: str, upper: str) -> Setting:
    return Setting(tree(tmp_path / "upper", "./ " + upper), tree(tmp_path / "target", "./ " + before))


def say_it_was_copied_up(change: Setting, name: str) -> None:
    """Mark the upper's file as the union does: with the number of the one that it came from."""
    number = os.lstat(change.target / name).st_ino
    os.setxattr(change.upper / name, markers.ORIGIN_XATTR, b"0-%x" % number)


def in_child_killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do `work` in a child that dies before its `step`-th step, as if killed. False if it came to its end."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _die_at(step)
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - a forked child must not return into the test
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9), f"the child failed with {code}"
    return code == 9


def _die_at(step: int) -> None:
    count = 0

    def watch(event: str, _args: object) -> None:
        nonlocal count
        if event in STEPS:
            count += 1
            if count == step:
                os._exit(9)

    renameat2 = files.renameat2

    def watched(src_fd: int, src: bytes, dst_fd: int, dst: bytes, flags: int) -> None:
        watch("ctypes.call", ())
        renameat2(src_fd, src, dst_fd, dst, flags)

    files.renameat2 = watched
    sys.addaudithook(watch)


def content(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything below `root` with the groups of hard links, apply's own names left out."""
    found = {}
    groups: dict[tuple[int, int], bytes] = {}
    for path, seen in sorted(walk(root).items()):
        st = os.lstat(os.fsencode(root) + path)
        group = path if stat.S_ISDIR(st.st_mode) else groups.setdefault((st.st_dev, st.st_ino), path)
        found[path] = (*seen, group)
    return {path: seen for path, seen in found.items() if b"/.unionfs-apply-" not in path}


def leftovers(root: Path) -> list[bytes]:
    """What an apply built and did not clear."""
    return [path for path in walk(root) if b"/.unionfs-apply-" in path]

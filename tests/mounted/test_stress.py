"""Several processes at once, each doing random calls: what comes of them is what a plain directory gives each alone.

$UNIONFS_TEST_STRESS multiplies how much is done (and $UNIONFS_TEST_SEEDS names other beginnings): for a long look.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from tests.mounted import operations, stress, trees
from tests.mounted.mounted_subject import MountedSubject
from tests.mounted.subjects import NATIVE, PASSTHROUGH, Subject, unavailable
from tests.mounted.test_differential import compare_trees
from tests.support.users import User

_WORKERS = 3
_MEDDLERS = 3
_COUNT = 400 * int(os.environ.get("UNIONFS_TEST_STRESS", "1"))
_SEEDS = [int(seed) for seed in os.environ.get("UNIONFS_TEST_SEEDS", "11").split()]
_SUBJECTS = (
    Subject("kernel", "root", "scattered"),
    Subject("kernel", "userns", "scattered", "overlay"),
    Subject("pyfuse3", "root", "scattered"),
    Subject(PASSTHROUGH, "root", "scattered"),
)


def _build(seed: int, branches: Sequence[Path]) -> None:
    """A random tree for each worker and one to share."""
    for number in range(_WORKERS + 1):
        name = stress.worker_dir(number) if number < _WORKERS else stress.SHARED
        text = operations.random_tree(seed + number)
        items = trees.parse(text if number < _WORKERS else text.replace("top/", "").strip() or "a/")
        places = [branch / name for branch in branches]
        for place in places:
            place.mkdir()
        if len(places) == 1:
            trees.make(items, places[0])
        else:
            trees.spread(items, places, ("aufs", "overlay"))


@pytest.mark.parametrize("seed", _SEEDS)
@pytest.mark.parametrize(
    "subject",
    [
        pytest.param(
            each, id=str(each), marks=[pytest.mark.transport(each.transport), pytest.mark.runs_as(each.runs_as)]
        )
        for each in _SUBJECTS
    ],
)
def test_concurrent_equals_alone(subject: Subject, seed: int, scratch: Path, request: pytest.FixtureRequest) -> None:
    if reason := unavailable(subject):
        pytest.skip(reason)
    request.getfixturevalue("fuse_device")
    user: User = request.getfixturevalue("root_user" if subject.who == "root" else "ordinary_user")
    native = MountedSubject(Subject(NATIVE, subject.who, "plain"), user, scratch / "plain")
    union = MountedSubject(subject, user, scratch / "union", mounted=False)
    fallocates = subject.transport != "pyfuse3"
    time_s = 120 + _COUNT
    with native, union:
        native.agent.call(_build, seed, [native.merged])
        union.agent.call(_build, seed, [union.upper, *union.lowers])
        lowers = [union.agent.call(trees.snapshot, lower) for lower in union.lowers]
        union.mount()
        want = native.run(stress.together, seed, _WORKERS, 0, _COUNT, fallocates, timeout_s=time_s)
        changes_branches = subject == _SUBJECTS[0]
        with _branches_come_and_go(union, user) if changes_branches else nullcontext():
            got = union.run(stress.together, seed, _WORKERS, _MEDDLERS, _COUNT, fallocates, timeout_s=time_s)
        for number in range(_WORKERS):
            calls = operations.generate(seed + number, _COUNT, with_fallocate=fallocates)
            for call, on_plain, on_union in zip(calls, want[number], got[number], strict=True):
                assert on_plain == on_union, f"worker {number}: {call}"
        for number in range(_WORKERS):
            compare_trees(native, union, f"of worker {number}", below=stress.worker_dir(number))
        assert union.run(stress.problems, stress.SHARED) == []
        before = union.run(trees.snapshot, stress.SHARED)
        union.remount()
        ignored = ("ctime_ns", "ino") if changes_branches else ("ctime_ns",)  # a freeze may change numbers
        told = trees.differences(before, union.run(trees.snapshot, stress.SHARED), ignore=lambda f, _: f in ignored)
        assert told == [], "\n".join(told)
        union.run(_remove_everything)
        assert union.complaints() == []
        union.unmount()
        for lower, as_made in zip(union.lowers, lowers, strict=True):
            assert trees.differences(as_made, union.agent.call(trees.snapshot, lower)) == []


@contextmanager
def _branches_come_and_go(union: MountedSubject, user: User) -> Iterator[None]:
    """Context in which a branch that has directories of the tree, but no files in them, is added and removed, and the
    upper frozen, again and again."""
    more = union.base / "more"
    union.agent.call(os.mkdir, str(more))
    union.agent.call(trees.make, trees.parse(f"{stress.SHARED}/ {stress.worker_dir(0)}/top/ elsewhere/f=1"), more)
    is_over = threading.Event()
    rounds: list[int] = []
    wrong: list[str] = []

    def change() -> None:
        while not is_over.is_set() and not wrong:
            for words in (
                ("branch", "add", "--append", union.merged, more),
                ("freeze", union.merged),
                ("branch", "rm", union.merged, more),
            ):
                done = user.run([*user.unionfs_cmd, *words], timeout_s=60, check=False)
                if done.returncode and not (words[0] == "freeze" and "is removed, in use" in done.stderr):
                    wrong.append(done.stderr)
            rounds.append(1)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
    assert wrong == []
    assert rounds


def _remove_everything() -> None:
    """As a job: rm -rf of what random calls made leaves nothing."""
    subprocess.run(["chmod", "-R", "u+rwx", "."], check=True)
    subprocess.run("rm -rf -- *", shell=True, check=True)
    assert os.listdir(".") == []

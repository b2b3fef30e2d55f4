"""The same few thousand random system calls on a plain directory and on a union: same results, same errnos, same tree.

The cases take turns (tests.support.share). The union's tree is scattered over an upper and three lowers; the plain
directory holds the merged tree. A failure names the first call that differs and what was done to the names in it
before; the seed is in the test's name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.mounted import operations, trees
from tests.mounted.mounted_subject import MountedSubject
from tests.mounted.operations import Operation
from tests.mounted.subjects import NATIVE, OURS, PASSTHROUGH, Subject, unavailable
from tests.support import share
from tests.support.users import User

_COUNT = 4000
_UNTOLD = ("ino", "ctime_ns")


def _cases() -> Sequence[object]:
    extra = [int(seed) for seed in os.environ.get("UNIONFS_TEST_SEEDS", "").split()]
    cases = []
    for transport in OURS:
        for who, whiteout, seeds in (("root", "aufs", (1, 2)), ("root", "overlay", (3,)), ("user", "aufs", (4, 5))):
            subject = Subject(transport, who, "scattered", whiteout)
            marks = [pytest.mark.transport(transport), pytest.mark.runs_as(subject.runs_as)]
            cases += [
                pytest.param(subject, seed, id=f"{subject}-{whiteout}-{seed}", marks=marks) for seed in extra or seeds
            ]
    passed = Subject(PASSTHROUGH, "root", "scattered", "aufs")
    marks = [pytest.mark.transport("kernel"), pytest.mark.runs_as("root")]
    cases += [pytest.param(passed, seed, id=f"{passed}-{seed}", marks=marks) for seed in extra or (6, 7)]
    return cases if extra else share.of(cases)


def _build(text: str, branches: Sequence[Path]) -> None:
    items = trees.parse(text)
    if len(branches) == 1:
        trees.make(items, branches[0])
    else:
        trees.spread(items, branches, ("aufs", "overlay"))


@pytest.mark.parametrize(("subject", "seed"), _cases())
def test_same_calls_same_results(subject: Subject, seed: int, scratch: Path, request: pytest.FixtureRequest) -> None:
    if reason := unavailable(subject):
        pytest.skip(reason)
    request.getfixturevalue("fuse_device")
    user: User = request.getfixturevalue("root_user" if subject.who == "root" else "ordinary_user")
    text = operations.random_tree(seed)
    calls = operations.generate(seed, _COUNT, with_fallocate=subject.transport != "pyfuse3")
    plain = Subject(NATIVE, subject.who, "plain")
    native, union = (
        MountedSubject(plain, user, scratch / "plain"),
        MountedSubject(subject, user, scratch / "union", mounted=False),
    )
    with native, union:
        native.agent.call(_build, text, [native.merged])
        union.agent.call(_build, text, [union.upper, *union.lowers])
        lowers = [union.agent.call(trees.snapshot, lower) for lower in union.lowers]
        union.mount()
        compare_trees(native, union, "before the first call")
        want = native.run(operations.run, calls, below="top", timeout_s=120)
        got = union.run(operations.run, calls, below="top", timeout_s=120)
        _compare(calls, want, got)
        compare_trees(native, union, "after the last call")
        union.remount()
        compare_trees(native, union, "after a remount")
        assert union.complaints() == []
        union.unmount()
        for lower, before in zip(union.lowers, lowers, strict=True):
            assert trees.differences(before, union.agent.call(trees.snapshot, lower)) == []


def _compare(calls: list[Operation], want: list[str], got: list[str]) -> None:
    for number, (call, on_plain, on_union) in enumerate(zip(calls, want, got, strict=True)):
        if on_plain != on_union:
            before = [f"{n}: {calls[n]} = {want[n][:100]}" for n in range(number) if _shares_a_word(calls[n], call)]
            pytest.fail(
                f"call {number}: {call}\n  plain directory: {on_plain[:500]}\n  union: {on_union[:500]}\n"
                "before, on the same names and descriptors:\n  " + "\n  ".join(before[-25:]),
                pytrace=False,
            )


def _shares_a_word(one: Operation, other: Operation) -> bool:
    mine = {str(arg) for arg in other.args if isinstance(arg, str)} or {str(other.args[0])}
    return any(str(arg) in mine or any(str(arg) in path for path in mine if isinstance(arg, str)) for arg in one.args)


def compare_trees(native: MountedSubject, union: MountedSubject, when: str, below: str = "") -> None:
    """Both show the same tree, or the test fails."""
    on_plain = native.run(trees.snapshot, ".", below=below)
    on_union = union.run(trees.snapshot, ".", below=below)
    now = max(line.mtime_ns for line in on_plain.values()) - 3600 * 10**9

    def untold(snapshot: trees.Snapshot) -> trees.Snapshot:
        """Times from the clock differ between the two; those that were set must not."""
        return {path: line._replace(mtime_ns=min(line.mtime_ns, now)) for path, line in snapshot.items()}

    told = trees.differences(untold(on_plain), untold(on_union), ignore=lambda field, line: field in _UNTOLD)
    assert not told, f"{when}:\n" + "\n".join(told)

"""Applying changes: afterwards the target equals the tree that the union showed, also after failures and kills."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.changes.applying import (
    Setting,
    content,
    in_child_killed_at,
    leftovers,
    say_it_was_copied_up,
    setting,
)
from tests.changes.test_listing import with_parents
from tests.core.flatten import flatten
from tests.core.layers_at_random import layers
from tests.core.trees import tree
from tests.mounted.agent import Agent
from tests.support import process, share
from tests.support.timing import limit
from unionfs.changes import apply as applying
from unionfs.changes import journal as journals
from unionfs.changes.apply import NotAppliedError, PartlyAppliedError
from unionfs.syscalls import files

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

CASES = {
    # name: (target before, upper, target afterwards)
    "added": ("a=1", "b=2 d/e/f=3", "a=1 b=2 d/e/f=3"),
    "changed": ("a=1 d/b=2", "a=one d/b=two:0600@5{user.x=1}", "a=one d/b=two:0600@5{user.x=1}"),
    "deleted": ("a=1 d/b=2 e/f/g=3", ".wh.a d/.wh.b .wh.e", "d/"),
    "kinds": ("a=1", "l->a p<fifo> s<sock>", "a=1 l->a p<fifo> s<sock>"),
    "link changed": ("l->a", "l->b@7", "l->b@7"),
    "file to directory": ("a=1", "a/b/c=2", "a/b/c=2"),
    "directory to file": ("a/b/c=2", "a=1", "a=1"),
    "directory to link": ("a/b=2", "a->x", "a->x"),
    "directory attributes": ("d/a=1", "d/:0700@9{user.x=1}", "d/:0700@9{user.x=1} d/a=1"),
    "opaque": ("d/a=1 d/b=2 d/e/f=3", "d/.wh..wh..opq d/b=two", "d/b=two"),
    "moved": ("old/a=1 old/b=2:0600@5", ".wh.old new/{user.overlay.redirect=/old}", "new/a=1 new/b=2:0600@5"),
    "moved and changed": (
        "old/a=1 old/b=2",
        ".wh.old new/{user.overlay.redirect=/old} new/.wh.a new/b=two new/c=3",
        "new/b=two new/c=3",
    ),
    "exchanged": (
        "a/x=1 a/y=2 b/x=3 b/z=4",
        "a/{user.overlay.redirect=/b} b/{user.overlay.redirect=/a}",
        "b/x=1 b/y=2 a/x=3 a/z=4",
    ),
    "turned round": (
        "a/x=1 b/x=2 c/x=3",
        "a/{user.overlay.redirect=/b} b/{user.overlay.redirect=/c} c/{user.overlay.redirect=/a}",
        "c/x=1 a/x=2 b/x=3",
    ),
    "moved into a new directory": ("d/a=1", ".wh.d n/m/{user.overlay.redirect=/d}", "n/m/a=1"),
    "moved into itself's place": ("d/d/a=1 d/b=2", ".wh.d d/{user.overlay.redirect=/d/d}", "d/a=1"),
    "new links": ("a=1", "b=2 c==b d/e==b", "a=1 b=2 c==b d/e==b"),
    "link to what did not change": ("a=1 d/", "a=1 b==a d/c==a", "a=1 b==a d/c==a"),
    "links in a directory that moved": ("d/a=1 d/b==d/a", ".wh.d e/{user.overlay.redirect=/d}", "e/a=1 e/b==e/a"),
    "one of two links in a directory that moved": (
        "c/a/ a/a=1 b==a/a",
        ".wh.a c/ c/a/{user.overlay.redirect=/a}",
        "c/a/a=1 b==c/a/a",
    ),
    "another file in the place of one of two links": ("a=1 b==a", "b=1:0600", "a=1 b=1:0600"),
    "other links in the place of one of two": ("a=1 b==a", "b=1:0600 c==b", "a=1 b=1:0600 c==b"),
    "link to what only got an attribute": ("a=1 d/", "a=1:0600 b==a d/c==a", "a=1:0600 b==a d/c==a"),
    "one name gets an attribute, one is removed": ("a=1 b==a c==a", "a=1:0600 .wh.b", "a=1:0600 c==a"),
    "one name is touched, one is removed": ("a=1 b==a c==a d==a", "a=1@5 .wh.b c->x", "a=1@5 c->x d==a"),
    "two files become one": ("a=1 b=1:0600", "a=1 b==a", "a=1 b==a"),
    "two files become one, both are changed": ("a=1 b=1:0600", "a=1:0640 b==a", "a=1:0640 b==a"),
    "both names of a file get an attribute": ("a=1 b==a", "a=1:0600 b==a", "a=1:0600 b==a"),
    "both names of a file changed": ("a=1 b==a", "a=2 b==a", "a=2 b==a"),
    "locked": ("d/a=1", "d/:0500 d/b=2 n/:0000 m/:0500 m/x=1", "d/:0500 d/a=1 d/b=2 n/:0000 m/:0500 m/x=1"),
    "names that are not UTF-8": (r"\xff=1 \xfe/b=1", r".wh.\xff \xfe/\xfd=2", r"\xfe/b=1 \xfe/\xfd=2"),
    "hostile names": ("a=1", r"\x0a\x1b[2J=1 d\x0a/\x5c\x22=2 -rf=3", r"a=1 \x0a\x1b[2J=1 d\x0a/\x5c\x22=2 -rf=3"),
    "set-id bits": ("a=1", "a=2:4755 b=3:6711 d/:2755", "a=2:4755 b=3:6711 d/:2755"),
    "a long name": ("a=1", "n" * 255 + "=1", "a=1 " + "n" * 255 + "=1"),
}
COPIED_UP = {"one name gets an attribute, one is removed", "one name is touched, one is removed"}
"""The upper's `a` is the target's, as the union's mark on it says."""

AS_ROOT = {
    "owners": ("a=1 d/b=2", "a=1:0640,5,6 d/:0750,7,8 d/b=2 n/:,9,9 n/f=x:,9,10 l->x:,3,4", None),
    "devices": ("a=1", "c<c:1:3> b<b:7:200>", None),
    "trusted attributes": ("a=1", "a=1{trusted.x=1}", None),
    "set-id with an owner": ("a=1:,5,5", "a=2:4755,5,5", None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_target_equals_the_union_afterwards(case: str, tmp_path: Path) -> None:
    before, upper, after = CASES[case]
    change = setting(tmp_path, before, upper)
    if case in COPIED_UP:
        say_it_was_copied_up(change, "a")
    expected = content(tree(tmp_path / "expected", "./ " + after))
    change.apply()
    assert content(change.target) == expected
    assert leftovers(change.target) == []
    # Of what moved, the upper speaks in terms of a target that is no more.
    assert "redirect" in upper or change.listed() == []


@NEEDS_ROOT
@pytest.mark.parametrize("case", AS_ROOT)
def test_what_only_root_can_do(case: str, tmp_path: Path) -> None:
    before, upper, _ = AS_ROOT[case]
    change = setting(tmp_path, before, upper)
    expected = content(flatten(tmp_path / "expected", [before, upper]))
    change.apply()
    assert content(change.target) == expected
    assert change.listed() == []


@settings(max_examples=150, deadline=None)
@example(texts=["a:0644 b==a"], upper="a:0644 b:0600")
@given(texts=st.lists(layers(), min_size=1, max_size=3), upper=layers())
def test_layers_at_random(texts: list[str], upper: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.mktemp("random")
    texts, upper = [with_parents(text) for text in texts], with_parents(upper)
    change = Setting(tree(base / "upper", "./ " + upper), flatten(base / "target", texts))
    expected = flatten(base / "expected", [*texts, upper])
    links = content(expected)
    change.apply()
    # The notation cannot say that a name of a lower's file and one of an upper's are links of one file, nor can we.
    assert {path: seen[:-1] for path, seen in content(change.target).items()} == {
        path: seen[:-1] for path, seen in links.items()
    }
    assert change.listed() == []
    assert leftovers(change.target) == []
    subprocess.run(["rm", "-rf", base], check=True)


KILL = (
    "a=1 b=2 gone=1 d/x=1 d/e/f=3 old/p=1 old/q=2 t/u=1 s/x=1 r/x=2 link=5 keep/k=1",
    "a=one:0600 .wh.gone d/.wh.e d/x=1 d/new=4 n/m/o=5 n/l->x .wh.old moved/{user.overlay.redirect=/old} t=6"
    " s/{user.overlay.redirect=/r} r/{user.overlay.redirect=/s} h=7 h2==h link/now=dir keep/:0700{user.x=1}",
)


def test_killed_at_every_step(tmp_path: Path, small_process: Agent) -> None:
    small_process.call(_kill_at_every_step, tmp_path, timeout_s=250)


def _kill_at_every_step(tmp_path: Path) -> None:
    """Each path holds the old or the new; the second apply completes; nothing is left behind. The steps take turns."""
    before, upper = KILL
    old = content(tree(tmp_path / "old", "./ " + before))
    done = setting(tmp_path / "reference", before, upper)
    done.apply()
    new = content(done.target)
    step, killed = 0, True
    while killed:
        step += 1
        if not share.has(step):
            continue
        base = tmp_path / str(step)
        change = setting(base, before, upper)
        killed = in_child_killed_at(step, change.apply)
        assert_old_or_new(content(change.target), old, new, f"killed at step {step}")
        if step // 3 % 3 == 0:  # a second apply, which continues the first one, is killed, too
            in_child_killed_at(step // 2 + 1, change.apply)
            assert_old_or_new(content(change.target), old, new, f"killed at steps {step} and {step // 2 + 1}")
        change.apply()
        assert content(change.target) == new, f"killed at step {step}"
        assert leftovers(change.target) == []
        subprocess.run(["rm", "-rf", base], check=True)
    assert step > 100


def assert_old_or_new(
    now: dict[bytes, tuple[object, ...]],
    old: dict[bytes, tuple[object, ...]],
    new: dict[bytes, tuple[object, ...]],
    when: str,
) -> None:
    for path in now.keys() | old.keys() | new.keys():
        found = _whole(now.get(path))
        assert found in (_whole(old.get(path)), _whole(new.get(path))), f"{when}: {path!r} is {found}"


def _whole(seen: tuple[object, ...] | None) -> object:
    """What must be old or new as a whole: all of a file but its links' names; of a directory, that it is one."""
    if seen is None:
        return None
    return "directory" if seen[0] == 0o040000 else seen[:-1]


def test_killed_while_building_is_taken_back_by_discarding(tmp_path: Path) -> None:
    before, upper = KILL
    old = content(tree(tmp_path / "old", "./ " + before))
    steps = 0
    for step in range(5, 120, 7):
        change = setting(tmp_path / str(step), before, upper)
        in_child_killed_at(step, change.apply)
        if journals.is_begun(str(change.journal)):
            break
        steps += 1
        applying.take_back(str(change.journal))
        assert content(change.target) == old
        assert leftovers(change.target) == []
        assert not change.journal.exists()
    assert steps > 5


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_failure_while_building_leaves_the_target_as_it_was(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, upper = KILL
    old = content(tree(tmp_path / "old", "./ " + before))
    real, left = os.utime, 0

    def fail(*args: Any, **kwargs: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(number, os.strerror(number))
        real(*args, **kwargs)

    for fail_at in range(1, 12):
        change = setting(tmp_path / str(fail_at), before, upper)
        left = fail_at
        with monkeypatch.context() as patched:
            patched.setattr(os, "utime", fail)
            with pytest.raises(NotAppliedError) as failure:
                change.apply()
        assert failure.value.error.errno == number
        assert content(change.target) == old
        assert leftovers(change.target) == []
        assert not change.journal.exists()


def test_a_failure_in_the_middle_is_reported_and_the_apply_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, upper = KILL
    done = setting(tmp_path / "reference", before, upper)
    done.apply()
    new = content(done.target)
    change = setting(tmp_path, before, upper)
    real, count = files.renameat2, 0

    def fail(*args: object) -> None:
        nonlocal count
        count += 1
        if count == 4:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(files, "renameat2", fail)
        with pytest.raises(PartlyAppliedError) as failure:
            change.apply()
    told = failure.value
    now = content(change.target)
    assert told.done
    assert told.left
    for operation in told.done:
        path = b"/" + os.fsencode(operation.path)
        assert (now.get(path) or (None,))[:2] == (new.get(path) or (None,))[:2]
    assert not {operation.path for operation in told.done} & {operation.path for operation in told.left}
    assert journals.is_begun(str(change.journal))
    change.apply()
    assert content(change.target) == new


def test_a_second_apply_at_the_same_time_is_refused(tmp_path: Path) -> None:
    change = setting(tmp_path, "a=1", "a=2 b=3")
    seen = []

    def meanwhile(_what: str, _path: bytes) -> None:
        with pytest.raises(BlockingIOError):
            applying.resume(str(change.journal))
        seen.append(_path)

    change.apply(progress=meanwhile)
    assert seen
    assert change.listed() == []


# -- conflicts ---------------------------------------------------------------------------------------------------------


def now_ns(directory: Path) -> int:
    """The clock of file times, after which everything new has a later time."""
    path = directory / "clock"
    path.touch()
    began = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == began:
        time.sleep(0.001)
        path.touch()
    path.unlink()
    return began


CONFLICTS = {
    # name: (target, upper, what somebody does to the target, paths in conflict)
    "changed": ("a=1 b=2", "a=2 b=3", "echo x > a", ["/a"]),
    "touched": ("a=1", "a=2", "touch -d @5 a", ["/a"]),
    "mode": ("a=1", ".wh.a", "chmod 600 a", ["/a"]),
    "deleted tree has a new file": ("d/e/a=1", ".wh.d", "echo > d/e/new", ["/d/e", "/d/e/new"]),
    "deleted tree has a changed file": ("d/e/a=1", ".wh.d", "echo x >> d/e/a", ["/d/e/a"]),
    "tree replaced by a file": ("d/a=1", "d=1", "touch d/b", ["/d", "/d/b"]),
    "what is moved": ("d/a=1", ".wh.d e/{user.overlay.redirect=/d}", "echo x >> d/a", ["/d/a", "/e/a"]),
    "attributes of a directory": ("d/a=1", "d/:0700", "chmod 711 d", ["/d"]),
    "something new is fine": ("d/a=1", "d/a=2 d/b=3", "touch d/c", []),
    "something else is fine": ("d/a=1 b=1", "d/a=2", "echo x > b; touch -a d", []),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_what_changed_meanwhile_is_a_conflict(case: str, tmp_path: Path) -> None:
    before, upper, deed, paths = CONFLICTS[case]
    change = setting(tmp_path, before, upper)
    change.began_ns = now_ns(tmp_path)
    assert change.plan().conflicts == []
    subprocess.run(["sh", "-ec", deed], cwd=change.target, check=True)
    found = sorted({os.fsdecode(objection.path) for objection in change.plan().conflicts})
    assert found == paths


def test_force_overrides_conflicts(tmp_path: Path) -> None:
    change = setting(tmp_path, "a=1 d/b=2", "a=2 .wh.d")
    change.began_ns = now_ns(tmp_path)
    (change.target / "a").write_text("theirs")
    (change.target / "d/new").write_text("theirs")
    change.apply(force=True)
    assert content(change.target).keys() == {b"/a"}
    assert (change.target / "a").read_text() == "2"


@pytest.mark.parametrize(
    ("upper", "deed", "path"),
    [
        ("a=2", "rm a; echo theirs > a", "a"),
        ("a=2", "rm a", "a"),
        ("new=1", "echo theirs > new", "new"),
        ("n/x=1", "mkdir n", "n"),
        (".wh.d", "mv d e; mkdir d; echo theirs > d/x", "d"),
        ("d=1", "mv d e; mkdir d; echo theirs > d/x", "d"),
    ],
)
def test_the_target_changes_during_the_apply(upper: str, deed: str, path: str, tmp_path: Path) -> None:
    """Between the last check and the rename: nothing of theirs is lost, and the rest is told to be left."""
    change = setting(tmp_path, "a=1 d/b=2", upper)
    did = False

    def theirs(what: str, _path: bytes) -> None:
        nonlocal did
        if what in ("put", "swap", "drop") and not did:
            did = True
            subprocess.run(["sh", "-ec", deed], cwd=change.target, check=True)

    with pytest.raises(PartlyAppliedError) as failure:
        change.apply(progress=theirs)
    assert failure.value.left[0].path == path
    if "theirs" in deed:
        found = subprocess.run(["grep", "-rh", "theirs", path], cwd=change.target, capture_output=True, check=False)
        assert found.stdout == b"theirs\n"
    applying.resume(str(change.journal), force=True)
    assert change.listed() == []


# -- what must not be touched ------------------------------------------------------------------------------------------


def test_a_directory_that_became_a_symlink_is_not_followed(tmp_path: Path) -> None:
    outside = tree(tmp_path / "outside", "f=1")
    change = setting(tmp_path, "d/f=1", "d/f=2 d/new=3 d/.wh.g")
    plan = change.plan()
    (change.target / "d").rename(change.target / "e")
    (change.target / "d").symlink_to(outside)
    with change.branches() as branches, pytest.raises(NotAppliedError):
        applying.apply(branches, plan, {}, change.owners, str(change.target), str(change.journal))
    assert content(outside) == content(tree(tmp_path / "same", "f=1"))


def test_symlinks_in_the_middle_of_carrying_out_are_not_followed(tmp_path: Path) -> None:
    outside = tree(tmp_path / "outside", "f=1 x=1")
    before = content(outside)
    change = setting(tmp_path, "d/f=1 d/x=1", "d/f=2 d/.wh.x d/:0700")

    def swap(what: str, _path: bytes) -> None:
        if what == "put":
            (change.target / "d").rename(change.target / "e")
            (change.target / "d").symlink_to(outside)

    with pytest.raises(PartlyAppliedError):
        change.apply(progress=swap)
    assert content(outside) == before


@NEEDS_ROOT
@pytest.mark.parametrize(
    "upper", ["m/new=1", ".wh.m", ".wh.d", "m=1", "f=changed", "d/{user.overlay.redirect=/d2} .wh.d2"]
)
def test_other_filesystems_are_refused(upper: str, tmp_path: Path) -> None:
    change = setting(tmp_path, "m/ d/m/ d2/m/ f=1", upper)
    script = f"""
cd {change.target}
mount -t tmpfs none m; mount -t tmpfs none d/m; mount -t tmpfs none d2/m; mount --bind /etc/hostname f
exec {sys.executable} -c '
import sys; from pathlib import Path
from tests.changes.applying import Setting
for problem in Setting(Path(sys.argv[1]), Path(sys.argv[2])).plan().problems: print(problem.path.decode(), problem.why)
' {change.upper} {change.target}
"""
    done = process.run(["unshare", "--mount", "sh", "-ec", script], check=False, env=env())
    assert "mounted" in done.stdout or "filesystem" in done.stdout, done.stdout + done.stderr


def env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


@NEEDS_ROOT
def test_read_only_and_full_and_immutable_targets_are_found_before(tmp_path: Path) -> None:
    upper = tree(tmp_path / "upper", "a=2 big=x")
    with open(upper / "big", "r+b") as file:
        file.write(b"x" * (24 << 20))
    mnt = tmp_path / "target"
    mnt.mkdir()
    script = f"""
mount -t tmpfs -o size=20m none {mnt}; echo 1 > {mnt}/a
{sys.executable} -c "$1" {upper} {mnt}
mount -o remount,ro {mnt}
{sys.executable} -c "$1" {upper} {mnt}
"""
    show = """
import sys; from pathlib import Path
from tests.changes.applying import Setting
print("; ".join(problem.why for problem in Setting(Path(sys.argv[1]), Path(sys.argv[2])).plan().problems))
"""
    done = process.run(["unshare", "--mount", "sh", "-ec", script, "sh", show], check=False, env=env())
    full, read_only = done.stdout.splitlines()
    assert full.startswith("24 MiB are to be written")
    assert "its filesystem is read-only" in read_only
    change = setting(tmp_path / "immutable", "a=1", "a=2")
    if subprocess.run(["chattr", "+i", change.target / "a"], check=False, capture_output=True).returncode:
        return  # this filesystem has no such flag
    try:
        assert [problem.why for problem in change.plan().problems] == [
            "it or its directory is immutable or append-only (lsattr, chattr)"
        ]
    finally:
        subprocess.run(["chattr", "-i", change.target / "a"], check=True)


AS_USER = """
import os, sys; from pathlib import Path
from tests.changes.applying import Setting
from unionfs.changes.ids import ShownIds
change = Setting(Path(sys.argv[1]), Path(sys.argv[2]))
for problem in change.plan().problems:
    print(problem.path.decode(), problem.privilege, problem.why)
"""


@NEEDS_ROOT
def test_without_root_missing_permissions_are_found_first(scratch: Path, readable_code: Path) -> None:
    """Every kind of missing permission is found before anything is touched."""
    target = tree(scratch / "target", "./:0777 own/:,1234,1234 own/f=1:,1234,1234 roots/f=1 sticky/:1777 sticky/f=1")
    upper = tree(
        scratch / "upper",
        "./:0777 own/:,1234,1234 own/f=2:,1234,1234 own/g=1:,5,5 own/h=1:4755,1234,1234 roots/f=2 sticky/.wh.f"
        " sticky/:1777 sticky/g=1:,1234,1234 roots/:0775",
    )
    done = subprocess.run(
        ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", sys.executable, "-c", AS_USER, upper, target],
        capture_output=True,
        text=True,
        timeout=limit(60),
        check=False,
        env={**env(), "PYTHONPATH": str(readable_code)},
        cwd=scratch,
    )
    assert done.stdout.splitlines() == [
        "/own/g True it would belong to 5:5",
        "/roots True its mode may be changed by its owner only",
        "/roots/f True no permission to write in /roots",
        "/roots/f True it would belong to 0:0",
        "/sticky/f True in /sticky only the owner may replace or remove it",
    ], done.stderr


# -- details -----------------------------------------------------------------------------------------------------------


def test_holes_stay_holes(tmp_path: Path) -> None:
    change = setting(tmp_path, "a=1", "b=1")
    with open(change.upper / "sparse", "wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 30)
        file.write(b"data")
    change.apply()
    made = change.target / "sparse"
    assert made.stat().st_size == 1 << 40
    assert made.stat().st_blocks * 512 <= 1 << 20
    with open(made, "rb") as file:
        file.seek(1 << 30)
        assert file.read(5) == b"data\0"


def test_acls_are_kept_and_default_acls_of_the_parent_are_not_added(tmp_path: Path) -> None:
    change = setting(tmp_path, "d/a=1", "d/new=1 d/n/x=1 d/with=1 d/l->x")
    try:
        subprocess.run(["setfacl", "-m", "d:u:1:rwx", change.target / "d", change.upper / "d"], check=True)
        subprocess.run(["setfacl", "-m", "u:2:rw", change.upper / "d/with"], check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("setfacl is missing, or the filesystem has no ACLs")
    change.apply()
    assert content(change.target)[b"/d/with"] == content(change.upper)[b"/d/with"]
    assert not os.listxattr(change.target / "d/new")
    assert not os.listxattr(change.target / "d/n")
    assert change.listed() == []


@NEEDS_ROOT
def test_giving_away_a_set_id_file_keeps_it_set_id(tmp_path: Path) -> None:
    change = setting(tmp_path, "a=1:4755,5,5", "a=1:4755,6,6")
    change.apply()
    assert change.listed() == []


def test_force_continues_where_a_directory_is_missing(tmp_path: Path) -> None:
    change = setting(tmp_path, "d/a=1", "b=1 d/:0700")

    def remove(what: str, _path: bytes) -> None:
        if what == "dress":
            (change.target / "d").rename(tmp_path / "gone")

    with pytest.raises(PartlyAppliedError):
        change.apply(progress=remove)
    applying.resume(str(change.journal), force=True)
    assert content(change.target).keys() == {b"/b"}


def test_deeper_than_path_max(tmp_path: Path) -> None:
    change = setting(tmp_path, "a=1", "b=1")
    here = os.open(change.upper, os.O_RDONLY)
    for _ in range(80):
        os.mkdir("n" * 200, dir_fd=here)
        deeper = os.open("n" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    try:
        change.apply()
        assert change.listed() == []
        (change.upper / ("n" * 200)).rename(tmp_path / "rest")
        tree(change.upper, ".wh." + "n" * 200)
        change.journal.unlink()
        change.apply()
        assert sorted(os.listdir(change.target)) == ["a", "b"]
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "rest", change.upper, change.target], check=True)


def test_many_changes(tmp_path: Path) -> None:
    change = setting(tmp_path, " ".join(f"d{i % 7}/f{i}={i}" for i in range(700)), "x=1")
    for index in range(700):
        directory = change.upper / f"d{index % 7}"
        directory.mkdir(exist_ok=True)
        (directory / (f"f{index}" if index % 2 else f".wh.f{index}")).write_text("new")
    change.apply()
    assert change.listed() == []
    assert sum(len(files) for _, _, files in os.walk(change.target)) == 351


def test_without_exchange_of_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS and others cannot exchange or keep from overwriting: it works there too."""
    real = files.renameat2

    def plain(src_fd: int, src: bytes, dst_fd: int, dst: bytes, flags: int) -> None:
        if flags:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(src_fd, src, dst_fd, dst, flags)

    change = setting(tmp_path, *KILL)
    reference = setting(tmp_path / "reference", *KILL)
    reference.apply()
    monkeypatch.setattr(files, "renameat2", plain)
    change.apply()
    assert content(change.target) == content(reference.target)
    assert leftovers(change.target) == []

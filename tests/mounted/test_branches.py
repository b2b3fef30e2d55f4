"""`unionfs branch`: read-only branches of a mounted union come, go and move while programs use it."""

from __future__ import annotations

import errno
import json
import mmap
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted import trees
from tests.mounted.agent import command
from tests.mounted.checking import fails, read, same, write
from tests.mounted.mounted_subject import MountedSubject
from tests.mounted.stands import unmounted
from tests.mounted.subjects import Subject
from tests.support import chaos
from tests.support.timing import limit

_SUBJECTS = [
    pytest.param(one, id=str(one), marks=[pytest.mark.transport(one.transport), pytest.mark.runs_as(one.runs_as)])
    for one in (Subject("kernel", "root", "scattered"), Subject("kernel", "user", "scattered"))
]


_as_ordinary_user = pytest.mark.parametrize("stand", _SUBJECTS[1:], indirect=True)


@pytest.fixture(params=_SUBJECTS)
def stand(request: pytest.FixtureRequest, scratch: Path) -> Iterator[MountedSubject]:
    """A union of two lowers and an upper, and a directory `more` beside them; as root and as an ordinary user."""
    yield from _stand(request, scratch, request.param)


@pytest.fixture
def root_stand(request: pytest.FixtureRequest, scratch: Path) -> Iterator[MountedSubject]:
    if os.geteuid() != 0:
        pytest.skip("only root mounts on a directory of the union")
    yield from _stand(request, scratch, Subject("kernel", "root", "scattered"))


def _stand(request: pytest.FixtureRequest, scratch: Path, subject: Subject) -> Iterator[MountedSubject]:
    with unmounted(request, scratch, subject, lowers=2) as built:
        top, low = built.lowers
        built.agent.call(
            trees.make, trees.parse("f=top d/g=top d/e/x=top d/e/y=top h1=link h2==h1 set/a=1 set/b=1"), top
        )
        built.agent.call(write, f"{top}/big", b"z" * 300_000)
        built.agent.call(trees.make, trees.parse("low=beneath d/low=beneath f=beneath n/o=beneath"), low)
        built.agent.call(os.mkdir, str(_more(built)))
        text = "d/g=more d/new=more d/.wh.low= p/q=more set/.wh..wh..opq= set/c=2 set/d=2"
        built.agent.call(trees.make, trees.parse(text), _more(built))
        built._lowers_as_made = built._look_at_lowers()
        built.mount()
        yield built


def _more(stand: MountedSubject) -> Path:
    return stand.base / "more"


def _branch(stand: MountedSubject, *words: str, fails_with: str = "") -> str:
    """Run `unionfs branch`, which must succeed, or print `fails_with`. Returns what it prints."""
    return str(stand.agent.call(_command, [*stand.user.unionfs_cmd, "branch", *words], fails_with))


def _command(argv: list[str], fails_with: str = "") -> str:
    done = command(argv)
    if fails_with:
        assert done.returncode == 1, done.stdout
        assert fails_with in done.stderr, done.stderr
    else:
        assert done.returncode == 0, done.stderr
    return str(done.stdout + done.stderr)


def _stack(stand: MountedSubject) -> list[str]:
    return [each["path"] for each in json.loads(_branch(stand, "ls", "--json", str(stand.merged)))]


def test_branches_are_added_and_removed(stand: MountedSubject) -> None:
    stand.run(_look_across_changes, [*stand.user.unionfs_cmd, "branch"], str(stand.merged), str(_more(stand)))
    assert _stack(stand) == [str(path) for path in (stand.upper, *stand.lowers)]
    assert stand.complaints() == []
    assert stand.lowers_changed() == []
    stand.unmount()


def _look_across_changes(branch: list[str], merged: str, more: str) -> None:
    inodes = {name: os.stat(name).st_ino for name in ("f", "d", "d/low", "d/e", "d/e/x", "h1")}
    before = {name: sorted(os.listdir(name)) for name in (".", "d", "d/e", "set")}
    fails(errno.ENOENT, os.stat, "d/new")  # the kernel remembers that it is missing
    fails(errno.ENOENT, os.stat, "p")
    same(read("d/g"), b"top")
    opened = os.open("d/g", os.O_RDWR)
    low = os.open("d/low", os.O_RDONLY)
    mapped = mmap.mmap(os.open("big", os.O_RDWR), 300_000)
    for _ in range(2):
        _command([*branch, "add", merged, more])
        same(read("d/g"), b"more")
        same(read("d/new"), b"more")
        same(read("p/q"), b"more")
        same(sorted(os.listdir("set")), ["c", "d"])
        fails(errno.ENOENT, os.stat, "d/low")
        fails(errno.ENOENT, os.stat, "set/a")
        same(sorted(os.listdir("d")), ["e", "g", "new"])
        same(os.pread(opened, 9, 0), b"top")
        same(os.pread(low, 9, 0), b"beneath")
        same(os.fstat(low).st_nlink, 0)
        mapped[0:1] = b"A"
        mapped.flush()
        same(read("big")[:2], b"Az")
        _command([*branch, "mv", merged, more, "--append"])
        same(read("d/g"), b"top")
        same(read("d/low"), b"beneath")
        same(sorted(os.listdir("set")), ["a", "b", "c", "d"])
        _command([*branch, "rm", merged, more])
        same({name: sorted(os.listdir(name)) for name in before}, before)
        same({name: os.stat(name).st_ino for name in inodes}, inodes)
        fails(errno.ENOENT, os.stat, "d/new")
        fails(errno.ENOENT, os.stat, "p")
        same(os.pread(low, 9, 0), b"beneath")
    os.pwrite(opened, b"TOP", 0)  # its object has the name no more
    same(os.pread(opened, 9, 0), b"TOP")
    same(read("d/g"), b"top")


@_as_ordinary_user
def test_a_working_directory_stays_valid(stand: MountedSubject) -> None:
    words = [*stand.user.unionfs_cmd, "branch"], str(stand.merged), str(_more(stand)), str(stand.lowers[0])
    stand.run(_work_in_a_directory, *words)
    stand.unmount()


def _work_in_a_directory(branch: list[str], merged: str, more: str, top: str) -> None:
    os.chdir("d")
    here = os.getcwd()
    _command([*branch, "add", merged, more])
    same(os.getcwd(), here)
    same(sorted(os.listdir(".")), ["e", "g", "new"])
    write("made", b"here")
    same(read(f"{merged}/d/made"), b"here")
    os.chdir("e")
    _command([*branch, "rm", merged, top])
    same(os.listdir("."), [])  # as a directory that was removed
    fails(errno.ENOENT, write, "made", b"")
    fails(errno.ENOENT, os.stat, f"{merged}/d/e")
    same(os.getpid() > 0, True)
    os.chdir("..")
    same(sorted(os.listdir(".")), ["g", "made", "new"])


def test_mounts_on_the_union_stay(root_stand: MountedSubject) -> None:
    """A notification for a name would detach what is mounted there."""
    stand = root_stand
    stand.agent.call(_mount_inside, [*stand.user.unionfs_cmd, "branch"], str(stand.merged), str(_more(stand)))
    stand.unmount()


def _mount_inside(branch: list[str], merged: str, more: str) -> None:
    places = [f"{merged}/d", f"{merged}/n"]
    for place in places:
        _command(["mount", "-t", "tmpfs", "tmpfs", place])
        write(f"{place}/inside", b"tmpfs")
    for words in (["add", merged, more], ["mv", merged, more, "--append"], ["rm", merged, more]):
        _command([*branch, *words])
        for place in places:
            same(read(f"{place}/inside"), b"tmpfs")
    for place in places:
        _command(["umount", place])
    same(sorted(os.listdir(places[0])), ["e", "g", "low"])


@_as_ordinary_user
def test_dependencies_of_the_upper_are_listed(stand: MountedSubject) -> None:
    top, merged = str(stand.lowers[0]), str(stand.merged)
    _branch(stand, "add", merged, str(_more(stand)))
    stand.run(_change_some)
    told = _branch(stand, "rm", merged, top, fails_with="the upper keeps 5 objects that come from").splitlines()
    assert sorted(line for line in told if line.startswith(("copied up: ", "renamed: "))) == [
        "copied up: f", "copied up: h1", "copied up: moved", "renamed: moved",
    ]  # fmt: skip
    assert len([line for line in told if line.startswith("hard link: ")]) == 1
    assert "  --force removes it all the same" in told
    assert top in _stack(stand)
    _branch(stand, "rm", merged, top, "--force")
    assert top not in _stack(stand)
    stand.run(_changes_stay)
    stand.unmount()


def _change_some() -> None:
    write("f", b"changed")
    os.chmod("h1", 0o600)
    os.rename("d/e", "moved")


def _changes_stay() -> None:
    same(read("f"), b"changed")
    same(os.listdir("moved"), [])
    same(read("h1"), b"link")
    same(os.path.exists("h2"), False)


@_as_ordinary_user
def test_what_cannot_be_a_branch(stand: MountedSubject) -> None:
    merged, base = str(stand.merged), str(stand.base)
    stand.agent.call(_make_bad_ones, base)
    before = _stack(stand)
    for path, why in (
        (f"{base}/upper", "lies in the upper: changes of the union would change it"),
        (f"{base}/work", "lies in the work directory: changes of the union would change it"),
        (base, "the union is mounted inside of"),
        (merged, "lies in the union itself"),
        (f"{merged}/d", "lies in the union itself"),
        (f"{base}/lower0/d", "lie in each other"),
        (f"{base}/lower1", "is a branch already"),
        (f"{base}/missing", "No such file or directory"),
        (f"{base}/file", "Not a directory"),
    ):
        _branch(stand, "add", merged, path, fails_with=why)
    if stand.subject.who == "user":
        _branch(stand, "add", merged, f"{base}/closed", fails_with="Permission denied")
    more = str(_more(stand))
    _branch(stand, "add", merged, more, "--at", "0", fails_with="there is no position 0 for it: 0 is the upper")
    _branch(stand, "add", merged, more, "--at", "4", fails_with="there are 3 other branches")
    _branch(stand, "rm", merged, more, fails_with="is no lower of this union")
    _branch(stand, "rm", merged, f"{base}/lower0")
    _branch(stand, "rm", merged, f"{base}/lower1", fails_with="is the only lower: a union needs one")
    _branch(stand, "ls", base, fails_with="no union is mounted there")
    _branch(stand, "add", merged, f"{base}/lower0", "--at", "1")
    assert _stack(stand) == before
    stand.run(same, b"x", b"x")
    stand.unmount()


def _make_bad_ones(base: str) -> None:
    write(f"{base}/file", b"")
    os.mkdir(f"{base}/closed", 0)


@_as_ordinary_user
def test_a_removed_directory_can_be_removed_by_its_name(stand: MountedSubject) -> None:
    merged, more = str(stand.merged), str(_more(stand))
    _branch(stand, "add", merged, more)
    stand.agent.call(os.rename, more, f"{more}.old")
    _branch(stand, "rm", merged, more)
    assert more not in _stack(stand)
    stand.unmount()


@_as_ordinary_user
def test_words_of_aufs(stand: MountedSubject) -> None:
    more, merged, top = str(_more(stand)), str(stand.merged), str(stand.lowers[0])
    _remount(stand, f"add:1:{more}")
    assert _stack(stand)[1] == more
    _remount(stand, f"del:{more},append:{more}=ro")
    assert _stack(stand)[-1] == more
    _remount(stand, f"del:{top},prepend:{top}")
    assert _stack(stand)[1] == top
    for words, why in (
        (f"add:x:{more}", "the form is add:N:DIR"),
        (f"append:{more}=rw", "branches that are added are read-only"),
        (f"del:{stand.base}/missing", "is no lower of this union"),
    ):
        _remount(stand, words, fails_with=why)
    assert _stack(stand) == [str(stand.upper), top, str(stand.lowers[1]), more]
    assert merged
    stand.unmount()


def _remount(stand: MountedSubject, words: str, fails_with: str = "") -> None:
    stand.agent.call(
        _command, [*stand.user.unionfs_cmd, "-o", f"remount,rw,{words}", str(stand.merged)], fails_with
    )  # fmt: skip


@_as_ordinary_user
@pytest.mark.skipif(chaos.is_wanted(), reason="it counts deaths")
@pytest.mark.parametrize("keeper", ["its own", "any"])
def test_after_a_change_another_daemon_continues(stand: MountedSubject, keeper: str) -> None:
    """It shows the branches of now, with the inode numbers of before; also in another version."""
    if keeper == "its own":
        stand.unmount()
        stand._env = {"UNIONFS_LINGER": "0"}
        stand.mount()
    mount = chaos.mount(f"{stand.base}/")
    more = str(_more(stand))
    before = stand.agent.call(trees.snapshot, stand.merged)
    _branch(stand, "add", str(stand.merged), more)
    shown = stand.agent.call(trees.snapshot, stand.merged)
    kill_daemon(stand, mount)
    assert trees.differences(shown, stand.agent.call(trees.snapshot, stand.merged)) == []
    _branch(stand, "rm", str(stand.merged), more)
    kill_daemon(stand, mount)
    assert trees.differences(before, stand.agent.call(trees.snapshot, stand.merged)) == []
    stand.agent.call(command, [*stand.user.unionfs_cmd, "upgrade", str(stand.merged)])
    kill_daemon(stand, mount)
    assert trees.differences(before, stand.agent.call(trees.snapshot, stand.merged)) == []
    found = json.loads(
        stand.agent.call(command, [*stand.user.unionfs_cmd, "stats", "--json", str(stand.merged)]).stdout
    )
    keeping = {key: found["keeper"][key] for key in ("alive", "outdated", "replaced", "upgrades")}
    assert keeping == {"alive": True, "outdated": False, "replaced": 3, "upgrades": 1}
    assert stand.lowers_changed() == []
    stand.unmount()


def kill_daemon(stand: MountedSubject, mount: str) -> None:
    """Kill the daemon of a mount, and wait until there is another one."""
    before = chaos.wait_for_daemon(mount)
    stand.agent.call(_kill, before)
    chaos.wait_for_daemon(mount, after=before)


def _kill(pid: int) -> None:
    os.kill(pid, 9)


@_as_ordinary_user
def test_programs_meanwhile_see_the_old_or_the_new(stand: MountedSubject) -> None:
    words = [*stand.user.unionfs_cmd, "branch"], str(stand.merged), str(_more(stand))
    found = stand.run(_read_meanwhile, *words, timeout_s=180)
    assert found == []
    assert _stack(stand) == [str(path) for path in (stand.upper, *stand.lowers)]
    assert stand.complaints() == []
    assert stand.lowers_changed() == []
    stand.unmount()


def _read_meanwhile(branch: list[str], merged: str, more: str) -> list[str]:
    """Read in four threads while a branch comes, moves and goes five times. Returns what was wrong."""
    wrong: list[str] = []
    over = threading.Event()

    def look(number: int) -> None:
        rounds = 0
        while not over.is_set():
            rounds += 1
            try:
                if (names := sorted(os.listdir("set"))) not in (["a", "b"], ["c", "d"], ["a", "b", "c", "d"]):
                    wrong.append(f"set: {names}")
                if (content := read("d/g")) not in (b"top", b"more"):
                    wrong.append(f"d/g: {content!r}")
                if (content := read("d/e/x")) != b"top":
                    wrong.append(f"d/e/x: {content!r}")
                if len(read("big")) != 300_000:
                    wrong.append("big")
                write(f"own{number}", b"%d" % rounds)
                if (content := read(f"own{number}")) != b"%d" % rounds:
                    wrong.append(f"own{number}: {content!r}, not {rounds}")
                os.mkdir(f"p{number}")
                os.rename(f"p{number}", f"q{number}")
                os.rmdir(f"q{number}")
            except OSError as exc:
                wrong.append(repr(exc))

    threads = [threading.Thread(target=look, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            for words in (["add", merged, more], ["mv", merged, more, "--append"], ["rm", merged, more]):
                done = subprocess.run([*branch, *words], capture_output=True, text=True, timeout=limit(30), check=False)
                if done.returncode:
                    wrong.append(done.stderr)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    return wrong[:20]


@_as_ordinary_user
def test_a_union_without_an_upper(stand: MountedSubject) -> None:
    stand.unmount()
    stand.read_only = True
    stand.mount()
    top, low = map(str, stand.lowers)
    _branch(stand, "add", str(stand.merged), str(_more(stand)), "--at", "0")
    assert _stack(stand) == [str(_more(stand)), top, low]
    stand.run(_reads, {"d/g": b"more", "f": b"top"})
    _branch(stand, "rm", str(stand.merged), top)
    stand.run(_reads, {"d/g": b"more", "f": b"beneath"})
    stand.unmount()


def _reads(expected: dict[str, bytes]) -> None:
    same({path: read(path) for path in expected}, expected)

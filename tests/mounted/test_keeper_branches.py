"""A daemon is killed while branches change or the upper is frozen: another one finishes or undoes that, the command
succeeds, and programs go on.

The daemons run a file of ours that kills them at a named function when a file of that name exists.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted import trees
from tests.mounted.checking import read, same, write
from tests.mounted.mounted_subject import MountedSubject
from tests.mounted.stands import kernel_subjects, unmounted
from tests.mounted.test_branches import _command
from tests.support import chaos

pytestmark = pytest.mark.skipif(chaos.is_wanted(), reason="it kills by itself")

_SUBJECTS = kernel_subjects("scattered")

_KILLING = """
import os
from unionfs.core import branches, freeze, kept_numbers, node_record, staging, unfinished_change

PLACE = {place!r}

def kill_at(owner, name):
    function = getattr(owner, name)
    def killing(*args, **kwargs):
        kill(name + ".before")
        value = function(*args, **kwargs)
        kill(name + ".after")
        return value
    setattr(owner, name, killing)

def kill(moment):
    try:
        os.unlink(os.path.join(PLACE, moment))
    except FileNotFoundError:
        return
    os.kill(os.getpid(), 9)

for owner, name in (
    (node_record.NodeRecord, "begin_changing"),
    (node_record.NodeRecord, "outdate"),
    (branches.Restack, "_switch"),
    (branches.Restack, "_leave"),
    (kept_numbers.KeptNumbers, "work"),
    (staging.Staging, "renew_index"),
    (freeze.Freeze, "commit"),
    (freeze.Freeze, "close"),
    (freeze, "_switch"),
    (unfinished_change, "take_back"),
    (unfinished_change, "finish"),
):
    kill_at(owner, name)
"""


@pytest.fixture(params=_SUBJECTS)
def stand(request: pytest.FixtureRequest, scratch: Path) -> Iterator[MountedSubject]:
    """A union of two lowers and an upper, and a directory `more` beside them; as root and as an ordinary user."""
    with unmounted(request, scratch, request.param, lowers=2) as built:
        top, low = built.lowers
        text = "f=top d/g=top d/e/x=top h1=link h2==h1 set/a=1 set/b=1"
        built.agent.call(trees.make, trees.parse(text), top)
        built.agent.call(trees.make, trees.parse("low=beneath d/low=beneath n/o=beneath"), low)
        for name in ("more", "kill"):
            built.agent.call(os.mkdir, str(built.base / name))
        text = "d/g=more d/new=more d/.wh.low= p/q=more set/.wh..wh..opq= set/c=2"
        built.agent.call(trees.make, trees.parse(text), built.base / "more")
        built._lowers_as_made = built._look_at_lowers()
        killing = scratch / "killing"
        killing.mkdir()
        (killing / "sitecustomize.py").write_text(_KILLING.format(place=os.fspath(built.base / "kill")))
        built._env = {"PYTHONPATH": f"{killing}:{built.user.env['PYTHONPATH']}", "UNIONFS_PURE": "1"}
        yield built


def _mount(stand: MountedSubject, keeper: str) -> None:
    if keeper == "its own":
        stand._env["UNIONFS_LINGER"] = "0"
    stand.mount()


_MOMENTS = ("begin_changing.before", "begin_changing.after", "_switch.before", "_switch.after", "_leave.after")
_ENDS = ("work.before", "work.after", "outdate.before", "outdate.after")


@pytest.mark.parametrize("keeper", ["its own", "any"])
def test_a_change_of_lowers_is_finished(stand: MountedSubject, keeper: str) -> None:
    _mount(stand, keeper)
    paths = (str(stand.merged), str(stand.base / "more"), str(stand.base / "kill"))
    stand.run(_change_lowers, [*stand.user.unionfs_cmd, "branch"], *paths, timeout_s=180)
    assert "ERROR" not in stand.log.read_text()
    assert stand.lowers_changed() == []
    stand.unmount()


def _change_lowers(branch: list[str], merged: str, more: str, kill: str) -> None:
    names = ("f", "d", "d/g", "d/low", "d/e/x", "h1", "h2", "set/a")
    numbers = {name: os.stat(name).st_ino for name in names}
    up, low = os.open("d/g", os.O_RDWR), os.open("d/low", os.O_RDONLY)
    listed = {name: sorted(os.listdir(name)) for name in (".", "d", "set")}
    same([os.path.exists(name) for name in ("p/q", "d/new", "set/c")], [False] * 3)
    for moment in (*_MOMENTS, *_ENDS):
        if moment != "_leave.after":
            Path(kill, moment).touch()
        _command([*branch, "add", merged, more])
        same(os.path.exists(f"{kill}/{moment}"), False)
        same(
            [read(name) for name in ("d/g", "d/new", "p/q", "set/c", "d/e/x")],
            [b"more", b"more", b"more", b"2", b"top"],
        )
        same([os.path.exists(name) for name in ("d/low", "set/a")], [False] * 2)
        same(sorted(os.listdir("d")), ["e", "g", "new"])
        same((os.pread(up, 9, 0), os.pread(low, 9, 0), os.fstat(low).st_nlink), (b"top", b"beneath", 0))
        new = os.open("d/new", os.O_RDONLY)
        write("d/new-" + moment, b"new")
        Path(kill, moment).touch()
        _command([*branch, "rm", merged, more, "--force"])
        same(os.path.exists(f"{kill}/{moment}"), False)
        same(read("d/new-" + moment), b"new")
        os.unlink("d/new-" + moment)
        same({name: sorted(os.listdir(name)) for name in listed}, listed)
        same({name: os.stat(name).st_ino for name in names}, numbers)
        same([os.path.exists(name) for name in ("p/q", "d/new", "set/c")], [False] * 3)
        same((os.pread(up, 9, 0), os.pread(low, 9, 0), os.pread(new, 9, 0)), (b"top", b"beneath", b"more"))
        os.close(new)


_FREEZE_MOMENTS = ("begin_changing.after", "commit.before", "renew_index.before", "renew_index.after")
_FREEZE_ENDS = ("_switch.before", "_switch.after", "commit.after", "work.before", "work.after", "outdate.before")
_FROZEN = ("outdate.after", "close.before", "close.after")


@pytest.mark.parametrize("keeper", ["its own", "any"])
def test_a_freeze_is_done_once(stand: MountedSubject, keeper: str) -> None:
    _mount(stand, keeper)
    paths = (str(stand.merged), str(stand.base / "kill"))
    stand.run(_freeze, list(stand.user.unionfs_cmd), *paths, timeout_s=180)
    found = sorted(path.name for path in stand.upper.parent.iterdir() if path.name.startswith(stand.upper.name + "."))
    moments = (*_FREEZE_MOMENTS, *_FREEZE_ENDS, *_FROZEN)
    assert found == sorted(f"{stand.upper.name}.{number}" for number in range(1, len(moments) + 1))
    assert "ERROR" not in stand.log.read_text()
    assert stand.lowers_changed() == []
    stand.unmount()


def _freeze(unionfs: list[str], merged: str, kill: str) -> None:
    opened = {name: os.open(name, os.O_RDWR) for name in ("f", "d/g", "d/e/x", "h1")}
    removed = os.open("removed", os.O_RDWR | os.O_CREAT)
    os.write(removed, b"removed")
    os.unlink("removed")
    os.mkdir("made")
    for turn, moment in enumerate((*_FREEZE_MOMENTS, *_FREEZE_ENDS, *_FROZEN)):
        os.pwrite(opened["f"], b"%03d" % turn, 0)
        os.pwrite(opened["h1"], b"%04d" % turn, 0)
        write(f"made/{turn}", b"made")
        before = {name: (os.fstat(fd).st_ino, os.pread(fd, 99, 0)) for name, fd in opened.items()}
        Path(kill, moment).touch()
        if turn % 2:
            Path(kill, "take_back.after").touch()  # the one that undoes it, too
        _command([*unionfs, "freeze", merged])
        same(os.path.exists(f"{kill}/{moment}"), False)
        Path(kill, "take_back.after").unlink(missing_ok=True)
        for name, fd in opened.items():
            same((os.fstat(fd).st_ino, os.pread(fd, 99, 0)), before[name])
            same((os.stat(name).st_ino, read(name)), before[name])
        same(read("h2"), b"%04d" % turn)
        same(os.pread(removed, 99, 0), b"removed")
        same(sorted(os.listdir("made")), sorted(str(number) for number in range(turn + 1)))

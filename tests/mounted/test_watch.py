"""`--watch`: changes of the branches by other programs are seen on the mount, although the kernel caches everything.

All is done by processes of the agent, in the branches and on the mount. What takes a moment to be noticed is
waited for.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.mounted import trees
from tests.mounted.agent import command
from tests.mounted.checking import names, read, same
from tests.mounted.mounted_subject import MountedSubject
from tests.mounted.random_changes import change_at_random
from tests.mounted.subjects import OURS, Subject, unavailable
from tests.support.timing import limit

_TREE = "f=hello g=one d/x=1 d/y=2 d/e/z=3 gone=1 swap=file l->f"


def _subjects(*whos: str) -> list[ParameterSet]:
    return [
        pytest.param(one, id=str(one), marks=[pytest.mark.transport(one.transport), pytest.mark.runs_as(one.runs_as)])
        for one in (Subject(transport, who, "plain") for transport in OURS for who in whos)
    ]


@pytest.fixture(params=_subjects("root", "user", "userns"))
def stand(request: pytest.FixtureRequest, scratch: Path) -> Iterator[MountedSubject]:
    """A watched union of an upper and two lowers; the tree is in the lower one."""
    subject: Subject = request.param
    if reason := unavailable(subject):
        pytest.skip(reason)
    request.getfixturevalue("fuse_device")
    user = request.getfixturevalue("root_user" if subject.who == "root" else "ordinary_user")
    watch = {"UNIONFS_WATCH": "1"}
    with MountedSubject(subject, user, scratch / "stand", lowers=2, mounted=False, env=watch) as built:
        built.agent.call(_build, built.lowers[1])
        built.mount()
        yield built
        assert built.complaints() == []
        built.unmount()


def _build(top: Path) -> None:
    trees.make(trees.parse(_TREE), top)


def _until(seen: Callable[[], object], wanted: object) -> None:
    """Wait until programs see what they should."""
    for _ in range(600):
        with suppress(OSError):  # ESTALE: the old file was opened, and has gone since
            if seen() == wanted:
                return
        time.sleep(0.02)
    same(seen(), wanted)


def _exists(path: str) -> Callable[[], bool]:
    return lambda: os.path.lexists(path)


def _look_around() -> None:
    """Let the kernel remember all there is, and that some names are missing."""
    for _ in range(2):
        for directory, _directories, files in os.walk("."):
            for name in files:
                os.stat(os.path.join(directory, name), follow_symlinks=False)
        for path in ("f", "g", "d/x", "d/y", "d/e/z", "gone", "swap"):
            read(path)
        same([os.path.exists(path) for path in ("new", "d/new", "n")], [False] * 3)


def _changes_are_seen(top: Path, low: Path, upper: Path) -> None:
    _look_around()
    with open("g", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        same(mapped[:], b"one")
        (low / "g").write_bytes(b"two")  # the same size
        _until(lambda: read("g"), b"two")
        same(mapped[:], b"two")
    (low / "f").write_bytes(b"longer than hello")
    _until(lambda: (read("f"), os.stat("f").st_size), (b"longer than hello", 17))
    (low / "f").chmod(0o600)
    _until(lambda: os.stat("f").st_mode & 0o777, 0o600)
    (low / "gone").unlink()
    _until(lambda: (_exists("gone")(), "gone" in names()), (False, False))
    (top / "new").write_bytes(b"new")
    _until(lambda: (_exists("new")(), "new" in names()), (True, True))
    (upper / "d").mkdir()
    (upper / "d/new").write_bytes(b"in the upper")
    _until(lambda: (_exists("d/new")(), sorted(os.listdir("d"))), (True, ["e", "new", "x", "y"]))
    (low / "n/m/o").mkdir(parents=True)
    (low / "n/m/o/p").write_bytes(b"deep")
    _until(lambda: _exists("n/m/o/p")() and read("n/m/o/p"), b"deep")
    (low / "n/m/o/p").write_bytes(b"deeper")
    _until(lambda: read("n/m/o/p"), b"deeper")
    (low / "swap").unlink()
    (low / "swap").mkdir()
    (low / "swap/in").write_bytes(b"in")
    _until(lambda: os.path.isdir("swap") and read("swap/in"), b"in")
    (upper / ".wh.swap").touch()
    _until(_exists("swap"), False)
    (upper / ".wh.swap").unlink()
    _until(_exists("swap"), True)
    (upper / "d/.wh..wh..opq").touch()
    _until(lambda: os.listdir("d"), ["new"])
    (upper / "d/.wh..wh..opq").unlink()
    _until(lambda: sorted(os.listdir("d")), ["e", "new", "x", "y"])
    (low / "d/e").rename(low / "d/e2")
    _until(lambda: sorted(os.listdir("d")), ["e2", "new", "x", "y"])
    same(read("d/e2/z"), b"3")
    (low / "t").write_bytes(b"replaced")
    (low / "t").rename(low / "d/x")
    _until(lambda: read("d/x"), b"replaced")


def _both_sides_in_turn(upper: Path) -> None:
    """What is changed on the mount and in the upper, in turn."""
    for number in range(20):
        Path("both").write_bytes(b"mount %d" % number)
        same((upper / "both").read_bytes(), b"mount %d" % number)
        (upper / "both").write_bytes(b"upper %d" % number)
        _until(lambda number=number: read("both"), b"upper %d" % number)  # type: ignore[misc]
        os.unlink("both")
        same(_exists("both")(), False)
        (upper / "both").write_bytes(b"again")
        _until(lambda: _exists("both")() and read("both"), b"again")
        os.rename("both", "other")
        (upper / "other").unlink()
        _until(_exists("other"), False)


def _work(number: int, over: threading.Event, failed: list[BaseException]) -> None:
    """A program on the mount; that another is faster, or somebody underneath, is no failure."""
    draw = random.Random(number)

    def name() -> str:
        return f"d/{draw.randrange(6)}"

    acts: list[Callable[[], object]] = [
        lambda: Path(name()).write_bytes(bytes(5000)),
        lambda: os.rename(name(), name()),
        lambda: os.unlink(name()),
        lambda: os.listdir("d"),
        lambda: os.mkdir(f"{name()}d"),
        lambda: os.rmdir(f"{name()}d"),
        lambda: read(name()),
    ]
    try:
        while not over.is_set():
            with suppress(OSError):
                draw.choice(acts)()
    except BaseException as failure:  # noqa: BLE001  told below
        failed.append(failure)


def _nobody_waits_for_ever(low: Path, upper: Path) -> None:
    """Programs are at work in directories that somebody changes underneath."""
    over = threading.Event()
    failed: list[BaseException] = []
    workers = [threading.Thread(target=_work, args=(number, over, failed)) for number in range(4)]
    for worker in workers:
        worker.start()
    draw = random.Random(99)

    def place() -> Path:
        return (low if draw.random() < 0.5 else upper) / "d" / str(draw.randrange(6))

    acts: list[Callable[[], object]] = [
        lambda: place().write_bytes(bytes(draw.randrange(9000))),
        lambda: place().unlink(),
        lambda: place().rename(place()),
        lambda: place().chmod(0o600),
    ]
    for _ in range(300):
        with suppress(OSError):
            draw.choice(acts)()
        time.sleep(0.001)
    over.set()
    for worker in workers:
        worker.join()
    same(failed, [])
    for branch in (low, upper):
        shutil.rmtree(branch / "d", ignore_errors=True)
    _until(_exists("d"), False)


def _two_see_the_same(second: Path) -> None:
    """Two daemons on one upper: what is done here shows there, also when it brings a lower file up."""
    there = os.fspath(second)
    for path in ("f", "g", "gone", "swap"):
        read(path)
        read(f"{there}/{path}")
    same(os.path.exists(f"{there}/made"), False)
    with open("f", "ab") as out:
        out.write(b", copied up")
    _until(lambda: read(f"{there}/f"), b"hello, copied up")
    Path(there, "f").write_bytes(b"back")
    _until(lambda: read("f"), b"back")
    same(os.stat("f").st_ino, os.stat(f"{there}/f").st_ino)
    Path("made").write_bytes(b"made")
    _until(lambda: _exists(f"{there}/made")() and read(f"{there}/made"), b"made")
    os.unlink(f"{there}/gone")
    _until(lambda: (_exists("gone")(), "gone" in names()), (False, False))
    os.rename("g", "h")
    _until(lambda: (_exists(f"{there}/g")(), _exists(f"{there}/h")()), (False, True))
    os.rename("d", "e")
    _until(lambda: _exists(f"{there}/e/e/z")() and read(f"{there}/e/e/z"), b"3")
    os.mkdir(f"{there}/gone")
    _until(lambda: os.path.isdir("gone") and os.listdir("gone"), [])
    os.chmod(f"{there}/swap", 0o640)
    _until(lambda: os.stat("swap").st_mode & 0o777, 0o640)


def _work_until_the_end(low: Path, upper: Path, daemon: int) -> None:
    """Programs are at work on both sides until the daemon is killed in the middle of it."""
    over = threading.Event()
    threading.Timer(0.4, os.kill, (daemon, signal.SIGKILL)).start()

    def work(number: int) -> None:
        draw = random.Random(number)
        while not over.is_set():
            place = Path("d") if number else (low if draw.random() < 0.5 else upper) / "d"
            try:
                change_at_random(place, draw)
            except OSError as exc:
                if exc.errno in (errno.ENOTCONN, errno.ECONNABORTED):
                    over.set()

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def _only_daemon(stand: MountedSubject) -> int:
    """The pid of the daemon. Beside it is the process that aborts the connection when it dies, which has the daemon's
    name until it has given itself another."""
    deadline = time.monotonic() + limit(10)
    while True:
        named = [pid for pid in stand.daemons() if Path(f"/proc/{pid}/comm").read_text().startswith("unionfs:")]
        if len(named) == 1 or time.monotonic() > deadline:
            (daemon,) = named
            return daemon
        time.sleep(0.01)


@pytest.mark.parametrize("stand", _subjects("root"), indirect=True)
def test_no_program_hangs_when_the_daemon_is_killed(stand: MountedSubject) -> None:
    """Without a keeper, and even if it was waiting itself, to tell the kernel of a change. Only root can always see to
    that."""
    stand.unmount()
    stand._keeper = False
    stand.mount()
    for _ in range(4):
        daemon = _only_daemon(stand)
        stand.agent.call(_work_until_the_end, stand.lowers[1], stand.upper, daemon, cwd=stand.merged)
        stand.give_up()
        assert stand.daemons() == {}
        stand.mount()


def test_two_mounts_of_one_upper(stand: MountedSubject) -> None:
    second = stand.base / "second"
    stand.agent.call(os.mkdir, second)
    argv = [*stand.mount_argv()[:-1], os.fspath(second)]
    assert stand.agent.call(command, argv, {"UNIONFS_WATCH": "1"}, timeout_s=60).returncode == 0
    try:
        stand.run(_two_see_the_same, second, timeout_s=120)
    finally:
        stand.agent.call(command, [*stand.user.unionfs_cmd, "umount", os.fspath(second)], timeout_s=60)


def test_changes_from_outside(stand: MountedSubject) -> None:
    stand.run(_changes_are_seen, stand.lowers[0], stand.lowers[1], stand.upper, timeout_s=120)
    stand.run(_both_sides_in_turn, stand.upper, timeout_s=120)
    stand.run(_nobody_waits_for_ever, stand.lowers[1], stand.upper, timeout_s=120)

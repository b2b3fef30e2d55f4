"""A mount with --watch outlives its daemon: changes of other programs in between show, and no program waits for
ever."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mounted import trees
from tests.mounted.checking import read, same
from tests.mounted.mounted_subject import MountedSubject
from tests.mounted.random_changes import change_at_random
from tests.mounted.stands import kernel_subjects, unmounted
from tests.mounted.test_keeper import kill_daemon
from tests.support import chaos
from tests.support.timing import limit

_SUBJECTS = kernel_subjects("plain")


@pytest.fixture(params=_SUBJECTS)
def stand(request: pytest.FixtureRequest, scratch: Path) -> Iterator[MountedSubject]:
    """A watched union of an upper and a lower."""
    with unmounted(request, scratch, request.param, lowers=1, env={"UNIONFS_WATCH": "1"}) as built:
        built.agent.call(trees.make, trees.parse("f=hello g=one d/x=1 d/y=2 d/e/z=3 gone=1 swap=file"), built.lowers[0])
        built.mount()
        yield built


def _until(seen: Callable[[], object], wanted: object) -> None:
    for _ in range(600):
        with suppress(OSError):
            if seen() == wanted:
                return
        time.sleep(0.02)
    same(seen(), wanted)


def test_changes_while_no_daemon_runs_are_noticed(stand: MountedSubject) -> None:
    stand.run(_change_while_stopped, chaos.mount(f"{stand.base}/"), stand.lowers[0], timeout_s=60)
    stand.unmount()


def _change_while_stopped(mount: str, low: Path) -> None:
    """The daemon is stopped while somebody changes a lower, and then killed: it has told nothing of that."""
    for _ in range(2):
        for path in ("f", "g", "d/x", "d/y", "d/e/z", "gone", "swap"):
            read(path)
        same([os.path.exists(path) for path in ("new", "d/new", "d/x2")], [False] * 3)
        os.listdir("d")
    daemon = chaos.wait_for_daemon(mount)
    os.kill(daemon, signal.SIGSTOP)
    (low / "f").write_bytes(b"longer than hello")
    (low / "g").write_bytes(b"two")
    (low / "g").chmod(0o600)
    (low / "d/new").write_bytes(b"new")
    (low / "gone").unlink()
    (low / "d/x").rename(low / "d/x2")
    (low / "swap").unlink()
    (low / "swap").mkdir()
    os.kill(daemon, signal.SIGKILL)
    chaos.wait_for_daemon(mount, after=daemon)
    _until(lambda: (read("f"), read("g"), os.stat("g").st_mode & 0o777), (b"longer than hello", b"two", 0o600))
    _until(lambda: sorted(os.listdir("d")), ["e", "new", "x2", "y"])
    _until(lambda: [os.path.exists(path) for path in ("gone", "d/new", "d/x")], [False, True, False])
    _until(lambda: (os.path.isdir("swap"), read("d/x2")), (True, b"1"))
    # The next daemon watches.
    (low / "d/e/z").write_bytes(b"33")
    _until(lambda: read("d/e/z"), b"33")
    kill_daemon(mount)
    (low / "d/e/late").write_bytes(b"late")
    _until(lambda: os.path.exists("d/e/late") and read("d/e/late"), b"late")


def test_directories_made_since_the_mount_stay(stand: MountedSubject) -> None:
    """The keeper has read the root directory when it began to watch."""
    stand.run(_make_and_kill, chaos.mount(f"{stand.base}/"), timeout_s=60)
    stand.unmount()


def _make_and_kill(mount: str) -> None:
    for number in range(3):
        os.mkdir(f"made{number}")
        (Path(f"made{number}") / "in").write_bytes(b"%d" % number)
        kill_daemon(mount)
        time.sleep(0.1)  # until the kernel has been told to drop what it knows
        same((os.listdir(f"made{number}"), read(f"made{number}/in")), (["in"], b"%d" % number))
        same(max(name for name in os.listdir(".") if name.startswith("made")), f"made{number}")


def test_nobody_waits_for_ever_under_kills(stand: MountedSubject) -> None:
    """Daemons die while a thread of theirs waits in a notification, for a lock of a program that waits for them."""
    # The kernel begins with a root directory that nobody may enter, and drops the answer to its first GETATTR if the
    # directory is reported as changed meanwhile (fs/fuse: fuse_change_attributes), as a daemon that takes over does.
    stand.run(os.getcwd)
    killer = chaos.Killer(chaos.mount(f"{stand.base}/"), "20-100").start()
    try:
        stand.run(_work_on_both_sides, stand.lowers[0], stand.upper, timeout_s=60)
    finally:
        kills = killer.stop()
    assert kills > 5
    assert "Traceback" not in stand.log.read_text()
    stand.unmount()


def _work_on_both_sides(low: Path, upper: Path) -> None:
    until = time.monotonic() + limit(4)
    failed: list[str] = []
    work = [threading.Thread(target=_work, args=(number, until, low, upper, failed)) for number in range(5)]
    for one in work:
        one.start()
    for one in work:
        one.join()
    same(failed, [])
    (low / "d/at-last").write_bytes(b"at last")
    _until(lambda: os.path.exists("d/at-last") and read("d/at-last"), b"at last")


def _work(number: int, until: float, low: Path, upper: Path, failed: list[str]) -> None:
    draw = random.Random(number)
    kinds: set[int | None] = set()
    while time.monotonic() < until:
        place = Path("d") if number else (low if draw.random() < 0.5 else upper) / "d"
        try:
            change_at_random(place, draw)
        except OSError as error:
            kinds.add(error.errno)
    failed += [os.strerror(code or 0) for code in kinds if code in (errno.EIO, errno.ENOTCONN, errno.ECONNABORTED)]


@pytest.mark.parametrize("stand", _SUBJECTS[:1], indirect=True)
def test_the_mount_ends_with_keeper_and_daemon(stand: MountedSubject) -> None:
    """Even if the last daemon waits itself, to tell the kernel of a change."""
    stand.unmount()
    stand._env = {"UNIONFS_LINGER": "0"}  # a parent of mounts may be the keeper of others
    stand.mount()
    mount = chaos.mount(f"{stand.base}/")
    daemon = chaos.wait_for_daemon(mount)
    stand.agent.call(os.kill, chaos.keeper_of(mount), signal.SIGKILL)
    stand.run(read, "f")
    stand.agent.call(_work_until_the_end, stand.lowers[0], stand.upper, daemon, cwd=stand.merged, timeout_s=60)
    stand.give_up()
    assert stand.daemons() == {}


def _work_until_the_end(low: Path, upper: Path, daemon: int) -> None:
    threading.Timer(0.4, os.kill, (daemon, signal.SIGKILL)).start()
    work = [threading.Thread(target=_work, args=(number, time.monotonic() + 1, low, upper, [])) for number in range(5)]
    for one in work:
        one.start()
    for one in work:
        one.join()

"""A mount with --passthrough outlives its daemon: the next one knows what the kernel has open, and by which file."""

from __future__ import annotations

import errno
import json
import os
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted import trees
from tests.mounted.agent import command
from tests.mounted.checking import fails, read, same, write
from tests.mounted.mounted_subject import MountedSubject
from tests.mounted.subjects import PASSTHROUGH, Subject, unavailable
from tests.mounted.test_keeper import kill_daemon, transactions
from tests.support import chaos
from tests.support.users import User

_SUBJECT = Subject(PASSTHROUGH, "root", "scattered")
pytestmark = [pytest.mark.transport("kernel"), pytest.mark.runs_as("root")]


@pytest.fixture
def stand(root_user: User, fuse_device: Path, scratch: Path) -> Iterator[MountedSubject]:
    """A union of two lowers and an upper."""
    if reason := unavailable(_SUBJECT):
        pytest.skip(reason)
    with MountedSubject(_SUBJECT, root_user, scratch / "stand", lowers=2, mounted=False) as built:
        built.agent.call(trees.make, trees.parse("f=hello g=as-it-was gone=removed one=1 two==one"), built.lowers[0])
        built.agent.call(write, f"{built.lowers[0]}/big", b"z" * (3 << 20))  # more than is copied up inline
        built._lowers_as_made = built._look_at_lowers()
        built.mount()
        yield built
        assert built.lowers_changed() == []
        built.unmount()


def _passed(stand: MountedSubject) -> dict[str, int]:
    done = stand.agent.call(command, [*stand.user.unionfs_cmd, "stats", "--json", str(stand.merged)])
    found: dict[str, int] = json.loads(done.stdout)["passthrough"]
    return found


def test_open_files_across_deaths(stand: MountedSubject) -> None:
    stand.run(_use_across_deaths, chaos.mount(f"{stand.base}/"), timeout_s=60)
    assert _passed(stand) == {"open": 0, "plain": 0}


def _use_across_deaths(mount: str) -> None:
    early = os.open("f", os.O_RDONLY)
    ino = os.fstat(early).st_ino
    gone = os.open("gone", os.O_RDONLY)
    os.unlink("gone")
    kill_daemon(mount)
    same(os.pread(early, 99, 0), b"hello")
    same(os.pread(gone, 99, 0), b"removed")
    # The lower's file is open: what opens the copy gets the node by another number.
    writer = os.open("f", os.O_RDWR)
    kill_daemon(mount)
    same(os.pwrite(writer, b"HELLO!", 0), 6)
    for _ in range(2):
        late = os.open("f", os.O_RDONLY)
        same((os.pread(late, 99, 0), os.pread(early, 99, 0)), (b"HELLO!", b"hello"))
        same({os.fstat(fd).st_ino for fd in (early, late, writer)}, {ino})
        same((os.fstat(early).st_size, os.stat("f").st_size), (6, 6))
        kill_daemon(mount)
        os.close(late)
    fails(errno.ESTALE, os.open, f"/proc/self/fd/{early}", os.O_RDONLY)
    os.close(early)
    kill_daemon(mount)
    os.pwrite(writer, b"!", 6)
    os.close(writer)
    same(read("f"), b"HELLO!!")
    kill_daemon(mount)
    with open("f", "r+b") as again, open("one", "rb") as one:
        again.write(b"hallo")
        again.flush()
        os.truncate("two", 0)
        kill_daemon(mount)
        write("two", b"NEW")
        same((one.read(), read("one"), read("f")), (b"1", b"NEW", b"hallo!!"))
    with open("big", "r+b") as big:
        kill_daemon(mount)
        big.seek(3 << 20)
        big.write(b"end")
    kill_daemon(mount)
    same((os.stat("big").st_size, read("big")[-4:]), ((3 << 20) + 3, b"zend"))
    nameless = os.open(".", os.O_RDWR | os.O_TMPFILE, 0o600)
    kill_daemon(mount)
    os.write(nameless, b"nameless")
    same(os.pread(nameless, 99, 0), b"nameless")
    for fd in (nameless, gone):
        os.close(fd)
    write("g", b"all")
    same(read("g"), b"all")


def test_files_opened_and_closed_under_kills(stand: MountedSubject) -> None:
    killer = chaos.Killer(chaos.mount(f"{stand.base}/"), "30-100").start()
    try:
        stand.run(_open_and_close, timeout_s=120)
        stand.run(transactions, timeout_s=120)
    finally:
        kills = killer.stop()
    assert kills > 0


def _open_and_close() -> None:
    threads = [threading.Thread(target=_write_and_read, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    same(sorted(_FAILED), [])


_FAILED: list[str] = []


def _write_and_read(number: int) -> None:
    try:
        for turn in range(150):
            name, data = f"n{number}-{turn % 7}", b"%d" % turn * 1000
            write(name, data)
            with open(name, "rb") as early:
                os.rename(name, f"{name}-moved")
                write(name, data[::-1])
                same((early.read(), read(name), read(f"{name}-moved")), (data, data[::-1], data))
            os.unlink(f"{name}-moved")
    except BaseException as error:  # noqa: BLE001 - told by the main thread
        _FAILED.append("".join(traceback.format_exception(error))[-300:])

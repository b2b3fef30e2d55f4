"""`unionfs freeze`: the upper of a mounted union becomes a lower while programs write."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted import trees
from tests.mounted.agent import command
from tests.mounted.checking import read, same, write
from tests.mounted.mounted_subject import MountedSubject
from tests.mounted.stands import kernel_subjects, unmounted
from tests.mounted.test_branches import _command
from tests.mounted.test_keeper import kill_daemon
from tests.support import chaos
from tests.support.timing import limit

_SUBJECTS = kernel_subjects("scattered")


@pytest.fixture(params=_SUBJECTS)
def stand(request: pytest.FixtureRequest, scratch: Path) -> Iterator[MountedSubject]:
    """A union of a lower and an upper; as root and as an ordinary user."""
    with unmounted(request, scratch, request.param, lowers=1) as built:
        built.agent.call(trees.make, trees.parse("f=low d/g=low d/e/x=low h1=link h2==h1"), built.lowers[0])
        built._lowers_as_made = built._look_at_lowers()
        built.mount()
        yield built


def _freeze(stand: MountedSubject, *words: str) -> str:
    argv = [*stand.user.unionfs_cmd, "freeze", str(stand.merged), *words]
    return str(stand.agent.call(_command, argv)).removesuffix("\n")


def test_programs_go_on(stand: MountedSubject) -> None:
    argv = [*stand.user.unionfs_cmd, "freeze", "--json", str(stand.merged)]
    frozen = stand.run(_write_meanwhile, argv, timeout_s=180)
    assert [os.path.basename(path) for path in frozen] == [f"upper.{number}" for number in range(1, 5)]
    shown = stand.agent.call(trees.snapshot, stand.merged)
    stand.remount()
    assert trees.differences(_without_inos(shown), _without_inos(stand.agent.call(trees.snapshot, stand.merged))) == []
    assert stand.complaints() == []
    assert stand.lowers_changed() == []
    stand.unmount()


@pytest.mark.parametrize("keeper", ["its own", "any"])
def test_a_frozen_union_outlives_its_daemon(stand: MountedSubject, keeper: str) -> None:
    """Files keep what they show, inode numbers included; those that are open go on, also without a name."""
    if keeper == "its own":
        stand.unmount()
        stand._env = {"UNIONFS_LINGER": "0"}
        stand.mount()
    argv = [*stand.user.unionfs_cmd, "freeze", str(stand.merged)]
    stand.run(_use_across_deaths, argv, chaos.mount(f"{stand.base}/"), timeout_s=120)
    assert stand.lowers_changed() == []
    stand.unmount()


def _use_across_deaths(freeze: list[str], mount: str) -> None:
    opened = {name: os.open(name, os.O_RDWR) for name in ("f", "d/g", "d/e/x", "h1")}
    os.write(opened["f"], b"FILE")
    os.write(opened["h1"], b"LINK")
    removed = os.open("removed", os.O_RDWR | os.O_CREAT)
    os.write(removed, b"removed")
    os.unlink("removed")
    os.mkdir("made")
    for turn in range(3):
        same(subprocess.run(freeze, check=False, stdout=subprocess.DEVNULL).returncode, 0)
        before = {name: (os.fstat(fd).st_ino, os.pread(fd, 99, 0)) for name, fd in opened.items()}
        for changes in (False, True):
            if changes:  # copied up from the frozen directory
                os.pwrite(opened["f"], b"%04d" % turn, 0)
                write(f"made/{turn}", b"made")
                os.rename("d/e", "d/E")
                os.rename("d/E", "d/e")
                before["f"] = before["f"][0], b"%04d" % turn
            kill_daemon(mount)
            for name, fd in opened.items():
                same((os.fstat(fd).st_ino, os.pread(fd, 99, 0)), before[name])
                same((os.stat(name).st_ino, read(name)), before[name])
            same(os.pread(removed, 99, 0), b"removed")
            same(sorted(os.listdir("made")), [str(number) for number in range(turn + changes)])


def _without_inos(found: trees.Snapshot) -> trees.Snapshot:
    return {path: line._replace(ino=0, ctime_ns=0, nlink=0) for path, line in found.items()}


def _write_meanwhile(freeze: list[str]) -> list[str]:
    """Write in three threads while the upper is frozen four times. Returns the frozen directories."""
    wrong: list[str] = []
    frozen: list[str] = []
    over = threading.Event()
    opened = os.open("f", os.O_RDWR)

    def work(number: int) -> None:
        count = 0
        fd = os.open(f"log{number}", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        while not over.is_set():
            count += 1
            try:
                os.write(fd, b"%07d\n" % count)
                if os.pread(fd, 8, 8 * (count - 1)) != b"%07d\n" % count or os.fstat(fd).st_size != 8 * count:
                    wrong.append(f"line {count} of log{number}")
                write(f"d/tmp{number}", b"%d" % count)
                os.rename(f"d/tmp{number}", f"d/now{number}")
                if read(f"d/now{number}") != b"%d" % count:
                    wrong.append(f"now{number}, not {count}")
            except OSError as exc:
                wrong.append(repr(exc))
        if read(f"log{number}") != b"".join(b"%07d\n" % line for line in range(1, count + 1)):
            wrong.append(f"log{number} in the end")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    kept: list[tuple[str, bytes]] = []
    try:
        for number in range(4):
            os.pwrite(opened, b"%d" % number, 0)
            done = subprocess.run(freeze, capture_output=True, text=True, timeout=limit(60), check=False)
            if done.returncode:
                wrong.append(done.stderr)
                break
            frozen.append(json.loads(done.stdout)["path"])
            kept.append((f"{frozen[-1]}/log0", read(f"{frozen[-1]}/log0")))
            same(read(f"{frozen[-1]}/f"), b"%dow" % number)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    same(wrong[:10], [])
    for path, content in kept:
        same(read(path), content)  # nothing frozen changes
        same(content, b"".join(b"%07d\n" % line for line in range(1, len(content) // 8 + 1)))
    same(read("f"), b"3ow")
    return frozen


def test_a_given_name_and_refused_ones(stand: MountedSubject) -> None:
    assert _freeze(stand, "first") == str(stand.base / "first")
    for words, why in (
        (("first",), "File exists"),
        (("a/b",), "'a/b' is no name for a directory"),
    ):
        argv = [*stand.user.unionfs_cmd, "freeze", str(stand.merged), *words]
        stand.agent.call(_command, argv, why)
    stand.agent.call(_command, [*stand.user.unionfs_cmd, "freeze", str(stand.base)], "no union is mounted there")
    told = stand.agent.call(command, [*stand.user.unionfs_cmd, "branch", "ls", "--json", str(stand.merged)]).stdout
    assert [line["path"] for line in json.loads(told)] == [
        str(stand.upper), str(stand.base / "first"), str(stand.lowers[0]),
    ]  # fmt: skip
    stand.unmount()
    stand.read_only = True
    stand.mount()
    stand.agent.call(_command, [*stand.user.unionfs_cmd, "freeze", str(stand.merged)], "the union has no upper")
    stand.unmount()

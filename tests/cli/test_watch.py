"""`unionfs watch` and `unionfs top` without a container: what unions do in each interval, counted exactly."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny
from tests.support.marks import as_ordinary_user
from tests.support.mounts import mounted
from tests.support.rootfs import unpack
from tests.support.timing import limit
from tests.support.users import User
from unionfs.control import rates


@pytest.fixture
def mountpoint(user: User, scratch: Path, fuse_device: Path, transport: str) -> Iterator[Path]:
    """A union of a few files, served by each transport."""
    del fuse_device
    (scratch / "lower/d").mkdir(parents=True)
    for name in ("d/one", "d/two", "other"):
        (scratch / "lower" / name).write_bytes(b"content" * 100)
    for name in ("upper", "mnt"):
        (scratch / name).mkdir()
    user.own(scratch)
    lower, upper = scratch / "lower", scratch / "upper"
    with mounted([lower], scratch / "mnt", user=user, transport=transport, upper=upper) as mnt:
        yield mnt


def started(user: User, *words: object) -> subprocess.Popen[str]:
    return user.popen([*user.unionfs_cmd, *map(str, words)])


def test_what_happens_is_told_once_with_the_program_that_did_it(user: User, mountpoint: Path, transport: str) -> None:
    watch = started(user, "watch", "--json", "--interval", "0.1", mountpoint)
    assert watch.stdout is not None
    try:
        told = [json.loads(watch.stdout.readline())]
        user.run(["sh", "-c", f"cd {mountpoint}; mkdir new; chmod 600 d/one d/two other"])
        while sum(part["copy_ups"] for one in told for part in one["caused"]) < 4 or any(told[-1]["messages"].values()):
            told.append(json.loads(watch.stdout.readline()))
            assert len(told) < 300
    finally:
        watch.terminate()
        watch.communicate(timeout=limit(20))
    assert sum(one["messages"].get("MKDIR", 0) for one in told) == 1
    assert sum(one["messages"].get("SETATTR", 0) for one in told) == 3
    assert sum(one["copy_ups"] for one in told) == 4, "three files and a directory"
    assert all(one["memory"] > 1 << 20 and one["nodes"] >= 1 for one in told)
    sums: dict[tuple[str, str], int] = {}
    for one in told:
        for part in one["caused"]:
            key = (part["command"], part["directory"])
            sums[key] = sums.get(key, 0) + part["copy_ups"]
            assert part["ms"] > 0
    assert sums == {("chmod", "/"): 2, ("chmod", "/d"): 2}
    assert all(0 < one["descriptors"]["open"] < one["descriptors"]["most"] for one in told)
    if transport == "kernel":
        assert requests(told, "kinds", "kind", "SETATTR") == 3
        assert requests(told, "programs", "program", "chmod") >= 3
        assert requests(told, "directories", "directory", "/d") >= 2
        assert {kind for one in told for kind in one["waits"]} == {"copying", "blocked", "disk"}
    else:
        assert not any("waits" in one for one in told), "libfuse does not tell who asks for what"


def requests(told: list[dict[str, Any]], lists: str, field: str, value: str) -> int:
    return sum(part["requests"] for one in told for part in one[lists] if part[field] == value)


def test_the_union_of_a_container(ordinary_user: User, scratch: Path, fuse_device: Path) -> None:
    del fuse_device
    user = ordinary_user
    root = unpack(tiny.make(scratch / "tiny.tar"), scratch / "root", user)
    script = "while ! [ -e /go ]; do sleep 0.1; done; for n in 1 2 3 4 5; do mkdir /tmp/$n; done; sleep 60"
    user.unionfs("run", "-d", "--name", "busy", "--lower", root, "sh", "-c", script)
    try:
        watch = started(user, "watch", "--json", "--interval", "0.1", "busy")
        assert watch.stdout is not None
        told = [json.loads(watch.stdout.readline())]
        user.unionfs("exec", "busy", "touch", "/go")
        while requests(told, "kinds", "kind", "MKDIR") < 5:
            told.append(json.loads(watch.stdout.readline()))
            assert len(told) < 300
        watch.terminate()
        watch.communicate(timeout=limit(20))
        assert requests(told, "directories", "directory", "/tmp") >= 5
        assert "mkdir" in {part["program"] for one in told for part in one["programs"]}
        shown = user.unionfs("top", "--interval", "0.1", "--count", "1").stdout
        assert "DESCRIPTORS" in shown
        assert "  busy\n" in shown
    finally:
        user.unionfs("rm", "--force", "busy")


@as_ordinary_user
def test_the_table_and_the_number_of_intervals(user: User, mountpoint: Path) -> None:
    watch = started(user, "watch", "--interval", "0.5", "--count", "2", mountpoint)
    said, _ = watch.communicate(timeout=limit(20))
    assert watch.returncode == 0
    assert said.count("messages/s") == 2
    assert said.startswith(str(mountpoint))
    assert "\x1b" not in said, "a pipe is no terminal"


@as_ordinary_user
def test_top_lists_all_unions_and_what_each_does(user: User, mountpoint: Path) -> None:
    top = started(user, "top", "--json", "--interval", "0.2", "--count", "5")
    user.run(["sh", "-c", f"mkdir {mountpoint}/a"])
    said, _ = top.communicate(timeout=limit(30))
    assert top.returncode == 0
    lists = [json.loads(line) for line in said.splitlines()]
    assert len(lists) == 5
    mine = [one for found in lists for one in found if one["union"] == str(mountpoint)]
    assert len(mine) == 5
    assert sum(one["messages"].get("MKDIR", 0) for one in mine) <= 1
    shown = user.unionfs("top", "--interval", "0.1", "--count", "1").stdout
    assert str(mountpoint) in shown
    assert "MESSAGES/S" in shown


@as_ordinary_user
def test_what_is_no_union_is_refused(user: User, scratch: Path) -> None:
    (scratch / "plain").mkdir()
    user.own(scratch)
    for words, why in (
        (["watch", scratch / "plain"], "no union is mounted there"),
        (["watch", "nothing-of-this-name"], "no such container"),
        (["watch", "--interval", "0", scratch], "is not a number of seconds"),
    ):
        done = user.unionfs(*words, check=False)
        assert done.returncode != 0
        assert why in done.stderr


def test_rates_are_differences_and_a_new_daemon_has_its_own_processor_time() -> None:
    def answer(pid: int, cpu_s: float, lookups: int) -> dict[str, Any]:
        copied = {"files": lookups, "directories": 1, "others": 0, "bytes": 10 * lookups, "seconds": 0.5}
        return {
            "pid": pid, "cpu_s": cpu_s, "uptime_s": float(lookups), "messages": {"LOOKUP": lookups, "READ": 3},
            "copy_ups": copied, "memory_bytes": None, "nodes": 2,
        }  # fmt: skip

    found = rates.between(answer(1, 5.0, 10), answer(1, 6.0, 14))
    assert (found.messages, found.copy_ups, found.copied, found.cpu_s) == ({"LOOKUP": 4}, 4, 40, 1.0)
    assert (found.seconds, found.memory, found.requests) == (4.0, 0, 4)
    assert rates.between(answer(1, 5.0, 10), answer(2, 0.25, 14)).cpu_s == 0.25

"""`unionfs bench copyup` on real mounts: what it measures, what it names as left out, what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.bench.conftest import bench, nothing_left
from tests.support import mountinfo
from tests.support import scratch as scratch_dirs
from tests.support.timing import limit
from tests.support.users import CHECKOUT, User
from unionfs.bench import cases, child, copyup, run_directory, systems
from unionfs.bench.child import FailedError

pytestmark = pytest.mark.usefixtures("fuse_device")

_EXPECTED = {  # what makes no sense anywhere
    "a copy has no layers",
    "tmpfs is the page cache: it cannot be cold",
    *(f"{name} has no snapshots" for name in ("ext4", "xfs", "tmpfs")),
    *(f"{name} has no reflinks" for name in ("ext4", "tmpfs")),
}


def series(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in found["series"] if one["name"] == name)


def figures(found: dict[str, Any], name: str, system: str) -> list[dict[str, Any]]:
    return [point["systems"][system] for point in series(found, name)["points"]]


def missing(found: dict[str, Any]) -> set[str]:
    """Systems and filesystems that this machine lacks, by name."""
    return {one["system"] for one in found["left_out"] if one["series"] == ""}


def test_everything_is_measured_or_named(whole_run: dict[str, Any]) -> None:
    found = whole_run
    unexpected = [
        one
        for one in found["left_out"]
        if one["why"] not in _EXPECTED and one["series"] and (one["system"], one["series"]) not in _KNOWN
    ]
    assert unexpected == []
    left_out = {(one["series"], one["system"]) for one in found["left_out"]}
    for one in found["series"]:
        assert one["points"], one["name"]
        for point in one["points"]:
            for system in found["systems"]:
                where = f"{one['name']}: {point['label'] or one['axis'] + format(point['x'], ' g')}"
                there = (one["name"], system) not in left_out and (where, system) not in left_out
                assert (system in point["systems"]) == there, (where, system)
                if there and "median" in point["systems"][system]:
                    told = point["systems"][system]
                    assert 0 < told["least"] <= told["median"] <= told["most"]
                    assert told["bytes"] >= 0
    assert set(found["systems"]) | missing(found) == set(systems.SYSTEMS)
    assert set(found["machine"]) >= {"cpu", "cpus", "memory_gib", "kernel", "utc", "load", "user"}
    assert set(found["versions"]) == set(found["systems"])


_KNOWN = {
    (systems.UNIONFS_FUSE, "trigger: setxattr"),  # EOPNOTSUPP: it does not do that through a union
}


@pytest.mark.parametrize("system", [systems.OURS, systems.OURS_PYFUSE3])
def test_bytes_are_counted_where_they_went(whole_run: dict[str, Any], system: str) -> None:
    filesystems = whole_run["filesystems"]
    for name in ("ext4", "tmpfs"):
        if name in filesystems:
            sizes = [point["size"] for point in series(whole_run, f"size-{name}")["points"]]
            assert [one["bytes"] for one in figures(whole_run, f"size-{name}", system)] == sizes
    for name in ("xfs", "btrfs"):
        if name in filesystems:  # what was not changed is shared with the lower
            assert figures(whole_run, f"size-{name}", system)[-1]["bytes"] <= 8192
    (sparse,) = figures(whole_run, "sparse", system)
    assert sparse["bytes"] == cases.MB
    cut = next(point for point in series(whole_run, "trigger")["points"] if point["trigger"] == cases.TRUNCATE)
    assert cut["systems"][system]["bytes"] == cut["size"] // 2


def test_the_kernel_shares_pages_and_daemons_do_not(whole_run: dict[str, Any]) -> None:
    (point,) = series(whole_run, "sharing")["points"]
    assert point["systems"][systems.OURS]["resident"] == 0
    if systems.OVERLAYFS in point["systems"]:
        assert point["systems"][systems.OVERLAYFS]["resident"] == 1


def test_rounds_are_interleaved_and_the_order_alternates(root_user: User, scratch: Path) -> None:
    args = ("--only", "links", "--systems", "ours,copy", "--on", "here", "--rounds", "3", "--max-files", "1", "--json")
    found = json.loads(bench(root_user, scratch, *args).stdout)
    there = ["ours", "copy"]
    wanted = [(number, system) for number, order in enumerate((there, there[::-1], there)) for system in order]
    assert [(ran["round"], ran["system"]) for ran in found["order"]] == wanted
    assert all(len(one["values"]) == 3 for system in there for one in figures(found, "links", system))


def test_without_root(ordinary_user: User, scratch: Path) -> None:
    ordinary_user.own(scratch)
    args = ("--only", "size-here,size-tmpfs,size-btrfs,trigger", "--on", "here,tmpfs,btrfs", "--max-size", "64k")
    found = json.loads(bench(ordinary_user, scratch, *args, "--rounds", "1", "--json").stdout)
    left_out = {(one["series"], one["system"]): one["why"] for one in found["left_out"]}
    assert left_out["", systems.OVERLAYFS] == "only root mounts it"
    assert left_out["size-btrfs", "all"] == "only root mounts loop files"
    for name in ("size-here", "trigger"):
        assert len(figures(found, name, systems.OURS)) == len(series(found, name)["points"]) > 1
    assert found["machine"]["user"] == "ordinary"


def test_a_table_for_people(root_user: User, scratch: Path) -> None:
    args = (
        "--only",
        "size-here",
        "--on",
        "here",
        "--systems",
        "ours,copy,reflink",
        "--max-size",
        "4k",
        "--rounds",
        "2",
    )
    out = bench(root_user, scratch, *args).stdout
    assert "4 kB written in the middle of a file" in out
    assert "±" in out
    assert "left out: reflink in size-here" in out


# -- bad surroundings --------------------------------------------------------------------------------------------------


@pytest.fixture
def impostors(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory before all others in PATH."""
    directory = scratch / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def run_here(where: Path, chosen: list[str], timeout_s: float = 20.0, minutes: float = 2.0) -> copyup.Result:
    run_size = cases.RunSize(sizes=[4096], filesystems=["here"], rounds=1, minutes=minutes)
    wanted = [one for one in cases.all_series(run_size) if one.name == "size-here"]
    directory = where / "run"
    directory.mkdir()
    found = copyup.run(copyup.Choice(run_size, wanted, chosen, timeout_s, os.fspath(directory)), lambda _: None)
    nothing_left(directory)
    return found


def why(found: copyup.Result, system: str) -> str:
    return next(one["why"] for one in found.left_out if one["system"] == system)


def test_a_peer_that_fails_is_named_and_the_others_go_on(impostors: Path, scratch: Path) -> None:
    executable(impostors / "fuse-overlayfs", "#!/bin/sh\necho something is wrong >&2\nexit 3\n")
    found = run_here(scratch, [systems.FUSE_OVERLAYFS, systems.COPY])
    assert why(found, systems.FUSE_OVERLAYFS) == "fuse-overlayfs ended: something is wrong"
    assert {sample["system"] for sample in found.samples} == {systems.COPY}


def test_a_peer_that_never_mounts_is_ended(impostors: Path, scratch: Path) -> None:
    executable(impostors / "fuse-overlayfs", "#!/bin/sh\nexec sleep 3600\n")
    found = run_here(scratch, [systems.FUSE_OVERLAYFS, systems.COPY], timeout_s=1.0)
    assert "has mounted nothing within 1 s" in why(found, systems.FUSE_OVERLAYFS)
    assert {sample["system"] for sample in found.samples} == {systems.COPY}


def test_a_peer_that_never_answers_is_ended(root_user: User, impostors: Path, scratch: Path) -> None:
    del root_user
    code = f"""#!{sys.executable}
import os, sys, time
sys.path.insert(0, {os.fspath(CHECKOUT)!r})
from unionfs.syscalls import mounts
fd = os.open("/dev/fuse", os.O_RDWR)
mounts.mount("hangs", sys.argv[-1], "fuse", 0, f"fd={{fd}},rootmode=40000,user_id=0,group_id=0")
time.sleep(3600)
"""
    executable(impostors / "fuse-overlayfs", code)
    found = run_here(scratch, [systems.FUSE_OVERLAYFS, systems.COPY], timeout_s=1.0)
    assert why(found, systems.FUSE_OVERLAYFS) == "did not end within 1 s"
    assert {sample["system"] for sample in found.samples} == {systems.COPY}


def test_a_child_that_hangs_is_ended() -> None:
    with pytest.raises(FailedError, match="did not end"):
        child.call(lambda: time.sleep(3600), 0.1)


def test_too_little_room_shortens_the_series(root_user: User, scratch: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=420M", "tmpfs", scratch], check=True, timeout=limit(20))
    args = ("--only", "size-here", "--on", "here", "--systems", "copy", "--rounds", "1", "--json")
    found = json.loads(bench(root_user, scratch, *args).stdout)
    assert max(point["size"] for point in series(found, "size-here")["points"]) == 16 * cases.MB
    (told,) = [one for one in found["left_out"] if one["series"] == "size-here"]
    assert told["why"].startswith("256 MB, 1 GB, 4 GB: ")
    assert "are needed on here, there is room for" in told["why"]


def test_no_room_at_all_is_said(root_user: User, scratch: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", scratch], check=True, timeout=limit(20))
    args = ("--only", "size-here", "--on", "here", "--systems", "copy", "--rounds", "1", "--json")
    done = bench(root_user, scratch, *args, check=False)
    assert done.returncode == 1
    assert "unionfs: bench failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_time_budget_ends_a_run(scratch: Path) -> None:
    found = run_here(scratch, [systems.COPY], minutes=0)
    assert found.samples == []
    assert "is used up" in why(found, "all")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_stays_after(root_user: User, scratch: Path, number: int) -> None:
    with _running(root_user, scratch) as running:
        running.send_signal(number)
        assert running.wait(limit(60)) == 130
        _wait_until_gone(scratch)
    nothing_left(scratch)


def test_a_hangup_that_is_ignored_does_not_end_it(root_user: User, scratch: Path) -> None:
    """`nohup unionfs bench`."""
    with _running(root_user, scratch, "nohup") as running:
        running.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(0.5)
        running.send_signal(signal.SIGTERM)
        assert running.wait(limit(60)) == 130
        _wait_until_gone(scratch)
    nothing_left(scratch)


def test_a_killed_run_is_swept_by_the_next(root_user: User, scratch: Path) -> None:
    with _running(root_user, scratch) as running:
        running.kill()
        running.wait(limit(60))
        _wait_until_gone(scratch)
    assert [mount for mount in mountinfo.mounts() if scratch in mount.mountpoint.parents] == []
    (base,) = scratch.iterdir()
    assert list(base.iterdir()) != []
    assert len(run_directory.sweep(base)) == 1
    assert list(base.iterdir()) == []


def test_a_worker_that_is_killed_is_no_result(root_user: User, scratch: Path) -> None:
    with _running(root_user, scratch) as running:
        (worker,) = map(int, Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split())
        os.kill(worker, signal.SIGKILL)
        out, err = running.communicate(timeout=limit(60))
        _wait_until_gone(scratch)
    assert running.returncode == 1
    assert out == ""
    assert "unionfs: bench failed: the worker process died" in err
    nothing_left(scratch)


def _running(user: User, where: Path, *before: str) -> subprocess.Popen[str]:
    """A run that has mounted something by now."""
    args = ["--only", "size-ext4,size-here", "--on", "ext4,here", "--systems", "ours", "--rounds", "1000"]
    running = user.popen([*before, *user.unionfs_cmd, "bench", "copyup", "--dir", where, "--max-size", "64k", *args])
    deadline = time.monotonic() + limit(60)
    while not any("merged" in line for line in scratch_dirs.processes_below(where).values()):
        assert time.monotonic() < deadline, "no daemon was started"
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    return running


def _wait_until_gone(where: Path) -> None:
    """The kernel ends a killed process's children and namespaces a moment after it."""
    deadline = time.monotonic() + limit(30)
    while scratch_dirs.processes_below(where):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_runs_leave_each_other_alone(scratch: Path) -> None:
    with run_directory.run_directory(scratch) as one:
        with run_directory.run_directory(scratch) as other:
            assert one.is_dir()
            assert stat.S_IMODE(other.stat().st_mode) == 0o755
        assert one.is_dir()
    assert not one.exists()


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--only", "nothing"], "unknown series: nothing"),
        (["--systems", "zfs"], "unknown system: zfs"),
        (["--on", "zfs"], "unknown filesystem: zfs"),
        (["--max-size", "large"], "--max-size"),
        (["--rounds", "0"], "--rounds"),
        (["--minutes", "0"], "--minutes"),
        (["--timeout", "inf"], "--timeout"),
    ],
)
def test_nonsense_is_refused(user: User, args: list[str], said: str) -> None:
    done = user.unionfs("bench", "copyup", *args, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_what_cannot_be_written_is_said_before_anything_is_measured(user: User, scratch: Path) -> None:
    user.own(scratch)
    (scratch / "README.md").write_text("no markers")
    for flag, path in (
        ("--report", "/proc/page.html"),
        ("--plots", "/proc/plots"),
        ("--markdown", scratch / "README.md"),
    ):
        done = user.unionfs("bench", "copyup", "--dir", scratch / "nowhere", flag, path, check=False)
        assert done.returncode == 1
        assert f"failed: {path}: " in done.stderr
        assert not (scratch / "nowhere").exists()


def test_a_directory_that_mount_options_cannot_hold(user: User, scratch: Path) -> None:
    done = user.unionfs("bench", "copyup", "--dir", f"{scratch}/a,b", check=False)
    assert done.returncode == 1
    assert "mount options cannot hold a comma" in done.stderr


def test_a_directory_that_is_not_there(user: User) -> None:
    done = user.unionfs("bench", "copyup", "--dir", "/proc/nowhere", check=False)
    assert done.returncode == 1
    assert "unionfs: bench failed: /proc/nowhere" in done.stderr

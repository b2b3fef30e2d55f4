"""Benchmarks run at their smallest, on real mounts, so that none can rot; the suite does what its tables claim.

They take turns (tests.support.share).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_unpack, plots, report, session, suite
from benchmarks.materials import Materials
from benchmarks.workload import Context, Scale
from tests.support import mountinfo, process, share, tiny
from tests.support.podmans import need_podman
from tests.support.timing import limit
from tests.support.users import CHECKOUT, User
from unionfs.bench import systems
from unionfs.bench.child import FailedError
from unionfs.syscalls.mountinfo import mounts as mounts_of

_TINY = 0.01
_TIMEOUT_S = 200


def _argv(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.suite", "--scale", f"{_TINY}", *map(str, args)]


def _env(scratch: Path) -> dict[str, str]:
    """Sessions and materials of the run below `scratch`, where everything that is left behind is seen."""
    (scratch / "runs").mkdir()
    return {
        **os.environ,
        "UNIONFS_BENCH_DIR": os.fspath(scratch / "runs"),
        "UNIONFS_BENCH_CACHE": os.fspath(scratch / "cache"),
    }


def _suite(scratch: Path, *args: str) -> dict[str, Any]:
    """What a tiny run wrote; nothing may be left of it."""
    written = scratch / "found.json"
    process.run(_argv("--json", written, *args), cwd=CHECKOUT, env=_env(scratch), timeout_s=_TIMEOUT_S)
    _nothing_left(scratch)
    found: dict[str, Any] = json.loads(written.read_text())
    return found


def _nothing_left(scratch: Path) -> None:
    assert list((scratch / "runs").iterdir()) == []
    assert [mount for mount in mountinfo.mounts() if scratch in mount.mountpoint.parents] == []


def test_the_suite_knows_every_file() -> None:
    assert sorted(suite.FILES + suite.ALONE) == sorted(
        path.stem[6:] for path in (CHECKOUT / "benchmarks").glob("bench_*.py")
    )


@pytest.mark.parametrize("name", share.of(suite.FILES))
def test_it_runs_on_every_system(name: str, scratch: Path, fuse_device: Path) -> None:
    found = _suite(scratch, "--only", name, "--rounds", "1", "--pyfuse3", "--passthrough", "--no-keeper")
    unexpected = [one for one in found["left_out"] if one["why"] not in _EXPECTED]
    assert unexpected == []
    left_out = {(one["workload"], one["system"]) for one in found["left_out"]}
    for workload in suite.all_workloads():
        if workload.name.partition("-")[0] != name or (workload.name, "all") in left_out:
            continue
        named = [phase.name for phase in workload.phases if phase.name]
        rows = [row for row in found["rows"] if row["workload"] == workload.name]
        assert [row["row"] for row in rows] == named
        for row in rows:
            wanted = [
                system
                for system in suite.SYSTEMS
                if ("", system) not in left_out and (workload.name, system) not in left_out
            ]
            assert list(row["systems"]) == wanted
            for system, figures in row["systems"].items():
                assert figures["least"] <= figures["median"] <= figures["most"]
                assert figures["processor_s"] >= 0
                assert ("daemon_s" in figures) == (system not in (systems.NATIVE, systems.OVERLAYFS))
            assert "messages" in row["systems"][systems.OURS]


_EXPECTED = {
    "only root of the machine has passthrough, since Linux 6.9",
    "fuse-overlayfs is not installed",
    "fio is not installed",
    "only root mounts it",
    "this kernel has no overlayfs",
    *(why for workload in suite.all_workloads() for why in workload.without.values()),
}


def test_hogs_use_processors_and_end() -> None:
    before = _children()
    with suite.hogs(2):
        added = _children() - before
        assert len(added) == 2
        deadline = time.monotonic() + limit(10)
        while {Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in added} != {"R"}:
            assert time.monotonic() < deadline  # just forked, one may wait for a page
    assert not _children() & added


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_unpacking_beside_tar(scratch: Path) -> None:
    argv = [sys.executable, "-m", "benchmarks.bench_unpack", "--scale", f"{_TINY}", "--rounds", "1"]
    told = process.run(argv, cwd=CHECKOUT, env=_env(scratch), timeout_s=_TIMEOUT_S).stdout
    found = [json.loads(line) for line in told.splitlines()]
    assert {one["shape"] for one in found} == set(bench_unpack.SHAPES)
    assert all(one["ours_s"] > 0 and one["tar_s"] > 0 and 0 < one["memory_mb"] < 100 for one in found)
    _nothing_left(scratch)


def test_podman_jobs_and_our_own_commands(scratch: Path, fuse_device: Path) -> None:
    need_podman()
    argv = [sys.executable, "-m", "benchmarks.bench_podman", "--rounds", "1", "--jobs", "run,diff", "--json"]
    argv += ["--systems", "ours;fuse-overlayfs", "--commands=try true,--version,ps"]
    argv += ["--tar", os.fspath(tiny.make(scratch / "tiny.tar"))]
    done = process.run(argv, cwd=CHECKOUT, env=_env(scratch), timeout_s=_TIMEOUT_S)
    assert done.stderr == ""  # the output of diff is the same on both
    found = json.loads(done.stdout)
    assert {job: list(row) for job, row in found["podman"].items()} == {
        job: ["ours", "fuse-overlayfs"] for job in ("run", "diff")
    }
    assert list(found["unionfs"]) == ["try true", "--version", "ps"]
    for row in (*found["podman"]["run"].values(), *found["unionfs"].values()):
        assert row["seconds"]["median"] > 0
        assert row["processor_s"]["median"] >= 0
    _nothing_left(scratch)


def test_rounds_are_interleaved_and_the_order_alternates(scratch: Path, fuse_device: Path) -> None:
    found = _suite(scratch, "--only", "find", "--rounds", "3", "--systems", f"{systems.OURS},{systems.NATIVE}")
    there = [systems.OURS, systems.NATIVE]
    wanted = [(number, system) for number, order in enumerate((there, there[::-1], there)) for system in order]
    assert [(ran["round"], ran["system"]) for ran in found["order"]] == wanted
    assert all(len(row["systems"][system]["values"]) == 3 for row in found["rows"] for system in there)
    assert set(found["machine"]) >= {"cpu", "cpus", "memory_gib", "kernel", "filesystem", "utc"}
    assert set(found["versions"]) == {*there, "python"}


def _run(scratch: Path, *chosen: str, only: str = "find") -> suite.Result:
    """A run in this process."""
    workloads = [one for one in suite.all_workloads() if one.name == only]
    choice = suite.Choice(workloads, chosen, 2, Scale(_TINY), Materials(scratch / "cache", small=True))
    run = scratch / "run"
    run.mkdir()
    return suite.run(choice, run, lambda _: None)


def test_a_missing_peer_is_named_and_left_out(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unionfs.bench.systems.shutil.which", lambda _: None)
    result = _run(scratch, systems.FUSE_OVERLAYFS, systems.NATIVE)
    why = "fuse-overlayfs is not installed"
    assert result.left_out == [{"workload": "", "system": systems.FUSE_OVERLAYFS, "why": why}]
    assert {key[2] for key in result.samples} == {systems.NATIVE}


def test_a_system_that_fails_is_named_and_the_others_go_on(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unionfs.bench.systems._mount_argv", lambda *_: ["false"])
    result = _run(scratch, systems.OURS, systems.NATIVE)
    assert [(one["workload"], one["system"]) for one in result.left_out] == [("find", systems.OURS)]
    assert [len(samples) for samples in result.samples.values()] == [2, 2, 2]


def test_what_hangs_is_ended(scratch: Path) -> None:
    def hang(context: Context) -> None:
        time.sleep(3600)

    context = Context(scratch, scratch, Materials(scratch, small=True), Scale(_TINY))
    with pytest.raises(FailedError, match="did not end"):
        session.in_child(hang, context, 0.2)


def test_ctrl_c_leaves_nothing(scratch: Path, fuse_device: Path, root_user: User) -> None:
    env = _env(scratch)
    null = subprocess.DEVNULL
    argv = _argv("--only", "find", "--rounds", "1000", "--systems", systems.OURS)
    with subprocess.Popen(argv, cwd=CHECKOUT, env=env, stdout=null, stderr=null) as running:
        deadline = time.monotonic() + limit(60)
        while not any(mount.mountpoint.startswith(f"{scratch}/") for mount in mounts_of(running.pid)):
            assert time.monotonic() < deadline, "nothing was mounted"
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=limit(60)) == 130
    _nothing_left(scratch)


def test_pictures_and_the_table_in_a_file(scratch: Path, fuse_device: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra `bench`)")
    page = scratch / "README.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    args = [
        "--only",
        "find,layers",
        "--rounds",
        "1",
        "--plots",
        os.fspath(scratch / "plots"),
        "--markdown",
        os.fspath(page),
    ]
    _suite(scratch, *args)
    made = {path.name for path in (scratch / "plots").iterdir() if path.stat().st_size > 1000}
    assert made == {f"{name}.{suffix}" for name in _pictures() for suffix in ("png", "svg")}
    written = page.read_text()
    assert written.startswith(f"before\n{report.BEGIN}\n")
    assert written.endswith(f"{report.END}\nafter\n")
    assert "| find, cold |" in written
    assert "\nold\n" not in written


def _pictures() -> set[str]:
    peers = [peer for peer in (systems.FUSE_OVERLAYFS, systems.OVERLAYFS) if systems.why_missing(peer) is None]
    return {"time", "operation", "layers", *(["ratios"] if peers else [])}


def test_every_system_has_a_colour() -> None:
    assert set(plots.COLOURS) == set(suite.SYSTEMS)


def test_the_readme_has_the_markers() -> None:
    text = (CHECKOUT / "benchmarks" / "README.md").read_text()
    assert text.index(report.BEGIN) < text.index(report.END)

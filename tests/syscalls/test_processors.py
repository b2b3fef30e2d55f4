"""Processors: what a quota leaves of them, and whether one is to spare while others compute."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from unionfs.syscalls import processors

ALL = len(os.sched_getaffinity(0))


def written(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def ours(tmp_path: Path, membership: str) -> float:
    written(tmp_path / "membership", membership)
    return processors.usable(tmp_path / "membership", tmp_path)


@pytest.mark.parametrize("place", ["", "unified"])
def test_a_quota_of_version_2(tmp_path: Path, place: str) -> None:
    written(tmp_path / place / "some/where/cpu.max", "25000 100000\n")
    assert ours(tmp_path, "0::/some/where\n") == 0.25


def test_a_quota_further_up(tmp_path: Path) -> None:
    written(tmp_path / "some/cpu.max", "50000 100000\n")
    written(tmp_path / "some/where/cpu.max", "max 100000\n")
    assert ours(tmp_path, "3:memory:/\n0::/some/where\n") == 0.5


@pytest.mark.parametrize("place", ["cpu,cpuacct", "cpu"])
def test_a_quota_of_version_1(tmp_path: Path, place: str) -> None:
    written(tmp_path / place / "x/cpu.cfs_quota_us", "75000\n")
    written(tmp_path / place / "x/cpu.cfs_period_us", "100000\n")
    assert ours(tmp_path, "4:cpu,cpuacct:/x\n1:memory:/y\n") == 0.75


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    """Without a namespace of its own, the path that it is told does not exist there."""
    written(tmp_path / "cpu.max", "10000 100000\n")
    assert ours(tmp_path, "0::/docker/0123\n") == 0.1


@pytest.mark.parametrize(
    "membership",
    [
        "",
        "0::/\n",
        "0::/gone\n",
        "4:cpu:/none\n",
        "0::/../..\n",
        "1:name=systemd:/a:b\n",
        "0::/bad\n",
        "0::/zero\n",
        "nonsense\n",
    ],
)
def test_what_cannot_be_read_does_not_count(tmp_path: Path, membership: str) -> None:
    written(tmp_path / "cpu/none/cpu.cfs_quota_us", "-1\n")
    written(tmp_path / "cpu/none/cpu.cfs_period_us", "100000\n")
    written(tmp_path / "bad/cpu.max", "nonsense\n")
    written(tmp_path / "zero/cpu.max", "0 0\n")
    assert ours(tmp_path, membership) == ALL


def test_names_with_all_kinds_of_separators(tmp_path: Path) -> None:
    written(tmp_path / "a\x0b\u2028b/cpu.max", "20000 100000\n")
    assert ours(tmp_path, "3:memory:/x\x0cy\n0::/a\x0b\u2028b\n") == 0.2


def test_more_than_there_are(tmp_path: Path) -> None:
    written(tmp_path / "cpu.max", f"{ALL * 200000} 100000\n")
    assert ours(tmp_path, "0::/\n") == ALL
    assert processors.usable(tmp_path / "no such file", tmp_path) == ALL


@contextmanager
def computing() -> Iterator[None]:
    """One program that computes and does nothing else."""
    program = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
    try:
        assert program.stdout is not None
        program.stdout.readline()
        yield
    finally:
        program.kill()
        program.communicate()


def test_no_processor_is_to_spare_while_others_use_them_all() -> None:
    spare = processors.SpareProcessor()
    with ExitStack() as stack:
        for _ in range(ALL):
            stack.enter_context(computing())
        assert not any(spare.is_available() for _ in range(100))
    spare.close()


@pytest.mark.skipif(ALL < 2, reason="a single processor is never to spare")
@pytest.mark.parametrize(("running", "is_there"), [(1, True), (ALL, True), (ALL + 1, False)])
def test_one_is_to_spare_while_no_more_run_than_there_are(running: int, is_there: bool, tmp_path: Path) -> None:
    """The figure is a file's: how busy this machine is does not matter."""
    (tmp_path / "loadavg").write_text(f"0.07 0.25 1.03 {running}/345 6789\n")
    spare = processors.SpareProcessor(str(tmp_path / "loadavg"))
    assert spare.is_available() == is_there
    spare.close()


def test_one_processor_is_never_to_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "usable", lambda: 1.5)
    spare = processors.SpareProcessor()
    assert not any(spare.is_available() for _ in range(10))
    spare.close()


def test_few_descriptors_are_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (36, 1024))
    spare = processors.SpareProcessor()
    assert set(os.listdir("/proc/self/fd")) == before
    spare.is_available()
    spare.close()


@pytest.mark.skipif(ALL < 2, reason="a single processor is never to spare")
def test_without_the_figure_one_is_to_spare() -> None:
    """As it is where /proc is not mounted."""
    spare = processors.SpareProcessor()
    spare.close()
    assert spare.is_available()

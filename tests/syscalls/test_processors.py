"""Processors: whether one may be kept busy, and who else wants it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.support.process import run
from unionfs.syscalls import processors


def written(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def is_unlimited(tmp_path: Path, membership: str) -> bool:
    written(tmp_path / "membership", membership)
    return processors.is_unlimited(str(tmp_path / "membership"), str(tmp_path))


@pytest.fixture(autouse=True)
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were four processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})


@pytest.mark.parametrize("place", ["", "unified"])
def test_a_quota_of_version_2(tmp_path: Path, place: str) -> None:
    written(tmp_path / place / "some/where/cpu.max", "25000 100000\n")
    assert not is_unlimited(tmp_path, "0::/some/where\n")


def test_a_quota_further_up(tmp_path: Path) -> None:
    written(tmp_path / "some/cpu.max", "50000 100000\n")
    written(tmp_path / "some/where/cpu.max", "max 100000\n")
    assert not is_unlimited(tmp_path, "3:memory:/\n0::/some/where\n")


@pytest.mark.parametrize("place", ["cpu,cpuacct", "cpu"])
def test_a_quota_of_version_1(tmp_path: Path, place: str) -> None:
    written(tmp_path / place / "x/cpu.cfs_quota_us", "75000\n")
    written(tmp_path / place / "x/cpu.cfs_period_us", "100000\n")
    assert not is_unlimited(tmp_path, "4:cpu,cpuacct:/x\n1:memory:/y\n")


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    """Without a namespace of its own, the path that it is told does not exist there."""
    written(tmp_path / "cpu.max", "10000 100000\n")
    assert not is_unlimited(tmp_path, "0::/docker/0123\n")


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
    assert is_unlimited(tmp_path, membership)


def test_names_with_all_kinds_of_separators(tmp_path: Path) -> None:
    written(tmp_path / "a\x0b\u2028b/cpu.max", "20000 100000\n")
    assert not is_unlimited(tmp_path, "3:memory:/x\x0cy\n0::/a\x0b\u2028b\n")


def test_a_large_quota_is_a_quota(tmp_path: Path) -> None:
    written(tmp_path / "cpu.max", "12800000 100000\n")
    assert not is_unlimited(tmp_path, "0::/\n")


def test_without_cgroups_there_is_no_quota(tmp_path: Path) -> None:
    assert processors.is_unlimited(str(tmp_path / "no such file"), str(tmp_path))


def test_a_single_processor_is_not_kept_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert not is_unlimited(tmp_path, "0::/\n")


_COUNT = """
import os, subprocess, sys
from unionfs.syscalls.processors import preemptions
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
other = subprocess.Popen([sys.executable, "-c", "print(flush=True)\\nwhile True: pass"], stdout=subprocess.PIPE)
other.stdout.readline()
before = preemptions()
for _ in range(50):
    os.sched_yield()
print(preemptions() - before)
other.kill()
other.communicate()
"""


def test_a_process_that_yields_is_preempted() -> None:
    assert int(run([sys.executable, "-c", _COUNT]).stdout) >= 10

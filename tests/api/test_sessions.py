"""`unionfs.Session`: what a command inherits from the program that runs it, and how the program ends it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import unionfs
from tests.support.timing import limit
from unionfs.api import sessions

pytestmark = pytest.mark.usefixtures("fuse_device")


def test_a_command_of_a_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if tmp_path.stat().st_dev != Path("/").stat().st_dev:
        pytest.skip("the tests' directory is on another filesystem than /")
    (tmp_path / "json.py").write_text("raise SystemExit('a module of the working directory was imported')")
    session = unionfs.Session("s", root=tmp_path / "root")
    done = session.run(["printf", r"\377"], cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\udcff", "")
    monkeypatch.setattr(sessions, "_ENDING_S", 0.5)
    with pytest.raises(subprocess.TimeoutExpired):
        session.run(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"], timeout=limit(3))
    assert session.changes() == []
    session.drop()

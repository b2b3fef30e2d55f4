"""`make demo` does what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support import process
from tests.support.users import CHECKOUT


@pytest.mark.runs_as("ordinary")
def test_every_claim_of_the_demo_holds(fuse_device: Path, debian_tar: Path) -> None:
    told = process.run([sys.executable, "-m", "tests.demo"], cwd=CHECKOUT, timeout_s=280).stdout
    assert "hello from Debian" in told
    assert "A /home/alice\n" in told
    assert told.count("  unchanged\n") == 2
    assert "CHANGED" not in told
    assert told.endswith("The machine is untouched. That was all of it.\n")

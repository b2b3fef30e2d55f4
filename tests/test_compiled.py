"""Compiled code runs when it is up to date, and never when a source has changed since."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import process
from tests.support.users import CHECKOUT
from unionfs import compiled


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of this one, with its compiled modules."""
    if os.environ.get(compiled.PURE):
        pytest.skip(f"{compiled.PURE} is set: nothing is compiled")
    assert (CHECKOUT / compiled.PLACE).is_dir(), "the hot modules are not compiled: .ci/setup says why"
    shutil.copytree(CHECKOUT / "unionfs", tmp_path / "unionfs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CHECKOUT / compiled.PLACE, tmp_path / compiled.PLACE)
    return tmp_path


def _run(checkout: Path, code: str, **env: str) -> subprocess.CompletedProcess[str]:
    wanted = {name: value for name, value in os.environ.items() if name != compiled.PURE} | env
    return process.run([sys.executable, "-c", code], cwd=checkout, env=wanted)


_WHICH = "from unionfs import compiled; compiled.prefer(); import unionfs.core.node as n; print(n.__file__)"
_WORDS = "from unionfs import compiled; compiled.prefer(); print(compiled.in_words())"


def test_what_is_up_to_date_runs_compiled(checkout: Path) -> None:
    assert _run(checkout, _WHICH).stdout.startswith(str(checkout / compiled.PLACE))
    assert _run(checkout, _WORDS).stdout == "compiled\n"


def test_a_changed_source_takes_effect(checkout: Path) -> None:
    with (checkout / "unionfs/core/branch.py").open("a") as source:
        source.write("\nCHANGED = 1\n")
    assert _run(checkout, _WHICH).stdout == f"{checkout}/unionfs/core/node.py\n"
    assert _run(checkout, "import unionfs.core.branch as b; print(b.CHANGED)").stdout == "1\n"
    assert _run(checkout, _WORDS).stdout == "Python (sources have changed since they were compiled)\n"


def test_so_does_one_that_has_gone(checkout: Path) -> None:
    (checkout / "unionfs/core/acl.py").unlink()
    assert _run(checkout, _WORDS).stdout == "Python (sources have changed since they were compiled)\n"


def test_another_pythons_modules_are_left_alone(checkout: Path) -> None:
    stamp = checkout / compiled.PLACE / compiled.STAMP
    stamp.write_text(".cpython-309-x86_64-linux-gnu.so" + stamp.read_text()[stamp.read_text().index("\n") :])
    assert _run(checkout, _WORDS).stdout == "Python (compiled for another Python)\n"


def test_the_environment_can_ask_for_python(checkout: Path) -> None:
    assert _run(checkout, _WHICH, **{compiled.PURE: "1"}).stdout == f"{checkout}/unionfs/core/node.py\n"


def test_only_importing_the_package_is_python(checkout: Path) -> None:
    """As the tests of the core do it, which look into the modules and replace parts of them."""
    assert _run(checkout, "import unionfs.core.node as n; print(n.__file__)").stdout.endswith("node.py\n")

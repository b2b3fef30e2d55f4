"""Compiled code runs when it was made of the sources that are there, and never when one has changed since."""

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
    """A copy of this one, with its compiled modules. All its times are new, as after `cp -r` or a clone of a cache."""
    if os.environ.get(compiled.PURE):
        pytest.skip(f"{compiled.PURE} is set: nothing is compiled")
    assert (CHECKOUT / compiled.COMPILED_DIR).is_dir(), "the hot modules are not compiled: .ci/setup says why"
    for directory in ("unionfs", compiled.COMPILED_DIR, ".build"):
        shutil.copytree(
            CHECKOUT / directory,
            tmp_path / directory,
            ignore=shutil.ignore_patterns("__pycache__"),
            copy_function=shutil.copyfile,
        )
    return tmp_path


def _run(checkout: Path, code: str, **env: str) -> subprocess.CompletedProcess[str]:
    wanted = {name: value for name, value in os.environ.items() if name != compiled.PURE} | env
    return process.run([sys.executable, "-c", code], cwd=checkout, env=wanted)


_WHICH = "from unionfs import compiled; compiled.use_compiled(); import unionfs.core.node as n; print(n.__file__)"
_WORDS = "from unionfs import compiled; compiled.use_compiled(); print(compiled.code_in_use())"
_CHANGED = "Python (unionfs/core/branch.py changed since it was compiled: run .ci/setup)\n"


def test_a_copy_with_other_times_runs_compiled(checkout: Path) -> None:
    name = "unionfs/core/branch.py"
    assert (checkout / name).stat().st_mtime_ns != (CHECKOUT / name).stat().st_mtime_ns
    assert _run(checkout, _WHICH).stdout.startswith(str(checkout / compiled.COMPILED_DIR))
    assert _run(checkout, _WORDS).stdout == "compiled\n"


def test_a_copy_with_mtimes_in_whole_seconds_runs_compiled(checkout: Path) -> None:
    for source in (checkout / "unionfs").rglob("*.py"):
        seconds = int((CHECKOUT / source.relative_to(checkout)).stat().st_mtime)
        os.utime(source, (seconds, seconds))
    assert _run(checkout, _WORDS).stdout == "compiled\n"


def test_a_changed_source_takes_effect(checkout: Path) -> None:
    with (checkout / "unionfs/core/branch.py").open("a") as source:
        source.write("\nCHANGED = 1\n")
    assert _run(checkout, _WHICH).stdout == f"{checkout}/unionfs/core/node.py\n"
    assert _run(checkout, "import unionfs.core.branch as b; print(b.CHANGED)").stdout == "1\n"
    assert _run(checkout, _WORDS).stdout == _CHANGED


def test_a_changed_byte_takes_effect_though_size_and_mtime_are_as_before(checkout: Path) -> None:
    """The stamp has the times of this copy, so that only the ctime can tell."""
    stamp_here = (
        "import sys; from pathlib import Path; from unionfs import compiled as c; stamp = Path(sys.argv[1]);"
        "made, by, *lines = stamp.read_text().splitlines();"
        "stamp.write_text('\\n'.join([made, by, *(c.stamp_line(line.split('\\t')[2]) for line in lines)]))"
    )
    process.run([sys.executable, "-c", stamp_here, f"{compiled.COMPILED_DIR}/{compiled.STAMP}"], cwd=checkout)
    source = checkout / "unionfs/core/branch.py"
    before = source.stat()
    content = bytearray(source.read_bytes())
    content[content.index(b"from __future__") - 3] ^= 1  # within the docstring
    with source.open("r+b") as file:
        file.write(content)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (source.stat().st_size, source.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert _run(checkout, _WORDS).stdout == _CHANGED


def test_without_a_source_python_runs(checkout: Path) -> None:
    (checkout / "unionfs/core/branch.py").unlink()
    assert _run(checkout, _WORDS).stdout == _CHANGED


def test_several_changed_sources_are_counted(checkout: Path) -> None:
    for name in ("branch", "node", "names"):
        (checkout / f"unionfs/core/{name}.py").write_bytes(b"")
    said = "Python (unionfs/core/branch.py and 2 more changed since it was compiled: run .ci/setup)\n"
    assert _run(checkout, "from unionfs import compiled as c; c.use_compiled(); print(c.code_in_use())").stdout == said


def test_another_pythons_modules_are_left_alone(checkout: Path) -> None:
    stamp = checkout / compiled.COMPILED_DIR / compiled.STAMP
    stamp.write_text(".cpython-309-x86_64-linux-gnu.so" + stamp.read_text()[stamp.read_text().index("\n") :])
    assert _run(checkout, _WORDS).stdout == "Python (compiled for another Python: run .ci/setup)\n"


def test_an_incomplete_stamp_counts_as_missing(checkout: Path) -> None:
    (checkout / compiled.COMPILED_DIR / compiled.STAMP).write_text("")
    assert _run(checkout, _WORDS).stdout == "Python (not compiled: run .ci/setup)\n"


def test_the_environment_can_ask_for_python(checkout: Path) -> None:
    assert _run(checkout, _WHICH, **{compiled.PURE: "1"}).stdout == f"{checkout}/unionfs/core/node.py\n"
    assert _run(checkout, _WORDS, **{compiled.PURE: "1"}).stdout == f"Python ({compiled.PURE} is set)\n"


def test_only_importing_the_package_is_python(checkout: Path) -> None:
    """As the tests of the core do it, which look into the modules and replace parts of them."""
    assert _run(checkout, "import unionfs.core.node as n; print(n.__file__)").stdout.endswith("node.py\n")

"""docs/library.md: each block runs, in the order of the page, and passes a user's mypy --strict."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.api.test_layers import layout
from tests.core.trees import tree

_ROOT = Path(__file__).resolve().parents[2]
_BLOCKS = re.findall(r"```python\n(.*?)```", (_ROOT / "docs" / "library.md").read_text(), re.DOTALL)


def test_every_block_runs(scratch: Path, fuse_device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del fuse_device
    tree(scratch / "top", "etc/hosts=top")
    tree(scratch / "bottom", "etc/motd=welcome usr/bin/tool=x")
    for name in ("changes", "merged"):
        (scratch / name).mkdir()
    with tarfile.open(scratch / "image.tar", "w") as tar:
        tar.add(layout(scratch / "layout", {"etc/motd": b"hello"}), ".")
    monkeypatch.chdir(scratch)
    assert len(_BLOCKS) >= 4
    for number, block in enumerate(_BLOCKS):
        exec(compile(block, f"library.md, block {number}", "exec"), {"__name__": f"block{number}"})
    assert (scratch / "changes" / "etc" / "motd").read_text() == "hello\nand more\n"
    assert os.listdir(scratch / "merged") == []


def test_the_types_are_right_for_a_user(tmp_path: Path) -> None:
    for number, block in enumerate(_BLOCKS):
        (tmp_path / f"block{number}.py").write_text(block)
    (tmp_path / "user.py").write_text(
        "import io, os, layers, unionfs\n"
        "from typing import assert_type\n"
        "def use(union: unionfs.Union) -> None:\n"
        "    assert_type(union.open('a'), io.TextIOWrapper)\n"
        "    assert_type(union.open('a', 'rb'), io.BufferedReader)\n"
        "    assert_type(union.open('a', 'wb'), io.BufferedWriter)\n"
        "    assert_type(union.open('a', 'r+b'), io.BufferedRandom)\n"
        "    assert_type(union.stat(b'a'), os.stat_result)\n"
        "    assert_type(union.changes(), list[unionfs.Change])\n"
        "    assert_type(unionfs.mount([], '/mnt'), unionfs.Mounted)\n"
        "    assert_type(unionfs.Session('a').changes(), list[unionfs.SessionChange])\n"
        "    assert_type(unionfs.__version__, str)\n"
        "    assert_type(layers.open('image.tar'), layers.Image)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}/cache", "."],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": os.fspath(_ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("Success"), done.stdout + done.stderr

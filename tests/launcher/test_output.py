"""What a command prints arrives whole: at readers that stop for a while, and when the log cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.timing import limit
from tests.support.users import User
from unionfs.fuse.options import DEFAULT_TRANSPORT

pytestmark = [pytest.mark.transport(DEFAULT_TRANSPORT), pytest.mark.parametrize("user", ["root"], indirect=True)]

_COUNT = 1_000_000  # bytes; a pipe holds 65,536
_PRINTS = ("head", "-c", str(_COUNT), "/dev/zero")


def _read_late(user: User, *words: str | Path) -> tuple[int, int]:
    """Have `unionfs WORDS` write to a non-blocking pipe that is full when the reading begins: bytes, exit code."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    env = {**user.env, "PYTHONUNBUFFERED": "1"}
    filled = os.write(write_fd, bytes(1 << 20))
    program = subprocess.Popen([sys.executable, "-m", "unionfs", *words], stdout=write_fd, env=env, stdin=0)
    os.close(write_fd)
    with open(read_fd, "rb") as file:
        count = len(file.read()) - filled
    return count, program.wait(timeout=limit(60))


@pytest.mark.parametrize("flags", [("--rm",), ("--rm", "-t"), (), ("-t",)], ids=" ".join)
def test_run(user: User, debian: Path, tidy: None, flags: tuple[str, ...]) -> None:
    assert _read_late(user, "run", *flags, "--lower", debian, *_PRINTS) == (_COUNT, 0)


def test_other_verbs(user: User, debian: Path, tidy: None) -> None:
    user.run([*user.unionfs_cmd, "run", "-d", "--name", "c", "--lower", debian, "sh", "-c", "echo hello; sleep 1000"])
    try:
        assert _read_late(user, "exec", "c", *_PRINTS) == (_COUNT, 0)
        assert _read_late(user, "exec", "-t", "c", *_PRINTS) == (_COUNT, 0)
        assert _read_late(user, "logs", "c") == (6, 0)
        size, code = _read_late(user, "cp", "c:/usr/bin", "-")
        assert (size > _COUNT, size % 10240, code) == (True, 0, 0)  # whole records of a tar
        size, code = _read_late(user, "export", "c")
        assert (size > _COUNT, size % 512, code) == (True, 0, 0)
    finally:
        user.run([*user.unionfs_cmd, "rm", "-f", "c"])


def test_a_log_on_a_full_disk(user: User, debian: Path, tidy: None, scratch: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", scratch], check=True, timeout=limit(30))
    unionfs = [*user.unionfs_cmd]
    try:
        printing = f"{' '.join(_PRINTS)} | tr '\\0' x; echo end"
        root = ("--root", os.fspath(scratch))
        ended = user.run([*unionfs, "run", *root, "--name", "c", "--lower", debian, "sh", "-c", printing])
        assert ended.stdout == "x" * _COUNT + "end\n"
        gaps, *others = ended.stderr.splitlines()
        assert gaps.startswith("unionfs: warning: the log has gaps: ")
        for other in others:  # whether there is room for the record is chance; the exit code is noted in any case
            assert other == "unionfs: warning: c: cleaning up the container failed: No space left on device"
        kept = user.run([*unionfs, "logs", *root, "c"]).stdout
        assert 0 < len(kept) < _COUNT
        user.run([*unionfs, "rm", *root, "c"])
    finally:
        subprocess.run(["umount", scratch], check=True, timeout=limit(30))

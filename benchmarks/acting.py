"""Run a program, list the files of a tree: shared by several phases."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path


def program(argv: Sequence[str | os.PathLike[str]], cwd: Path, env: Mapping[str, str] | None = None) -> None:
    """Run a program to its end, and discard its output.

    Raises: subprocess.CalledProcessError.
    """
    subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
        check=True,
    )


def files_below(top: Path) -> Iterator[str]:
    """Yield the paths of all regular files, in a fixed order."""
    for directory, below, names in os.walk(top):
        below.sort()
        for name in sorted(names):
            path = f"{directory}/{name}"
            if not os.path.islink(path):
                yield path

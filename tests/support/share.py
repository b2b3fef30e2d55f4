"""Choose the part of the long series of similar cases that a run goes through: another part in each commit, in turns.

Some tests do the same in hundreds of cases, such as a crash before each step of each verb. Each run takes one case in
three (or in another number) of them. The number UNIONFS_TESTS_SHARE selects the part; it is derived from the hash of
the commit unless the environment has it. `all` selects every case: `make test-all`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final, TypeVar

from tests.support.timing import limit

VARIABLE: Final = "UNIONFS_TESTS_SHARE"
_ALL: Final = "all"
_CHECKOUT: Final = Path(__file__).resolve().parents[2]
_T = TypeVar("_T")


def _drawn() -> str:
    """A number from 0 to 65535, the same for the same commit; 0 without git."""
    command = ["git", "-c", "safe.directory=*", "-C", os.fspath(_CHECKOUT), "rev-parse", "HEAD"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=limit(60)).stdout
    except (OSError, subprocess.SubprocessError):
        return "0"
    return str(int(told[:4], 16))


_CHOSEN: Final = os.environ.get(VARIABLE) or _drawn()
os.environ[VARIABLE] = _CHOSEN  # for the workers
EVERYTHING: Final = _CHOSEN == _ALL
NUMBER: Final = 0 if EVERYTHING else int(_CHOSEN)


def has(number: int, *, one_in: int = 3) -> bool:
    """Whether this run takes the case of this number."""
    return EVERYTHING or number % one_in == NUMBER % one_in


def of(cases: Iterable[_T], *, one_in: int = 3) -> list[_T]:
    """The cases of this run."""
    return [case for number, case in enumerate(cases) if has(number, one_in=one_in)]


def told() -> str:
    """A line for the head of a run."""
    if EVERYTHING:
        return "series of like cases: every case"
    return f"series of like cases: one in three, by {VARIABLE}={NUMBER} ({VARIABLE}=all: every case)"

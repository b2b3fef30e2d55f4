"""What does it cost to work with git in a repository of 2,000 files?"""

from __future__ import annotations

import sys
from typing import Final

from benchmarks.acting import program
from benchmarks.suite import main
from benchmarks.workload import Context, Phase, Workload, debian

_FILES: Final = 2_000
_IN_A_DIRECTORY: Final = 40
_GIT: Final = ("git", "-c", "user.name=bench", "-c", "user.email=bench@example.org", "-c", "gc.auto=0")


def _git(context: Context, *args: str) -> None:
    alone = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "HOME": str(context.aside)}
    program([*_GIT, *args], context.merged / "repository", alone)


def make(context: Context) -> None:
    """Make a work tree of 2,000 files and an empty repository."""
    repository = context.merged / "repository"
    repository.mkdir()
    _write(context, "one")
    _git(context, "init", "-q", "-b", "main")


def add(context: Context) -> None:
    """`git add .` writes 2,000 objects."""
    _git(context, "add", ".")


def commit(context: Context) -> None:
    """`git commit` writes the trees."""
    _git(context, "commit", "-q", "-m", "one")


def status(context: Context) -> None:
    """`git status` compares 2,000 files with the index by their attributes."""
    _git(context, "status", "--porcelain")


def second_commit(context: Context) -> None:
    """Change every file and commit on another branch."""
    _git(context, "checkout", "-q", "-b", "other")
    _write(context, "two")
    _git(context, "commit", "-q", "-a", "-m", "two")


def checkout(context: Context) -> None:
    """`git checkout` writes every file anew."""
    _git(context, "checkout", "-q", "main")


def _write(context: Context, word: str) -> None:
    for number in range(context.scale.of(_FILES, 2)):
        directory = context.merged / "repository" / f"d{number // _IN_A_DIRECTORY}"
        directory.mkdir(exist_ok=True)
        (directory / f"file{number}").write_text(f"{word} {number}\n" * 30)


WORKLOAD = Workload(
    "git",
    "a repository of 2,000 files",
    [
        Phase("", make),
        Phase("git add", add),
        Phase("git commit", commit),
        Phase("git status, warm", status, warm=True),
        Phase("", second_commit),
        Phase("git checkout", checkout),
    ],
    debian,
    (),
)

if __name__ == "__main__":
    sys.exit(main(only=WORKLOAD))

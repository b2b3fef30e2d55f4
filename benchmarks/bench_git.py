"""What does it cost to work with git in a repository of 2,000 files?"""

from __future__ import annotations

import sys
from typing import Final

from benchmarks.acting import program
from benchmarks.suite import main
from benchmarks.workload import Phase, Site, Workload, debian

_FILES: Final = 2_000
_IN_A_DIRECTORY: Final = 40
_GIT: Final = ("git", "-c", "user.name=bench", "-c", "user.email=bench@example.org", "-c", "gc.auto=0")


def _git(site: Site, *args: str) -> None:
    alone = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "HOME": str(site.aside)}
    program([*_GIT, *args], site.merged / "repository", alone)


def make(site: Site) -> None:
    """A work tree with 2,000 files and an empty repository."""
    repository = site.merged / "repository"
    repository.mkdir()
    _write(site, "one")
    _git(site, "init", "-q", "-b", "main")


def add(site: Site) -> None:
    """`git add .`: 2,000 objects written."""
    _git(site, "add", ".")


def commit(site: Site) -> None:
    """`git commit`: the trees written."""
    _git(site, "commit", "-q", "-m", "one")


def status(site: Site) -> None:
    """`git status`: 2,000 files compared with the index by their attributes."""
    _git(site, "status", "--porcelain")


def second_commit(site: Site) -> None:
    """Every file changed, committed on another branch."""
    _git(site, "checkout", "-q", "-b", "other")
    _write(site, "two")
    _git(site, "commit", "-q", "-a", "-m", "two")


def checkout(site: Site) -> None:
    """`git checkout`: every file written anew."""
    _git(site, "checkout", "-q", "main")


def _write(site: Site, word: str) -> None:
    for number in range(site.scale.of(_FILES, 2)):
        directory = site.merged / "repository" / f"d{number // _IN_A_DIRECTORY}"
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

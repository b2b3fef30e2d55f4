"""Why a union shows at a path what it shows: which branch provides it, what hides what, by which mark.

The steps of the union's walk (`unionfs.trees.walk`) in words: at each name of the path, from the top branch down, and
for each branch the reason why the walk ends there. Knows branches and marks. Does not know mounts or containers.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from layers.entry import WORDS
from layers.safe_open import Path
from layers.tree import LayerPath, LayerTree, View
from unionfs import markers
from unionfs.trees import walk

PROVIDES: Final = "provides"  # what is at the path is this branch's
MERGES: Final = "merges"  # its directory shows, too, beneath that of another
HIDES: Final = "hides"  # it has nothing there but a mark
HIDDEN: Final = "hidden"  # it has something there that does not show
ABSENT: Final = "absent"

_DIALECTS: Final = {"aufs": "AUFS", "device": "overlayfs (0:0 device)", "xattr": "overlayfs (attribute)"}


_UNKNOWN: Final = "file of an unknown kind"


class Mark(NamedTuple):
    """A mark that bears on the path."""

    kind: str  # whiteout, opaque or redirect
    dialect: str  # in words
    path: str  # of the file or directory that carries it, in its branch


@dataclass(slots=True)
class Verdict:
    """What one branch has to do with the path."""

    branch: int  # its position, 0 on top
    directory: str
    shows: str  # PROVIDES, MERGES, HIDES, HIDDEN or ABSENT
    holds: str = ""  # the kind of what it has there; empty: nothing
    place: str = ""  # where that is in the branch, when a redirect led elsewhere
    marks: list[Mark] = field(default_factory=list)
    because: str = ""


def explain(view: View, path: Path) -> list[Verdict]:
    """A verdict for each branch, top first. Raises: OSError for what may not be read."""
    told = _Explanation(view)
    sources = told.roots()
    for depth, name in enumerate(path):
        sources = told.step(sources, name, is_last=depth == len(path) - 1)
    told.settle(path, sources)
    return told.verdicts


class _Explanation:
    def __init__(self, view: View) -> None:
        self._view: Final = view
        self._branches: Final = view.branches
        self.verdicts: Final = [Verdict(number, one.path, ABSENT) for number, one in enumerate(view.branches)]
        self._is_directory = True  # of what the walk has come to

    def roots(self) -> list[LayerPath]:
        """The roots that show, down to the first opaque one."""
        found = self._view.roots()
        for place in found:
            opaque = place.branch.scan(()).opaque
            if opaque:
                self._mark(place.branch, "opaque", opaque, (), is_directory=True)
                self._cut_below(place, f"{self._name(place.branch)} is opaque from its root on")
        return found

    def step(self, sources: Sequence[LayerPath], name: bytes, *, is_last: bool) -> list[LayerPath]:
        """What shows `name` in the directory that `sources` show."""
        found: list[LayerPath] = []
        for directory, entry, outcome, below in walk.steps(self._view, sources, name):
            path = (*directory.path, name)
            branch, who = directory.branch, self._name(directory.branch)
            if outcome == walk.WHITEOUT:
                self._mark(branch, "whiteout", entry.whiteout, path)
                self._cut(below, f"{who} has a whiteout of /{_text(path)}")
                if is_last:
                    self.verdicts[self._number(branch)].shows = HIDES
            elif outcome == walk.COVERED:
                self._because(branch, f"{self._name(found[0].branch)} has a directory there")
                self._cut(below, f"it is beneath what {who} has there")
            elif outcome == walk.FILE:
                self._is_directory = False
                self._cut(below, f"{who} has a {WORDS.get(entry.kind, _UNKNOWN)} at /{_text(path)}")
                return [LayerPath(branch, path)] if is_last else []
            elif outcome in (walk.DIRECTORY, walk.OPAQUE, walk.REDIRECTED):
                found.append(LayerPath(branch, path))
            if outcome == walk.OPAQUE:
                if entry.opaque:
                    self._mark(branch, "opaque", entry.opaque, path, is_directory=True)
                else:
                    self._mark(branch, "whiteout", entry.whiteout, path)
                self._cut(below, f"{who} has /{_text(path)} opaque")
            elif outcome == walk.REDIRECTED and entry.redirect is not None:
                self._mark(branch, "redirect", "xattr", path, is_directory=True)
                self._cut(below, f"{who} has /{_text(path)} renamed to it (redirect)")
                found += self._redirected(branch, entry.redirect, below)
        return found

    def settle(self, path: Path, sources: list[LayerPath]) -> None:
        """Say who shows what is at the path, and what the others have there that does not show."""
        for depth, source in enumerate(sources):
            verdict = self.verdicts[self._number(source.branch)]
            verdict.shows = MERGES if depth else PROVIDES
            verdict.because = ""
            verdict.holds = "directory" if self._is_directory else self._held(source.branch, source.path)
            if source.path != path:
                verdict.place = "/" + _text(source.path)
        for verdict, branch in zip(self.verdicts, self._branches, strict=True):
            if verdict.shows not in (ABSENT, HIDES) or verdict.holds:
                continue
            verdict.holds = self._held(branch, path)
            if verdict.holds and verdict.shows == ABSENT:
                verdict.shows = HIDDEN
                verdict.because = verdict.because or "a directory on the way does not show it"
            elif not verdict.holds:
                verdict.because = ""

    def _redirected(self, branch: LayerTree, redirect: bytes, siblings: Sequence[LayerPath]) -> Sequence[LayerPath]:
        if markers.redirect_components(redirect) is None:
            return self.step(siblings, redirect, is_last=False)
        return walk.redirected(self._view, siblings, redirect, self._number(branch) + 1)

    def _held(self, branch: LayerTree, path: Path) -> str:
        """The kind of what the branch alone has at a path; empty: nothing."""
        try:
            fd = branch.open_path(path)
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except OSError:
            return "something that cannot be looked at"
        try:
            st = os.fstat(fd)
        finally:
            os.close(fd)
        return "" if path and markers.is_whiteout_device(st) else _kind(st)

    def _mark(self, branch: LayerTree, kind: str, dialect: str, path: Path, *, is_directory: bool = False) -> None:
        where = path
        if dialect == "aufs":
            where = (*path, markers.OPAQUE_NAME) if is_directory else (*path[:-1], markers.WHITEOUT_PREFIX + path[-1])
        self.verdicts[self._number(branch)].marks.append(Mark(kind, _DIALECTS[dialect], "/" + _text(where)))

    def _cut(self, places: Sequence[LayerPath], why: str) -> None:
        for place in places:
            self._because(place.branch, why)

    def _cut_below(self, place: LayerPath, why: str) -> None:
        for branch in self._branches[self._number(place.branch) + 1 :]:
            self._because(branch, why)

    def _because(self, branch: LayerTree, why: str) -> None:
        verdict = self.verdicts[self._number(branch)]
        verdict.because = verdict.because or why

    def _number(self, branch: LayerTree) -> int:
        return next(number for number, one in enumerate(self._branches) if one is branch)

    def _name(self, branch: LayerTree) -> str:
        return f"branch {self._number(branch)}"


def _kind(st: os.stat_result) -> str:
    return WORDS.get(stat.S_IFMT(st.st_mode), _UNKNOWN)


def _text(path: Path) -> str:
    return os.fsdecode(b"/".join(path))

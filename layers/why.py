"""Explain a lookup in a union: which branch provides a path, which branches are hidden, and by which mark.

Follows the union's walk (`unionfs.trees.walk`) at each name of the path, from the top branch down, and records for each
branch why the walk ends there. Knows branches and marks. Does not know mounts or containers.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from layers.data_place import DataPlace, data_place
from layers.entry import WORDS
from layers.safe_open import Path
from layers.tree import LayerPath, LayerTree, MarkedView, View
from unionfs import markers
from unionfs.trees import walk

PROVIDES: Final = "provides"  # the union shows this branch's file or directory
MERGES: Final = "merges"  # its directory is merged below that of a higher branch
HIDES: Final = "hides"  # it has only a mark at the path
HIDDEN: Final = "hidden"  # it has a file or directory at the path that the union does not show
ABSENT: Final = "absent"  # it has nothing at the path

_DIALECTS: Final = {"aufs": "AUFS", "device": "overlayfs (0:0 device)", "xattr": "overlayfs (attribute)"}


_UNKNOWN: Final = "file of an unknown kind"


class Mark(NamedTuple):
    """A mark that the lookup of the path met."""

    kind: str  # whiteout, opaque or redirect
    dialect: str  # in words
    path: str  # of the file or directory that carries it, in its branch


@dataclass(slots=True)
class Verdict:
    """The part of one branch in the lookup of the path."""

    branch: int  # its position, 0 on top
    directory: str  # its host path
    shows: str  # PROVIDES, MERGES, HIDES, HIDDEN or ABSENT
    holds: str = ""  # type of its file at the path; empty: it has none
    place: str = ""  # path of that file within the branch, where a redirect changed it
    marks: list[Mark] = field(default_factory=list)
    because: str = ""  # why the union does not show its file
    data: DataPlace | None = None  # of the file that shows; None: all of its data are here
    lower: int | None = None  # then: the position of the branch that has the others; None: they are missing


def explain(view: View, path: Path) -> list[Verdict]:
    """A verdict for each branch, top first. Raises: OSError for directories that may not be read."""
    explanation = _Explanation(MarkedView(view.branches))
    sources = explanation.roots()
    for depth, name in enumerate(path):
        sources = explanation.step(sources, name, is_last=depth == len(path) - 1)
    explanation.finish(path, sources)
    return explanation.verdicts


class _Explanation:
    """The verdicts of one lookup, filled step by step."""

    def __init__(self, view: View) -> None:
        self._view: Final = view
        self._branches: Final = view.branches
        self.verdicts: Final = [Verdict(number, one.path, ABSENT) for number, one in enumerate(view.branches)]
        self._is_directory = True  # whether the walk is at a directory

    def roots(self) -> list[LayerPath]:
        """The roots of the branches that are merged: down to the first opaque one."""
        found = self._view.roots()
        for place in found:
            opaque = place.branch.scan(()).opaque
            if opaque:
                self._mark(place.branch, "opaque", opaque, (), is_directory=True)
                self._cut_below(place, f"{self._name(place.branch)} is opaque from its root on")
        return found

    def step(self, sources: Sequence[LayerPath], name: bytes, *, is_last: bool) -> list[LayerPath]:
        """Look up `name` in the directory merged from `sources`; returns the places that show it, top first."""
        found: list[LayerPath] = []
        for directory, entry, outcome, below in walk.steps(self._view, sources, name):
            path = (*directory.path, name)
            branch, label = directory.branch, self._name(directory.branch)
            if outcome == walk.WHITEOUT:
                self._mark(branch, "whiteout", entry.whiteout, path)
                self._cut(below, f"{label} has a whiteout of /{_text(path)}")
                if is_last:
                    self.verdicts[self._number(branch)].shows = HIDES
            elif outcome == walk.COVERED:
                self._because(branch, f"{self._name(found[0].branch)} has a directory there")
                self._cut(below, f"it is below a file of {label} at /{_text(path)}")
            elif outcome == walk.FILE:
                self._is_directory = False
                self._cut(below, f"{label} has a {WORDS.get(entry.kind, _UNKNOWN)} at /{_text(path)}")
                return [LayerPath(branch, path)] if is_last else []
            elif outcome in (walk.DIRECTORY, walk.OPAQUE, walk.REDIRECTED):
                found.append(LayerPath(branch, path))
            if outcome == walk.OPAQUE:
                if entry.opaque:
                    self._mark(branch, "opaque", entry.opaque, path, is_directory=True)
                else:
                    self._mark(branch, "whiteout", entry.whiteout, path)
                self._cut(below, f"{label} has an opaque directory at /{_text(path)}")
            elif outcome == walk.REDIRECTED and entry.redirect is not None:
                self._mark(branch, "redirect", "xattr", path, is_directory=True)
                self._cut(below, f"{label} has another directory renamed to /{_text(path)} (redirect)")
                found += self._redirected(branch, entry.redirect, below)
        return found

    def finish(self, path: Path, sources: list[LayerPath]) -> None:
        """Name the branches that show the path, and those that have a file there that does not show."""
        for depth, source in enumerate(sources):
            verdict = self.verdicts[self._number(source.branch)]
            verdict.shows = MERGES if depth else PROVIDES
            verdict.because = ""
            verdict.holds = "directory" if self._is_directory else self._held(source.branch, source.path)
            if verdict.shows == PROVIDES and not self._is_directory:
                verdict.data = data_place(self._view, path)
                if verdict.data is not None and verdict.data.lower is not None:
                    verdict.lower = self._number(verdict.data.lower.branch)
            if source.path != path:
                verdict.place = "/" + _text(source.path)
        for verdict, branch in zip(self.verdicts, self._branches, strict=True):
            if verdict.shows not in (ABSENT, HIDES) or verdict.holds:
                continue
            verdict.holds = self._held(branch, path)
            if verdict.holds and verdict.shows == ABSENT:
                verdict.shows = HIDDEN
                verdict.because = verdict.because or "the union does not show its directory of this branch"
            elif not verdict.holds:
                verdict.because = ""

    def _redirected(self, branch: LayerTree, redirect: bytes, siblings: Sequence[LayerPath]) -> Sequence[LayerPath]:
        if markers.redirect_components(redirect) is None:
            return self.step(siblings, redirect, is_last=False)
        return walk.redirected(self._view, siblings, redirect, self._number(branch) + 1)

    def _held(self, branch: LayerTree, path: Path) -> str:
        """The type of the file that the branch by itself has at a path; empty: none."""
        try:
            fd = branch.open_path(path)
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except OSError:
            return "an object that cannot be read"
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

"""Why a union shows at a path what it shows: which branch provides it, what hides what, by which mark.

The walk is that of `tree.View.lookup`, told instead of done: at each name of the path, from the top branch down, and
for each branch the reason why the way ends there. Knows branches and marks. Does not know mounts or containers.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from layers.entry import WORDS
from layers.safe_open import Path
from layers.tree import Branch, Place, View
from unionfs import markers

PROVIDES: Final = "provides"  # what is at the path is this branch's
MERGES: Final = "merges"  # its directory shows, too, beneath that of another
HIDES: Final = "hides"  # it has nothing there but a mark
HIDDEN: Final = "hidden"  # it has something there that does not show
ABSENT: Final = "absent"

_DIALECTS: Final = {"aufs": "AUFS", "device": "overlayfs (0:0 device)", "xattr": "overlayfs (attribute)"}


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
    walk = _Walk(view.branches)
    sources = walk.roots()
    for depth, name in enumerate(path):
        sources = walk.step(sources, name, is_last=depth == len(path) - 1)
    walk.settle(path, sources)
    return walk.verdicts


class _Walk:
    def __init__(self, branches: Sequence[Branch]) -> None:
        self._branches: Final = branches
        self.verdicts: Final = [Verdict(number, one.path, ABSENT) for number, one in enumerate(branches)]
        self._is_directory = True  # of what the walk has come to

    def roots(self) -> list[Place]:
        """The roots that show, down to the first opaque one."""
        found: list[Place] = []
        for branch in self._branches:
            found.append(Place(branch, ()))
            scan = branch.scan(())
            if scan.opaque:
                self._mark(branch, "opaque", scan.opaque, (), is_directory=True)
                self._cut_below(found[-1], f"{self._name(branch)} is opaque from its root on")
                break
        return found

    def step(self, sources: list[Place], name: bytes, *, is_last: bool) -> list[Place]:
        """What shows `name` in the directory that `sources` show."""
        found: list[Place] = []
        for depth, source in enumerate(sources):
            rest = sources[depth + 1 :]
            scan = source.branch.scan(source.path)
            st = scan.entries.get(name)
            if st is None:
                if name in scan.whiteouts:
                    self._mark(source.branch, "whiteout", scan.whiteouts[name], (*source.path, name))
                    self._cut(rest, f"{self._name(source.branch)} has a whiteout of /{_text((*source.path, name))}")
                    if is_last:
                        self.verdicts[self._number(source.branch)].shows = HIDES
                    break
                continue
            place = Place(source.branch, (*source.path, name))
            if not stat.S_ISDIR(st.st_mode):
                if found:
                    self._because(place.branch, f"{self._name(found[0].branch)} has a directory there")
                    self._cut(rest, f"it is beneath what {self._name(place.branch)} has there")
                    break
                self._is_directory = False
                self._cut(rest, f"{self._name(place.branch)} has a {_kind(st)} at /{_text(place.path)}")
                return [place] if is_last else []
            found.append(place)
            inside = place.branch.scan(place.path)
            if inside.opaque or name in scan.whiteouts:
                if inside.opaque:
                    self._mark(place.branch, "opaque", inside.opaque, place.path, is_directory=True)
                else:
                    self._mark(place.branch, "whiteout", scan.whiteouts[name], place.path)
                self._cut(rest, f"{self._name(place.branch)} has /{_text(place.path)} opaque")
                break
            if inside.redirect is not None:
                self._mark(place.branch, "redirect", "xattr", place.path, is_directory=True)
                self._cut(rest, f"{self._name(place.branch)} has /{_text(place.path)} renamed to it (redirect)")
                found += self._redirected(place, inside.redirect, rest)
                break
        return found

    def settle(self, path: Path, sources: list[Place]) -> None:
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

    def _redirected(self, place: Place, redirect: bytes, rest: list[Place]) -> list[Place]:
        components = markers.redirect_components(redirect)
        if components is None:
            return self.step(rest, redirect, is_last=False)
        beneath = View(self._branches[self._number(place.branch) + 1 :])
        node = beneath.find(components)
        return list(node.sources) if node is not None and node.is_dir else []

    def _held(self, branch: Branch, path: Path) -> str:
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

    def _mark(self, branch: Branch, kind: str, dialect: str, path: Path, *, is_directory: bool = False) -> None:
        where = path
        if dialect == "aufs":
            where = (*path, markers.OPAQUE_NAME) if is_directory else (*path[:-1], markers.WHITEOUT_PREFIX + path[-1])
        self.verdicts[self._number(branch)].marks.append(Mark(kind, _DIALECTS[dialect], "/" + _text(where)))

    def _cut(self, places: Sequence[Place], why: str) -> None:
        for place in places:
            self._because(place.branch, why)

    def _cut_below(self, place: Place, why: str) -> None:
        for branch in self._branches[self._number(place.branch) + 1 :]:
            self._because(branch, why)

    def _because(self, branch: Branch, why: str) -> None:
        verdict = self.verdicts[self._number(branch)]
        verdict.because = verdict.because or why

    def _number(self, branch: Branch) -> int:
        return next(number for number, one in enumerate(self._branches) if one is branch)

    def _name(self, branch: Branch) -> str:
        return f"branch {self._number(branch)}"


def _kind(st: os.stat_result) -> str:
    return WORDS.get(stat.S_IFMT(st.st_mode), "file of an unknown kind")


def _text(path: Path) -> str:
    return os.fsdecode(b"/".join(path))

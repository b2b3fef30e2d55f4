"""The same verbs on a Union and on a plain directory that holds the merged tree: results, errnos and trees must agree.

A failed comparison shows every step since the start in a form that can be pasted into `replay`, which is how a case
that hypothesis found becomes a regression test.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from tests.core.drivers import RENAME_EXCHANGE, RENAME_NOREPLACE, Driver
from tests.core.flatten import flatten
from tests.core.native import Native
from tests.core.snapshots import Snapshot, differences, snapshot, survey
from tests.core.stack import Stack, Whiteout
from tests.core.union_driver import UnionDriver
from unionfs.core.options import OptionError

Step = tuple[object, ...]


def steps(text: str) -> list[Step]:
    """Steps as text, separated by `;`: "rename d e; mkdir d; write e/f 0 data; exchange d e; remount"."""
    return [_step(words) for words in (part.split() for part in text.split(";")) if words]


def _step(words: list[str]) -> Step:
    verb, *args = words
    if verb in ("exchange", "noreplace"):
        return ("rename", *args, RENAME_EXCHANGE if verb == "exchange" else RENAME_NOREPLACE)
    if verb in ("write", "put", "symlink"):
        *args, last = args
        return (verb, *(int(arg) if arg.isdigit() else arg for arg in args), last.encode())
    if verb in ("chmod", "chown", "utime"):
        return (verb, args[0], *(int(arg, 8 if verb == "chmod" else 10) for arg in args[1:]))
    return (verb, *args)


class Pair:
    """`lowers` (top first) and `upper` as texts; the plain directory is their flattening."""

    def __init__(
        self,
        base: Path,
        lowers: Sequence[str],
        upper: str,
        whiteout: Whiteout = "aufs",
        *,
        caching: bool = False,
        overrides: str = "",
        keeps: bool = False,
    ) -> None:
        self.native = Native(flatten(base / "plain", [*reversed(lowers), upper]))
        self._hidden = base / "plain.hidden"
        self.stack = Stack(
            base,
            *lowers,
            upper=upper,
            whiteout=whiteout,
            caching=caching,
            overrides=overrides,
            keeps=keeps,
        )
        self.steps: list[Step] = []
        self.handles: list[tuple[int, int]] = []  # (native, union), the same index for the same open file
        self._inos: dict[int, int] = {}  # native ino -> union ino of every file that is there
        self._has_frozen = False
        self._start = f"{list(lowers)!r}, {upper!r}, {whiteout!r}, caching={caching}"
        self._start += f", overrides={overrides!r}" if overrides else ""
        self._start += ", keeps=True" if keeps else ""
        self._adopt_nlinks()
        self.check()

    @property
    def union(self) -> UnionDriver:
        return self.stack.u

    def story(self) -> str:
        """The steps so far, as a call of `replay`."""
        return f"replay(tmp_path, {self._start}, steps={self.steps!r})"

    # -- steps --

    def do(self, verb: str, *args: object) -> None:
        """Run a verb on both and compare what it answers."""
        self.steps.append((verb, *args))
        if hasattr(self, f"_{verb}"):
            getattr(self, f"_{verb}")(*args)
            return
        want = _answer(self.native, verb, args)
        got = _answer(self.union, verb, args)
        assert want == got, f"{verb}{args}: {want} natively, {got} in the union\n{self.story()}"

    def _open(self, path: bytes) -> None:
        self._opened("open", path)

    def _tmpfile(self, directory: bytes, perm: int) -> None:
        self._opened("tmpfile", directory, perm)

    def _opened(self, verb: str, *args: object) -> None:
        pair = []
        answers = []
        for driver in (self.native, self.union):
            try:
                pair.append(getattr(driver, verb)(*args))
                answers.append("")
            except OSError as exc:
                answers.append(_errno_name(exc))
        assert answers[0] == answers[1], f"{verb}{args}: {answers[0]} natively, {answers[1]}\n{self.story()}"
        if len(pair) == 2:
            self.handles.append((pair[0], pair[1]))

    def _on_handle(self, index: int, verb: str, *args: object) -> None:
        """A verb that takes a handle; the handle is given by its index among those that are open."""
        native, union = self.handles[index]
        want = _answer(self.native, verb, (native, *args))
        got = _answer(self.union, verb, (union, *args))
        assert want == got, f"{verb}{args}: {want} natively, {got} in the union\n{self.story()}"

    def _close(self, index: int) -> None:
        native, union = self.handles.pop(index)
        self.native.close(native)
        self.union.close(union)
        self._forgot()

    def _forget(self) -> None:
        self.union.forget_all()
        self._forgot()

    def _take_over(self) -> None:
        self.stack.take_over()

    def _remount(self) -> None:
        self.close_handles()
        self.stack.remount()
        self._forgot()
        self.check()

    def _freeze(self) -> None:
        """The upper becomes a lower while files are open, unless that must wait for one of them. Inode numbers and link
        counts of what is not known may change: it is in another branch."""
        try:
            self.stack.freeze()
        except OptionError as busy:
            assert busy.errno == errno.EBUSY, self.story()  # noqa: PT017 - other steps are compared
            return
        self._has_frozen = True
        self._inos = {}
        self._adopt_nlinks()
        self.check()

    def _forgot(self) -> None:
        """What was copied up before a freeze may get the number that it has in its branch now."""
        if self._has_frozen:
            self._inos = {}

    def _restack(self) -> None:
        """The upper becomes a lower, without its work directory: as when a container is committed.

        Names of a copied-up hard link that were not touched themselves are known only to the index in the work
        directory (as with overlayfs's index=on), so each is touched first. Inode numbers may change: it is another
        union.
        """
        self.close_handles()
        found = snapshot(self.native)
        indexed = any(self.stack.work.glob("index/*"))
        linked = [path for path, snap in found.items() if snap.nlink > 1 or (indexed and not stat.S_ISDIR(snap.kind))]
        for path in linked:
            for driver in (self.native, self.union):
                driver.rename(path, os.path.join(os.path.dirname(path), b"moving"))
                driver.rename(os.path.join(os.path.dirname(path), b"moving"), path)
        if linked:
            self.check()
        self.stack.restack()
        self._inos = {}
        self._adopt_nlinks()
        self.check()

    def close_handles(self) -> None:
        while self.handles:
            self._close(0)

    def _adopt_nlinks(self) -> None:
        """Give files of the plain tree links outside of it until st_nlink is as in the union.

        A file of a lower has all the links that it has there, whether other branches hide some of its names or not: in
        overlayfs as in the union (to know better would take a scan of the whole lower). From here on the number must
        follow what happens.
        """
        self._hidden.mkdir(exist_ok=True)
        for old in self._hidden.iterdir():
            old.unlink()
        want, got = snapshot(self.native), snapshot(self.union)
        found = differences(_without_nlink(want), _without_nlink(got))
        assert found == "", f"native | union\n{found}\n{self.story()}"
        for index, path in enumerate(want):
            if want[path].group == path:
                assert got[path].nlink >= want[path].nlink, f"{path!r}: st_nlink {got[path].nlink}\n{self.story()}"
                for number in range(want[path].nlink, got[path].nlink):
                    link = self._hidden / f"{index}-{number}"
                    os.link(self.native.at(path), os.fsencode(link), follow_symlinks=False)

    # -- comparing --

    def check(self) -> Snapshot:
        """The whole trees are equal, and inode numbers of what stayed have stayed."""
        want, native_inos = survey(self.native)
        got, union_inos = survey(self.union)
        assert differences(want, got) == "", f"native | union\n{differences(want, got)}\n{self.story()}"
        for index, (native, union) in enumerate(self.handles):
            one, two = self.native.fstat(native), self.union.fstat(union)
            assert _visible(one) == _visible(two), f"handle {index}: {one} | {two}\n{self.story()}"
        known, self._inos = self._inos, {}
        for path, ino in native_inos.items():
            shown = union_inos[path]
            before = known.get(ino, shown)
            assert before == shown, f"{path!r}: st_ino was {before}, is {shown}\n{self.story()}"
            self._inos[ino] = shown
        assert len(set(self._inos.values())) == len(self._inos), f"two files with one st_ino\n{self.story()}"
        return want

    def finish(self) -> None:
        """The end of every run: the same tree again after a remount, and as a lower; lowers untouched."""
        self.do("remount")
        self.do("restack")
        self.stack.finish()


def replay(
    base: Path,
    lowers: Sequence[str],
    upper: str,
    whiteout: Whiteout,
    *,
    caching: bool,
    steps: list[Step],
    overrides: str = "",
    keeps: bool = False,
) -> None:
    """Run steps that once failed."""
    pair = Pair(base, lowers, upper, whiteout, caching=caching, overrides=overrides, keeps=keeps)
    for verb, *args in steps:
        pair.do(str(verb), *args)
        pair.check()
    pair.finish()


def _without_nlink(found: Snapshot) -> Snapshot:
    return {path: snap._replace(nlink=0) for path, snap in found.items()}


def _answer(driver: Driver, verb: str, args: tuple[object, ...]) -> object:
    """What the verb returned, or the name of its errno."""
    try:
        answer = getattr(driver, verb)(*args)
    except OSError as exc:
        return _errno_name(exc)
    return _visible(answer) if verb in ("stat", "fstat") else answer


def _visible(attrs: object) -> object:
    """Of attributes, what two trees can have in common. The size of a directory is the filesystem's own affair."""
    mode, size = attrs.mode, attrs.size  # type: ignore[attr-defined]
    return mode, 0 if stat.S_ISDIR(mode) else size


def _errno_name(exc: OSError) -> str:
    assert exc.errno is not None, f"an OSError without an errno: {exc!r}"
    return errno.errorcode.get(exc.errno, os.strerror(exc.errno))

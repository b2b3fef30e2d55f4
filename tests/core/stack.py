"""Branch directories prepared as text, and the Union over them.

At the end every stack is checked: the lowers never changed, every lookup was paid back, no descriptor leaked, and
nothing was left lying in `work/`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

from tests.core.snapshots import fingerprint
from tests.core.trees import tree
from tests.core.union_driver import UnionDriver
from unionfs.core import takeover, unfinished_change
from unionfs.core.attrs import ROOT
from unionfs.core.complete import complete_upper
from unionfs.core.freeze import Freeze
from unionfs.core.kept_numbers import KeptNumbers
from unionfs.core.node_record import NodeRecord
from unionfs.core.options import Options
from unionfs.core.union import Union

Whiteout = Literal["aufs", "overlay", "fuse-overlayfs"]


class Stack:
    """Lowers (top first), an optional upper, and a driver on the Union over them."""

    def __init__(
        self,
        base: Path,
        *lowers: str,
        upper: str | None = "",
        whiteout: Whiteout = "aufs",
        caching: bool = False,
        skip_unreadable: bool = False,
        unmapped_as_root: bool = False,
        hidden: tuple[str, ...] = (),
        overrides: str = "",
        durability: str = "volatile",
        metacopy: bool = False,
        partial_from: int = 0,
        keeps: bool = False,
    ) -> None:
        """`keeps`: a record of nodes, for `take_over`."""
        self.base = base
        self.keeps = keeps
        self.caching = caching
        self.durability = durability
        self.metacopy = metacopy
        self.partial_from = partial_from
        self.lowers = [tree(base / f"lower{number}", text) for number, text in enumerate(lowers)]
        self.upper = None if upper is None else tree(base / "upper", upper)
        self.work = base / "work"
        if self.upper is not None:
            self.work.mkdir(exist_ok=True)
        self.whiteout: Whiteout = whiteout
        self.skip_unreadable = skip_unreadable
        self.unmapped_as_root = unmapped_as_root
        self.hidden = hidden
        self.overrides = overrides
        self.watch()
        self._driver: UnionDriver | None = None

    def watch(self) -> None:
        """From here on the lowers must not change. Call it again after preparing them by other means than a text."""
        self._before = [fingerprint(lower) for lower in self.lowers]

    @property
    def options(self) -> Options:
        return Options(
            lowers=tuple(str(lower) for lower in self.lowers),
            upper=None if self.upper is None else str(self.upper),
            work=None if self.upper is None else str(self.work),
            whiteout=self.whiteout,
            durability=self.durability,
            skip_unreadable=self.skip_unreadable,
            unmapped_as_root=self.unmapped_as_root,
            hidden=self.hidden,
            overrides=self.overrides,
            metacopy=self.metacopy,
            partial_from=self.partial_from,
        )

    @property
    def u(self) -> UnionDriver:
        """The driver; the Union is opened at first use."""
        if self._driver is None:
            union = Union(self.options)
            if self.keeps:
                takeover.keep_record(union, NodeRecord())
            self._driver = UnionDriver(union, caching=self.caching)
        return self._driver

    def take_over(self) -> dict[int, bool]:
        """As if the daemon had died now, and the next one continued. Returns what takeover.take_over does."""
        before = self.union
        record = before._tree.nodes.record
        assert record is not None
        given = takeover.opened(before)
        given = given.with_descriptors([os.dup(fd) for fd in given.descriptors()])
        union = Union(before.options, given)
        takeover.keep_record(union, NodeRecord(record.fd))
        unfinished_change.close(before)
        changes = takeover.take_over(union)
        self.u.union = union
        return changes

    @property
    def union(self) -> Union:
        return self.u.union

    def close(self) -> None:
        """Forget everything and close."""
        if self._driver is None:
            return
        driver, self._driver = self._driver, None
        driver.forget_all()
        assert not driver.lookups, f"handles left open: {driver.lookups}"
        driver.union.getattr(ROOT)
        driver.union.close()

    def remount(self) -> UnionDriver:
        """Close, and a new Union on the same directories."""
        self.close()
        return self.u

    def restack(self) -> UnionDriver:
        """Close, make the upper the top lower, and a new Union with an empty upper on top of it. The old work directory
        is removed: a lower is only what is in it."""
        assert self.upper is not None
        self.close()
        assert complete_upper(self.options)
        shutil.rmtree(self.work)
        lower = self.base / f"was_upper{len(self.lowers)}"
        self.upper.rename(lower)
        self.lowers.insert(0, lower)
        self._before.insert(0, fingerprint(lower))
        info = lower.stat()
        tree(self.upper, f"./:{info.st_mode & 0o7777:04o},{info.st_uid},{info.st_gid}@{_seconds(info.st_mtime_ns)}")
        for name in os.listxattr(lower):
            if not name.startswith(("trusted.overlay.", "user.overlay.", "user.unionfs.", "trusted.unionfs.")):
                os.setxattr(self.upper, name, os.getxattr(lower, name))
        self.work = self.base / f"work{len(self.lowers)}"
        self.work.mkdir()
        return self.u

    def freeze(self) -> None:
        """Make the upper a lower while the union is in use. Raises OptionError where that must wait."""
        name = f"frozen{len(self.lowers)}"
        job = Freeze(self.union, name.encode())
        try:
            job.prepare()
            job.commit()
            if self.keeps:
                numbers = KeptNumbers(self.union)
                while numbers.work():
                    pass
        finally:
            job.close()
        self.lowers.insert(0, self.base / name)
        self._before.insert(0, fingerprint(self.base / name))

    def finish(self) -> None:
        """Close, and check what must hold after anything."""
        self.close()
        assert open_below(self.base) == [], "descriptors leaked"
        for lower, before in zip(self.lowers, self._before, strict=True):
            assert fingerprint(lower) == before, f"{lower} was changed"
        if self.upper is not None:
            assert litter(self.work) == [], "left in work/"

    def abandon(self) -> None:
        """Close after a failed test, without checks that would hide its own message."""
        if self._driver is not None:
            driver, self._driver = self._driver, None
            driver.union.close()


def _seconds(ns: int) -> str:
    return f"{ns // 10**9}.{ns % 10**9:09d}"


def open_below(path: Path) -> list[str]:
    """What the descriptors of this process lead to at or below `path`."""
    with os.scandir("/proc/self/fd") as entries:
        targets = [os.readlink(entry.path) for entry in entries if os.path.lexists(entry.path)]
    return sorted(target for target in targets if Path(target).is_relative_to(path))


def staged(work: Path) -> list[str]:
    """What was built in `work/` and has no place yet."""
    return [name for name in litter(work) if os.path.basename(name).startswith("t")]


def litter(work: Path) -> list[str]:
    """What lies in `work/` that is no part of its standing furniture: staged files and orphans."""
    found = []
    for directory, _, files in os.walk(work):
        relative = Path(directory).relative_to(work)
        if {"index", "frozen"} & set(relative.parts):
            continue  # the index of copied-up hard links and the list of frozen branches are meant to stay
        found += [str(relative / name) for name in files]
    return sorted(found)

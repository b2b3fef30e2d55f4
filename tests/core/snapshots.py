"""What a tree shows, as a value that can be compared: a host directory, a Union, the same tree before and after.

Times that were taken from the clock cannot be equal in two trees; they read NOW. Times that tests set lie before 2020.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from tests.core.drivers import Driver
from tests.core.trees import MTIME_NS, Item, render
from tests.core.union_driver import UnionDriver

NOW: Final = "now"
_RECENT_NS: Final = 1_577_836_800 * 10**9  # 2020-01-01


class Snap(NamedTuple):
    """One file. `data`: content or target; `group`: the first path of its hard links; `nlink`: 0 for directories."""

    kind: int
    perm: int
    uid: int
    gid: int
    data: bytes
    rdev: int
    mtime_ns: int | str
    xattrs: tuple[tuple[bytes, bytes], ...]
    group: bytes
    nlink: int


Snapshot = dict[bytes, Snap]


def snapshot(driver: Driver, path: bytes = b"") -> Snapshot:
    """Everything under `path`, the directory itself included, by path. Checks the listing against the attributes."""
    return survey(driver, path)[0]


def survey(driver: Driver, path: bytes = b"") -> tuple[Snapshot, dict[bytes, int]]:
    """The snapshot, and the inode number of each path."""
    found: Snapshot = {}
    inos: dict[bytes, int] = {}
    with driver.at_rest():
        _visit(driver, path, found, inos)
    first: dict[int, bytes] = {}
    for name in sorted(found):
        if found[name].kind != stat.S_IFDIR:
            found[name] = found[name]._replace(group=first.setdefault(inos[name], name))
    return found, inos


def inos_of(driver: Driver) -> dict[bytes, int]:
    """The inode number of every path."""
    return survey(driver)[1]


def _visit(driver: Driver, path: bytes, found: Snapshot, inos: dict[bytes, int]) -> None:
    attrs = driver.stat(path)
    kind = stat.S_IFMT(attrs.mode)
    data = b""
    if kind == stat.S_IFREG:
        data = driver.read(path, 0, max(attrs.size, 1))
        assert len(data) == attrs.size, f"{path!r}: st_size {attrs.size}, {len(data)} bytes read"
    elif kind == stat.S_IFLNK:
        data = driver.readlink(path)
        assert len(data) == attrs.size, f"{path!r}: st_size {attrs.size} of a link to {data!r}"
    inos[path] = attrs.ino
    assert attrs.ino != 0, f"{path!r}: inode number 0"
    found[path] = Snap(
        kind=kind,
        perm=stat.S_IMODE(attrs.mode),
        uid=attrs.uid,
        gid=attrs.gid,
        data=data,
        rdev=attrs.rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
        mtime_ns=NOW if attrs.mtime_ns > _RECENT_NS else attrs.mtime_ns,
        xattrs=tuple((name, driver.getxattr(path, name)) for name in driver.listxattr(path)),
        group=b"",
        nlink=0 if kind == stat.S_IFDIR else attrs.nlink,
    )
    if kind == stat.S_IFDIR:
        for name, (listed_kind, listed_ino) in sorted(driver.listing(path).items()):
            child = path + b"/" + name if path else name
            if isinstance(driver, UnionDriver) and driver.caching:
                driver.relook(child)
            _visit(driver, child, found, inos)
            assert found[child].kind == listed_kind, f"{child!r}: the listing says {listed_kind:o}"
            if isinstance(driver, UnionDriver):
                assert inos[child] == listed_ino, f"{child!r}: d_ino {listed_ino}, st_ino {inos[child]}"


def merged(driver: Driver) -> str:
    """The tree as text (see trees.render). Owners and times other than what `tree` and a new file have are shown."""
    return as_text(snapshot(driver))


def as_text(found: Snapshot) -> str:
    return render(_item(path, snap) for path, snap in found.items() if path)


def _item(path: bytes, snap: Snap) -> Item:
    default = {stat.S_IFDIR: 0o755, stat.S_IFLNK: 0o777}.get(snap.kind, 0o644)
    plain_owner = (snap.uid, snap.gid) == (os.geteuid(), os.getegid())
    return Item(
        path=path,
        kind=snap.kind,
        data=snap.data,
        same=snap.group if snap.group not in (b"", path) else None,
        rdev=snap.rdev,
        perm=None if default == snap.perm else snap.perm,
        owner=None if plain_owner else (snap.uid, snap.gid),
        mtime_ns=None if snap.mtime_ns in (NOW, MTIME_NS) or isinstance(snap.mtime_ns, str) else snap.mtime_ns,
        xattrs=snap.xattrs,
    )


def shape(found: Snapshot) -> Snapshot:
    """The snapshot without the mtimes of directories."""
    return {
        path: snap._replace(mtime_ns=0) if snap.kind == stat.S_IFDIR else snap for path, snap in found.items()
    }  # fmt: skip


def differences(left: Snapshot, right: Snapshot) -> str:
    """The paths and fields that differ, one line each, for a message."""
    lines = []
    for path in sorted(left.keys() | right.keys()):
        one, two = left.get(path), right.get(path)
        if one is None or two is None:
            lines.append(f"{path!r}: {'missing' if one is None else one} | {'missing' if two is None else two}")
            continue
        lines += [
            f"{path!r}.{field}: {_short(getattr(one, field))} | {_short(getattr(two, field))}"
            for field in Snap._fields
            if getattr(one, field) != getattr(two, field)
        ]
    return "\n".join(lines)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 120 else text[:120] + "..."


def fingerprint(root: Path) -> dict[bytes, tuple[int, ...]]:
    """What changes when anybody writes to a host tree: inode, mode, links, size, mtime and ctime of everything."""
    found: dict[bytes, tuple[int, ...]] = {}
    for directory, names, files, dir_fd in os.fwalk(os.fsencode(root)):
        found[directory] = _print_of(os.fstat(dir_fd))
        for name in (*names, *files):
            found[directory + b"/" + name] = _print_of(os.stat(name, dir_fd=dir_fd, follow_symlinks=False))
    return found


def _print_of(info: os.stat_result) -> tuple[int, ...]:
    return info.st_ino, info.st_mode, info.st_nlink, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def settled(check: Callable[[], Snapshot]) -> Snapshot:
    """`check()`, read a second time: looking must change nothing."""
    first = check()
    assert differences(first, check()) == ""
    return first

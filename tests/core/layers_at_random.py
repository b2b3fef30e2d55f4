"""Hypothesis strategies for layers: texts of `trees` with files, marks of every dialect, and colliding names."""

from __future__ import annotations

import os
import stat
from typing import Final

from hypothesis import strategies as st

from tests.core.trees import Item, render

ROOTLESS: Final = os.geteuid() != 0

NAMES: Final = (b"a", b"b", b"c", b"d\xff", b"e" * 252)
"""Few, so that layers collide: one that is not UTF-8, one whose `.wh.` name would be too long."""

PATHS: Final = tuple(
    b"/".join(parts)
    for parts in [(a,) for a in NAMES]
    + [(a, b) for a in NAMES[:3] for b in NAMES]
    + [(a, b, c) for a in NAMES[:2] for b in NAMES[:2] for c in NAMES[:3]]
)

CONTENTS: Final = (b"", b"one", b"three\n" * 3, b"x" * 5000)
FILE_PERMS: Final = (0o644, 0o600, 0o755, 0o640) if ROOTLESS else (0o644, 0o600, 0o755, 0o4755, 0o2711, 0o000)
DIR_PERMS: Final = (0o755, 0o700, 0o711) if ROOTLESS else (0o755, 0o700, 0o1777, 0o2755)
OWNERS: Final = (None,) if ROOTLESS else (None, None, (0, 5), (7, 8))
MTIMES: Final = (None, None, 12_000_000_003, -5_000_000_000, 1_499_999_999_999_999_999)
XATTRS: Final = ((), (), ((b"user.a", b"1"),), ((b"user.b", b""), (b"user.c", b"\x00" * 40)))
ALL_XATTRS: Final = XATTRS if ROOTLESS else (*XATTRS, ((b"trusted.t", b"v"),))
OPAQUE: Final = ((b"user.overlay.opaque", b"y"), (b"user.fuseoverlayfs.opaque", b"y"), None)
ALL_OPAQUE: Final = OPAQUE if ROOTLESS else (*OPAQUE, (b"trusted.overlay.opaque", b"y"))
DEVICES: Final = () if ROOTLESS else ((stat.S_IFCHR, os.makedev(1, 3)), (stat.S_IFBLK, os.makedev(7, 9)))

_SPECIAL: Final = ((stat.S_IFIFO, 0), (stat.S_IFSOCK, 0), *DEVICES)


@st.composite
def _items(draw: st.DrawFn, path: bytes) -> list[Item]:
    """What a layer has at `path`: nothing but a mark, or an object, perhaps with a mark beside it."""
    parent, name = os.path.split(path)
    choice = draw(st.sampled_from(("file", "file", "dir", "dir", "link", "special", "whiteout", "both", "same")))
    owner, mtime_ns = draw(st.sampled_from(OWNERS)), draw(st.sampled_from(MTIMES))
    if choice == "whiteout":
        if draw(st.booleans()) and len(name) < 252:
            return [Item(os.path.join(parent, b".wh." + name), stat.S_IFREG)]
        return [Item(path, stat.S_IFCHR)]
    if choice == "both" and len(name) < 252:
        return [Item(os.path.join(parent, b".wh." + name), stat.S_IFREG), Item(path, stat.S_IFDIR)]
    if choice in ("dir", "both"):
        return _directory(draw, path, owner, mtime_ns)
    if choice == "link":
        return [
            Item(path, stat.S_IFLNK, draw(st.sampled_from((b"a", b"../b", b"\xfe/x"))), owner=owner, mtime_ns=mtime_ns)
        ]
    if choice == "special":
        kind, rdev = draw(st.sampled_from(_SPECIAL))
        return [Item(path, kind, rdev=rdev, perm=0o620, owner=owner, mtime_ns=mtime_ns)]
    item = Item(
        path,
        stat.S_IFREG,
        draw(st.sampled_from(CONTENTS)),
        perm=draw(st.sampled_from(FILE_PERMS)),
        owner=owner,
        mtime_ns=mtime_ns,
        xattrs=draw(st.sampled_from(ALL_XATTRS)),
    )
    if choice == "same":
        other = draw(st.sampled_from(PATHS))
        return [item, Item(other, stat.S_IFREG, same=path)] if other != path else [item]
    return [item]


def _directory(draw: st.DrawFn, path: bytes, owner: tuple[int, int] | None, mtime_ns: int | None) -> list[Item]:
    perm, xattrs = draw(st.sampled_from(DIR_PERMS)), draw(st.sampled_from(ALL_XATTRS))
    if draw(st.integers(0, 3)):
        return [Item(path, stat.S_IFDIR, perm=perm, owner=owner, mtime_ns=mtime_ns, xattrs=xattrs)]
    mark = draw(st.sampled_from(ALL_OPAQUE))
    directory = Item(
        path, stat.S_IFDIR, perm=perm, owner=owner, mtime_ns=mtime_ns, xattrs=(*xattrs, mark) if mark else xattrs
    )  # fmt: skip
    return [directory] if mark else [directory, Item(path + b"/.wh..wh..opq", stat.S_IFREG)]


def _consistent(items: list[Item]) -> list[Item]:
    """Without what cannot stand in one directory tree: two objects of one name, something below a file."""
    chosen: dict[bytes, Item] = {}
    parents: set[bytes] = set()
    for item in items:
        above = item.path
        ancestors = set()
        while above := os.path.dirname(above):
            ancestors.add(above)
        blocked = any(path in chosen and chosen[path].kind != stat.S_IFDIR for path in ancestors)
        if item.path in chosen or blocked or (item.path in parents and item.kind != stat.S_IFDIR):
            continue
        if item.same is not None and (item.same not in chosen or chosen[item.same].kind != stat.S_IFREG):
            continue
        chosen[item.path] = item
        parents |= ancestors
    return list(chosen.values())


def layer_text(items: list[Item]) -> str:
    return " ".join(render([item]) for item in _consistent(items))


def layers() -> st.SearchStrategy[str]:
    """One layer as text."""
    one_path = st.sampled_from(PATHS).flatmap(_items)
    return st.lists(one_path, max_size=8).map(lambda groups: layer_text([item for group in groups for item in group]))

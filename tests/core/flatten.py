"""Merge layers into a plain directory by the simplest rule there is: bottom to top, as an image is unpacked.

The independent opinion that the Union is compared with. It reads the marks from the notation's parsed items, not from
disk, and shares no code with the core: a layer first hides what its marks say, then puts its own files in place.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from tests.core.trees import MTIME_NS, Item, parse, render, tree

OPAQUE = (b"trusted.overlay.opaque", b"user.overlay.opaque", b"user.fuseoverlayfs.opaque")
WHITEOUT = (b"trusted.overlay.whiteout", b"user.overlay.whiteout")
MARKS = (*OPAQUE, *WHITEOUT)


def flatten(target: Path, layers: list[str]) -> Path:
    """Make `target` the merged view of `layers` (texts of `trees`, bottom first). No redirects, no metacopy."""
    tree(target, "./")
    for text in layers:
        items = parse(text)
        mtimes = _directory_mtimes(os.fsencode(target))
        for item in items:
            _hide(os.fsencode(target), item, items)
        _put(target, items, mtimes)
    return target


def _hide(base: bytes, item: Item, items: list[Item]) -> None:
    parent, name = os.path.split(item.path)
    here = os.path.join(base, parent)
    if os.path.realpath(here) != os.path.realpath(base) + (b"/" + parent if parent else b""):
        return  # a symlink of a layer beneath leads elsewhere: the directory of this layer will replace it
    if name == b".wh..wh..opq":
        _empty(here)
    elif name.startswith(b".wh."):
        if name != b".wh." and not name.startswith(b".wh..wh."):
            _remove(os.path.join(here, name[4:]))
    elif _is_whiteout(item, items):
        _remove(os.path.join(here, name))
    elif item.kind == stat.S_IFDIR and any((mark, b"y") in item.xattrs for mark in OPAQUE):
        _empty(os.path.join(here, name) if name != b"." else here)


def _is_whiteout(item: Item, items: list[Item]) -> bool:
    if item.kind == stat.S_IFCHR and item.rdev == 0:
        return True
    marked = item.kind == stat.S_IFREG and not item.data and any(name in WHITEOUT for name, _ in item.xattrs)
    parent = os.path.dirname(item.path) or b"."
    return marked and any(
        other.path == parent and any((mark, b"x") in other.xattrs for mark in OPAQUE) for other in items
    )  # fmt: skip


def _remove(path: bytes) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _empty(path: bytes) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        for name in os.listdir(path):
            _remove(os.path.join(path, name))


def _put(target: Path, items: list[Item], mtimes: dict[bytes, int]) -> None:
    """Replace what is in the way, then let `tree` make the layer's files. Directories take the layer's attributes."""
    base = os.fsencode(target)
    shown = [item for item in items if not _is_mark(item, items)]
    own = {item.path: item for item in shown if item.kind == stat.S_IFDIR}
    for item in items:
        above = item.path
        while above := os.path.dirname(above):
            own.setdefault(above, Item(above, stat.S_IFDIR))
    own.setdefault(b".", Item(b".", stat.S_IFDIR))
    for path in sorted(own):
        full = os.path.join(base, path)
        if not os.path.isdir(full) or os.path.islink(full):
            _remove(full)
            os.mkdir(full)
        _undress(full)
    for item in shown:
        if item.kind != stat.S_IFDIR:
            _remove(os.path.join(base, item.path))
    bare = [item._replace(xattrs=tuple(pair for pair in item.xattrs if pair[0] not in MARKS)) for item in shown]
    tree(target, " ".join(render([item]) for item in bare))
    mtimes |= {path: MTIME_NS if item.mtime_ns is None else item.mtime_ns for path, item in own.items()}
    for path, mtime_ns in mtimes.items():
        full = os.path.join(base, path)
        # What is replaced by a symlink, or below one, is another directory now.
        if os.path.isdir(full) and os.path.realpath(full) == os.path.normpath(
            os.path.join(os.path.realpath(base), path)
        ):
            os.utime(full, ns=(mtime_ns, mtime_ns))


def _undress(path: bytes) -> None:
    for name in os.listxattr(path):
        os.removexattr(path, name)
    os.chown(path, os.geteuid(), os.getegid())
    os.chmod(path, 0o755)


def _directory_mtimes(base: bytes) -> dict[bytes, int]:
    return {os.path.relpath(path, base): os.stat(path).st_mtime_ns for path, _, _ in os.walk(base)}


def _is_mark(item: Item, items: list[Item]) -> bool:
    return os.path.basename(item.path).startswith(b".wh.") or _is_whiteout(item, items)

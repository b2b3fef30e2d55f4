"""Two plain directory trees compared by walking both: the independent opinion on what an upper changed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from unionfs.changes import listing
from unionfs.changes.objects import Branches


def look(path: bytes) -> tuple[object, ...]:
    """Everything that may differ between two objects, the content of a directory excepted."""
    st = os.lstat(path)
    kind = stat.S_IFMT(st.st_mode)
    data: object = None
    if kind == stat.S_IFREG:
        with open(path, "rb") as file:
            data = file.read()
    elif kind == stat.S_IFLNK:
        data = os.readlink(path)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        data = st.st_rdev
    perm = 0 if kind == stat.S_IFLNK else stat.S_IMODE(st.st_mode)
    xattrs = {
        name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
    }
    return kind, data, perm, st.st_uid, st.st_gid, st.st_mtime_ns, tuple(sorted(xattrs.items()))


def walk(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Every path below `root`, absolute within it, and what is there."""
    base = os.fsencode(root)
    found = {}
    for directory, dirs, files in os.walk(base):
        for name in dirs + files:
            path = os.path.join(directory, name)
            found[path[len(base) :]] = look(path)
    return found


def compared(old_root: Path, new_root: Path) -> list[str]:
    """The changes from one plain tree to another as `docker diff` would list them."""
    old, new = walk(old_root), walk(new_root)
    lines = {}
    for path in old.keys() | new.keys():
        if path not in new:
            parent = os.path.dirname(path)
            if parent == b"/" or (parent in new and new[parent][0] == stat.S_IFDIR):
                lines[path] = "D"
        elif path not in old:
            lines[path] = "A"
        elif old[path] != new[path]:
            lines[path] = "C"
    for path in list(lines):
        above = path
        while (above := os.path.dirname(above)) != b"/":
            lines.setdefault(above, "C")
    return [f"{lines[path]} {os.fsdecode(path)}" for path in sorted(lines)]


def listed(upper: Path, *lowers: Path, **how: object) -> list[str]:
    """The changes of `upper` as text, lowers top first."""
    with Branches(str(upper), [str(lower) for lower in lowers], **how) as branches:  # type: ignore[arg-type]
        return [f"{change.kind} {os.fsdecode(change.path)}" for change in listing.changes(branches).changes]

"""Trees for the tests of layers: made from a table, and told as one, so that a test compares two dictionaries.

make(directory, {"a": Dir(), "a/f": File(b"data"), "l": Symlink("a")})
told(directory) -> {b"a": (...), ...}
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layers import unpack
from layers.attributes import Options, Unpacked
from layers.limits import Limits
from layers.resolve_parents import resolve_parents

TIME_NS = 1_600_000_000_123_456_789


@dataclass(frozen=True)
class File:
    """A regular file; `holes` are (offset, data) of a sparse one, which is then `size` long."""

    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    mtime_ns: int = TIME_NS
    size: int = 0


@dataclass(frozen=True)
class Dir:
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    mtime_ns: int = TIME_NS


@dataclass(frozen=True)
class Symlink:
    target: str
    uid: int = 0
    gid: int = 0
    mtime_ns: int = TIME_NS


@dataclass(frozen=True)
class Link:
    to: str


@dataclass(frozen=True)
class Node:
    kind: int
    device: tuple[int, int] = (0, 0)
    mode: int = 0o600
    mtime_ns: int = TIME_NS


Thing = File | Dir | Symlink | Link | Node


def make(root: Path, things: Mapping[str, Thing]) -> Path:
    """The tree in `root`, which is made; directories that are not named are made too."""
    root.mkdir(parents=True, exist_ok=True)
    for name, thing in things.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        match thing:
            case File():
                path.write_bytes(thing.data)
                if thing.size:
                    os.truncate(path, thing.size)
            case Dir():
                path.mkdir(exist_ok=True)
            case Symlink():
                path.symlink_to(thing.target)
            case Link():
                os.link(root / thing.to, path, follow_symlinks=False)
            case Node():
                os.mknod(path, thing.kind | thing.mode, os.makedev(*thing.device))
    for name, thing in sorted(things.items(), reverse=True):
        _finish(root / name, thing)
    for parent, _, _ in os.walk(os.fsencode(root), topdown=False):
        if os.fsdecode(os.path.relpath(parent, os.fsencode(root))) not in things:
            os.utime(parent, ns=(TIME_NS, TIME_NS))
    return root


def _finish(path: Path, thing: Thing) -> None:
    if isinstance(thing, Link):
        return
    if isinstance(thing, File | Dir | Symlink):
        os.chown(path, thing.uid, thing.gid, follow_symlinks=False)
    if isinstance(thing, File | Dir):
        for name, value in thing.xattrs.items():
            os.setxattr(path, name, value)
        path.chmod(thing.mode)
    os.utime(path, ns=(thing.mtime_ns, thing.mtime_ns), follow_symlinks=False)


def told(root: Path, *, times: bool = True, directory_times: bool = True) -> dict[bytes, tuple[Any, ...]]:
    """Everything that can be seen of a tree, by path; the root is b""."""
    found: dict[bytes, tuple[Any, ...]] = {}
    first: dict[tuple[int, int], bytes] = {}
    top = os.fsencode(root)
    for parent, names, files in os.walk(top):
        names.sort()
        rel = os.path.relpath(parent, top) if parent != top else b""
        here = [rel] if not rel else []
        found.update({name: _tell(os.path.join(top, name), first, times, directory_times) for name in here})
        for name in sorted(names + files):
            path = os.path.join(parent, name)
            found[os.path.relpath(path, top)] = _tell(path, first, times, directory_times)
    return found


def _tell(path: bytes, first: dict[tuple[int, int], bytes], times: bool, directory_times: bool) -> tuple[Any, ...]:
    st = os.lstat(path)
    kind = stat.S_IFMT(st.st_mode)
    what: Any = None
    if kind == stat.S_IFREG:
        what = Path(os.fsdecode(path)).read_bytes()
    elif kind == stat.S_IFLNK:
        what = os.readlink(path)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        what = st.st_rdev
    link = first.setdefault((st.st_dev, st.st_ino), path) if kind != stat.S_IFDIR else path
    xattrs = {}
    with suppress(OSError):
        xattrs = {n: os.getxattr(path, n, follow_symlinks=False) for n in os.listxattr(path, follow_symlinks=False)}
    mtime = st.st_mtime_ns if times and (kind != stat.S_IFDIR or directory_times) else None
    mode = stat.S_IMODE(st.st_mode) if kind != stat.S_IFLNK else None
    return (kind, mode, st.st_uid, st.st_gid, mtime, what, os.path.basename(link), tuple(sorted(xattrs.items())))


def tar_of(members: Iterable[tuple[str, dict[str, Any], bytes]], format_: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar made entry by entry, however wrong: (name, TarInfo fields, data)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_) as archive:
        for name, fields, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1_600_000_000
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def unpacked(data: bytes, into: Path, limits: Limits | None = None, owners: str = "mapped") -> Unpacked:
    """`data` unpacked into the new directory `into` as a bottom layer."""
    into.mkdir(parents=True)
    options = Options(owners=owners, limits=limits or Limits())
    root_fd = os.open(into, os.O_RDONLY | os.O_DIRECTORY)
    try:
        result = unpack.unpack(io.BytesIO(data), root_fd, options)
        resolve_parents(result, root_fd, options, lambda path: None)
    finally:
        os.close(root_fd)
    return result


def names(root: Path) -> Sequence[str]:
    """All paths of a tree, sorted."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))

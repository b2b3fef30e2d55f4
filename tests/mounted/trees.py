"""Trees written as text: made in a plain directory or spread over the branches of a union, and read back to compare.

Knows the marks that layers carry (markers of every dialect), because it builds layers; knows nothing of mounts.

One word of the text is one object of the *merged* tree; parents come by themselves:

    d/  d/:2775                   a directory; with a mode
    f  f=hello  f:600=hello       a file: empty, with text, with a mode
    f~70000                       a file of so many bytes
    l->target                     a symbolic link
    g==f                          a hard link to f
    p|                            a fifo

`pattern(name, n)` is what `name~n` holds. Everything carries the time STAMP, so that a time which moved shows.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

STAMP: Final = 1_000_000_000_123_456_789
"""2001-09-09, with nanoseconds that a clock of microseconds would lose."""

_LARGE: Final = 1 << 26
"""Size of a file, in bytes, above which it is mostly a hole: only its ends are compared."""
_END: Final = 1 << 20

_WORD = re.compile(
    r"(?P<path>[^\s:=|~]+?)(?::(?P<mode>[0-7]+))?"
    r"(?:->(?P<target>\S+)|==(?P<other>\S+)|(?P<fifo>\|)|~(?P<size>\d+)|=(?P<text>\S*))?"
)


class Item(NamedTuple):
    """One object of a merged tree. `path` is relative; one of the fields behind `mode` is set, or none: a directory."""

    path: str
    mode: int
    content: bytes | None = None
    target: str | None = None
    other: str | None = None
    fifo: bool = False

    @property
    def is_dir(self) -> bool:
        return self.content is None and self.target is None and self.other is None and not self.fifo


def pattern(name: str, size: int) -> bytes:
    """`size` bytes that depend on `name` only and do not repeat."""
    return random.Random(name).randbytes(size)


def parse(text: str) -> list[Item]:
    """The objects that `text` describes, parents before children, with the parents that it implies."""
    items: dict[str, Item] = {"": Item("", 0o755)}
    for word in text.split():
        found = _WORD.fullmatch(word)
        assert found, f"a tree cannot hold {word!r}"
        path, mode = found["path"], found["mode"]
        parts = path.rstrip("/").split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            items.setdefault(parent, Item(parent, 0o755))
        if path.endswith("/"):
            items[path[:-1]] = Item(path[:-1], int(mode or "755", 8))
            continue
        content = None
        if found["size"]:
            content = pattern(path, int(found["size"]))
        elif not (found["target"] or found["other"] or found["fifo"]):
            content = (found["text"] or "").encode()
        items[path] = Item(path, int(mode or "644", 8), content, found["target"], found["other"], bool(found["fifo"]))
    return list(items.values())


def make(items: Sequence[Item], top: Path) -> None:
    """Make `items` in the directory `top`, as one ordinary tree."""
    for item in items:
        _make_one(item, top)
    stamp(top, items)


def stamp(top: Path, items: Sequence[Item]) -> None:
    """Set the modes of directories and the times of everything, children first."""
    for item in reversed(items):
        place = top / item.path
        if item.is_dir:
            with suppress(FileNotFoundError):
                place.chmod(item.mode)
        with suppress(FileNotFoundError):
            os.utime(place, ns=(STAMP, STAMP), follow_symlinks=False)


def spread(items: Sequence[Item], branches: Sequence[Path], dialects: Sequence[str]) -> None:
    """Scatter `items` over `branches` (top first) so that their union shows exactly `items`.

    Directories are merged from several branches. What must not show is put below: older versions of files, names that
    are whited out, a directory hidden by a symbolic link, leftovers under an opaque directory. Where things go depends
    on their paths only, so a failure repeats. `dialects` (aufs, overlay) take turns in writing the marks.
    """
    bottom = branches[-1]
    parents = {str(Path(item.path).parent) for item in items if item.path}
    for item in items:
        dice = crc32(item.path.encode())
        owner = item.other or item.path
        branch = branches[crc32(owner.encode()) % len(branches)]
        _make_parents(items, item.path, branch)
        _make_one(item, branch)
        if branch is bottom:
            continue
        if item.content is not None and dice & 16:
            _make_parents(items, item.path, bottom)
            _make_one(item._replace(content=b"an older version", mode=0o600), bottom)
        if item.target is not None:
            _make_parents(items, item.path, bottom)
            (bottom / item.path / "hidden").mkdir(parents=True, exist_ok=True)
        if item.is_dir and item.path and item.path not in parents:
            (bottom / item.path / "leftover").mkdir(parents=True, exist_ok=True)
            _opaque(branch / item.path, dialects[dice % len(dialects)])
        elif item.is_dir and dice & 32:
            (bottom / item.path).mkdir(parents=True, exist_ok=True)
            (bottom / item.path / "deleted").write_text("this name is whited out above")
            _white_out(branch / item.path, "deleted", dialects[dice % len(dialects)])
    for branch in branches:
        stamp(branch, items)


def _make_one(item: Item, top: Path) -> None:
    place = top / item.path
    if item.is_dir:
        place.mkdir(exist_ok=True)
    elif item.target is not None:
        place.symlink_to(item.target)
    elif item.other is not None:
        place.hardlink_to(top / item.other)
    elif item.fifo:
        os.mkfifo(place)
        place.chmod(item.mode)
    else:
        assert item.content is not None
        place.write_bytes(item.content)
        place.chmod(item.mode)


def _make_parents(items: Sequence[Item], path: str, branch: Path) -> None:
    modes = {item.path: item.mode for item in items}
    parts = path.split("/")[:-1] if path else []
    for depth in range(len(parts) + 1):
        parent = branch / "/".join(parts[:depth])
        if not parent.is_dir():
            parent.mkdir(parents=True)
            parent.chmod(modes["/".join(parts[:depth])])


def _white_out(parent: Path, name: str, dialect: str) -> None:
    if dialect == "aufs":
        (parent / f".wh.{name}").touch(mode=0o444)
    else:
        os.mknod(parent / name, stat.S_IFCHR, os.makedev(0, 0))


def _opaque(directory: Path, dialect: str) -> None:
    if dialect == "aufs":
        (directory / ".wh..wh..opq").touch()
    else:
        os.setxattr(directory, "trusted.overlay.opaque" if is_real_root() else "user.overlay.opaque", b"y")


def is_real_root() -> bool:
    """Whether this is root of the first user namespace, where some privileges are checked (user_namespaces(7))."""
    return os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


class Line(NamedTuple):
    """What a tree shows of one object. Directories have no size, no link count: those are not portable."""

    mode: int
    uid: int
    gid: int
    rdev: int
    nlink: int
    size: int
    mtime_ns: int
    ctime_ns: int
    ino: int
    content: str
    xattrs: tuple[tuple[str, bytes], ...]
    linked: bytes


Snapshot = dict[bytes, Line]


def snapshot(top: str | bytes | Path) -> Snapshot:
    """Everything at and below `top`, paths longer than PATH_MAX included. Reads all contents, ignores access times."""
    found: Snapshot = {}
    first_of: dict[tuple[int, int], bytes] = {}
    top_fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for parent_fd, rel, name in _walk(top_fd, b".", b"."):
            found[rel] = _line(parent_fd, rel, name, first_of)
    finally:
        os.close(top_fd)
    return found


def _walk(parent_fd: int, rel: bytes, name: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(descriptor of the parent, path below the top, name in the parent) of `name` and everything below it."""
    yield parent_fd, rel, name
    if not stat.S_ISDIR(os.lstat(name, dir_fd=parent_fd).st_mode):
        return
    try:
        dir_fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
    except PermissionError:
        return
    try:
        with suppress(PermissionError):  # a directory that may be listed but not searched
            for child in sorted(os.fsencode(text) for text in os.listdir(dir_fd)):
                os.lstat(child, dir_fd=dir_fd)
                yield from _walk(dir_fd, child if rel == b"." else rel + b"/" + child, child)
    finally:
        os.close(dir_fd)


def _line(dir_fd: int, rel: bytes, name: bytes, first_of: dict[tuple[int, int], bytes]) -> Line:
    status = os.lstat(name, dir_fd=dir_fd)
    is_dir = stat.S_ISDIR(status.st_mode)
    here = f"/proc/self/fd/{dir_fd}/".encode() + name
    content = ""
    try:
        if stat.S_ISLNK(status.st_mode):
            content = repr(os.readlink(name, dir_fd=dir_fd))
        elif stat.S_ISREG(status.st_mode):
            content = _digest(_open_unseen(dir_fd, name))
    except PermissionError:
        content = "unreadable"
    xattrs: tuple[tuple[str, bytes], ...] = ()
    with suppress(PermissionError):
        names = sorted(os.listxattr(here, follow_symlinks=False))
        xattrs = tuple((each, os.getxattr(here, each, follow_symlinks=False)) for each in names)
    return Line(
        status.st_mode, status.st_uid, status.st_gid, status.st_rdev,
        0 if is_dir else status.st_nlink, 0 if is_dir else status.st_size,
        status.st_mtime_ns, status.st_ctime_ns, status.st_ino, content, xattrs,
        b"" if is_dir else first_of.setdefault((status.st_dev, status.st_ino), rel),
    )  # fmt: skip


def _open_unseen(dir_fd: int, name: bytes) -> int:
    """Open for reading without moving the access time, which open(2) grants to the owner only (O_NOATIME)."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags | os.O_NOATIME, dir_fd=dir_fd)
    except PermissionError:
        return os.open(name, flags, dir_fd=dir_fd)


def _digest(fd: int) -> str:
    with os.fdopen(fd, "rb") as file:
        size = os.fstat(fd).st_size
        if size <= _LARGE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha256(os.pread(fd, _END, 0) + os.pread(fd, _END, size - _END)).hexdigest()


def differences(
    before: Snapshot, after: Snapshot, ignore: Callable[[str, Line], bool] = lambda field, line: False
) -> list[str]:
    """What changed between two snapshots, one readable line for each change, at most a hundred."""
    told = [f"gone: {path!r}" for path in sorted(before.keys() - after.keys())]
    told += [f"new: {path!r}" for path in sorted(after.keys() - before.keys())]
    for path in sorted(before.keys() & after.keys()):
        for field, was, now in zip(Line._fields, before[path], after[path], strict=True):
            if was != now and not ignore(field, after[path]):
                told.append(f"{path!r}: {field} was {was!r}, is {now!r}")
    return told[:100]

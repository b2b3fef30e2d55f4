"""Fingerprints: what every file of an unpacked layer was like when it was unpacked, and what is different now.

Knows directories and XXH3-128. The fingerprint is not an identity (sha256 is), it answers at disk speed whether
somebody changed a layer that must never change.

The file holds one JSON array per line, the later one of two for a path counts:
    [path, type, mode, uid, gid, mtime_ns, what, xattrs]
`type` is f, d, l, c, b, p, s, or "-" for a path that was removed again with everything below it. `what` is the XXH3-128
of the content of a file, the target of a symlink, [major, minor] of a device; `xattrs` the XXH3-128 of all attributes,
or empty when there are none.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, Final, NamedTuple

import xxhash

from layers.errors import Refused
from layers.safe_open import Directories, Path

_READ: Final = 1 << 20
_quoted = json.encoder.encode_basestring_ascii
_TYPES: Final = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFCHR: "c",
    stat.S_IFBLK: "b",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
}


class Print(NamedTuple):
    """What one file is like on disk."""

    type: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    what: str | tuple[int, ...] = ""
    xattrs: str = ""


class Difference(NamedTuple):
    """A path that is not as it was unpacked. `what` names the differences: missing, unexpected, type, content ..."""

    path: bytes
    what: tuple[str, ...]


class Recorder:
    """Writes fingerprints while a layer is being unpacked."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def add(self, path: Path, found: Print) -> None:
        text = _quoted(os.fsdecode(b"/".join(path)))
        if found.type == "f":  # nearly all are
            line = f'[{text},"f",{found[1]},{found[2]},{found[3]},{found[4]},"{found[5]}","{found[6]}"]\n'
        else:
            line = f"[{text},{json.dumps(found, separators=(',', ':'))[1:]}\n"
        self._file.write(line.encode("ascii"))

    def gone(self, path: Path) -> None:
        """`path` and all below it was removed again."""
        self._file.write(json.dumps([os.fsdecode(b"/".join(path)), "-"]).encode("ascii") + b"\n")


def read(file: Iterable[bytes]) -> dict[bytes, Print]:
    """Path -> fingerprint. Raises Refused when the file is damaged."""
    found: dict[bytes, Print] = {}
    try:
        for line in file:
            path, *rest = json.loads(line)
            name = os.fsencode(path)
            if rest[0] == "-":
                for below in [known for known in found if known == name or known.startswith(name + b"/")]:
                    del found[below]
            else:
                if isinstance(rest[5], list):
                    rest[5] = tuple(rest[5])
                found[name] = Print(*rest)
    except (ValueError, TypeError, IndexError) as error:
        raise Refused("reading fingerprints", "", f"damaged: {error}") from None
    return found


def differences(tree: Directories, expected: Mapping[bytes, Print]) -> Iterator[Difference]:
    """What of `tree` is not as `expected`, in the order of the paths of what is there, then what is missing."""
    seen = set()
    for path, found in scan(tree):
        seen.add(path)
        known = expected.get(path)
        if known is None:
            yield Difference(path, ("unexpected",))
        elif known != found:
            yield Difference(path, _different(known, found))
    for path in sorted(expected.keys() - seen):
        yield Difference(path, ("missing",))


def scan(tree: Directories) -> Iterator[tuple[bytes, Print]]:
    """The fingerprint of everything in `tree`, a file of several names read only once."""
    hashed: dict[tuple[int, int], str] = {}
    yield b"", of(tree, (), hashed)
    todo: list[Path] = [()]
    while todo:
        path = todo.pop()
        inner = []
        for name in sorted(os.fsencode(name) for name in os.listdir(tree.fd(path))):
            found = of(tree, (*path, name), hashed)
            yield b"/".join((*path, name)), found
            if found.type == "d":
                inner.append((*path, name))
        todo += reversed(inner)


def of(tree: Directories, path: Path, hashed: dict[tuple[int, int], str]) -> Print:
    """The fingerprint of one path; `hashed` remembers the content of files with several names."""
    if not path:
        st = os.fstat(tree.root_fd)
        return _print(st, "", xattrs_digest(read_xattrs(tree.root_fd)))
    dir_fd = tree.fd(path[:-1])
    fd = os.open(path[-1], os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        st = os.fstat(fd)
        what: str | tuple[int, ...] = ""
        if stat.S_ISREG(st.st_mode):
            key = (st.st_dev, st.st_ino)
            known = hashed.get(key)
            what = known if known is not None else content_of(fd)
            if st.st_nlink > 1:
                hashed[key] = what
        elif stat.S_ISLNK(st.st_mode):
            what = os.fsdecode(os.readlink(b"", dir_fd=fd))
        elif stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
            what = (os.major(st.st_rdev), os.minor(st.st_rdev))
        return _print(st, what, xattrs_digest(read_xattrs(fd)))
    finally:
        os.close(fd)


def content_of(path_fd: int) -> str:
    """The XXH3-128 of a regular file behind an O_PATH descriptor."""
    hash_ = xxhash.xxh3_128()
    fd = os.open(f"/proc/self/fd/{path_fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while data := os.read(fd, _READ):
            hash_.update(data)
    finally:
        os.close(fd)
    return hash_.hexdigest()


def read_xattrs(path_fd: int) -> dict[str, bytes]:
    """All extended attributes that this process may read, except labels of the machine's own policy."""
    path = f"/proc/self/fd/{path_fd}"
    try:
        names = os.listxattr(path)
    except OSError:
        return {}  # a filesystem without them, or a symlink on one that gives it none
    found = {}
    for name in names:
        if name != "security.selinux":
            try:
                found[name] = os.getxattr(path, name)
            except OSError:
                continue  # of another user namespace, or not for us
    return found


def xattrs_digest(xattrs: Mapping[str, bytes]) -> str:
    """The fingerprint of extended attributes; empty when there are none."""
    if not xattrs:
        return ""
    hash_ = xxhash.xxh3_128()
    for name, value in sorted(xattrs.items()):
        hash_.update(b"%d:%s%d:%s" % (len(name), os.fsencode(name), len(value), value))
    return hash_.hexdigest()


def _print(st: os.stat_result, what: str | tuple[int, ...], xattrs: str) -> Print:
    return Print(
        _TYPES[stat.S_IFMT(st.st_mode)], stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, st.st_mtime_ns, what, xattrs
    )


_FIELDS: Final = ("type", "mode", "owner", "group", "time", "content", "attributes")


def _different(known: Print, found: Print) -> tuple[str, ...]:
    if known.type != found.type:
        return ("type",)
    pairs: Iterator[tuple[str, Any, Any]] = zip(_FIELDS, known, found, strict=True)
    return tuple(field for field, before, now in pairs if before != now)

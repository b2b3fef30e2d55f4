"""Fingerprints: the metadata and a content hash of every file of a layer, recorded when it was unpacked and compared
later.

Knows directories and XXH3-128. A fingerprint is no identity (sha256 is); it shows at disk speed whether an unpacked
layer, which must never change, was changed.

The file holds one JSON array per line, the later one of two for a path counts:
    [path, type, mode, uid, gid, mtime_ns, content, xattrs]
`type` is f, d, l, c, b, p, s, or "-" for a path that was removed again with everything below it. `content` is the
XXH3-128 of a file's data, the target of a symlink, [major, minor] of a device; `xattrs` is the XXH3-128 of all
attributes, or empty if there are none.
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


class Fingerprint(NamedTuple):
    """The metadata of one file on disk and a hash of its content (see the module's docstring)."""

    type: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    content: str | tuple[int, ...] = ""
    xattrs: str = ""


class Difference(NamedTuple):
    """A path that changed since unpacking. `what` names the differences: missing, unexpected, type, content ..."""

    path: bytes
    what: tuple[str, ...]


class Recorder:
    """Writes fingerprints while a layer is being unpacked."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def add(self, path: Path, found: Fingerprint) -> None:
        text = _quoted(os.fsdecode(b"/".join(path)))
        if found.type == "f":  # nearly all are
            line = f'[{text},"f",{found[1]},{found[2]},{found[3]},{found[4]},"{found[5]}","{found[6]}"]\n'
        else:
            line = f"[{text},{json.dumps(found, separators=(',', ':'))[1:]}\n"
        self._file.write(line.encode("ascii"))

    def removed(self, path: Path) -> None:
        """Record that `path` and everything below it was removed again."""
        self._file.write(json.dumps([os.fsdecode(b"/".join(path)), "-"]).encode("ascii") + b"\n")


def read(file: Iterable[bytes]) -> dict[bytes, Fingerprint]:
    """Read a file of fingerprints: path -> fingerprint. Raises Refused when it is damaged."""
    found: dict[bytes, Fingerprint] = {}
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
                found[name] = Fingerprint(*rest)
    except (ValueError, TypeError, IndexError, KeyError, RecursionError) as error:
        raise Refused("reading fingerprints", "", f"damaged: {error}") from None
    return found


def differences(tree: Directories, expected: Mapping[bytes, Fingerprint]) -> Iterator[Difference]:
    """Compare `tree` with the `expected` fingerprints: first paths that exist, in order, then missing ones."""
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


def scan(tree: Directories) -> Iterator[tuple[bytes, Fingerprint]]:
    """The fingerprints of all paths of `tree`; a file with several names is read once."""
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


def of(tree: Directories, path: Path, hashed: dict[tuple[int, int], str]) -> Fingerprint:
    """The fingerprint of one path. `hashed` caches the content hashes of files with several names."""
    if not path:
        st = os.fstat(tree.root_fd)
        return _fingerprint(st, "", xattrs_digest(read_xattrs(tree.root_fd)))
    dir_fd = tree.fd(path[:-1])
    fd = os.open(path[-1], os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        st = os.fstat(fd)
        content: str | tuple[int, ...] = ""
        if stat.S_ISREG(st.st_mode):
            key = (st.st_dev, st.st_ino)
            known = hashed.get(key)
            content = known if known is not None else content_of(fd)
            if st.st_nlink > 1:
                hashed[key] = content
        elif stat.S_ISLNK(st.st_mode):
            content = os.fsdecode(os.readlink(b"", dir_fd=fd))
        elif stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
            content = (os.major(st.st_rdev), os.minor(st.st_rdev))
        return _fingerprint(st, content, xattrs_digest(read_xattrs(fd)))
    finally:
        os.close(fd)


def content_of(path_fd: int) -> str:
    """The XXH3-128 of the data of a regular file, given as an O_PATH descriptor."""
    hash_ = xxhash.xxh3_128()
    fd = os.open(f"/proc/self/fd/{path_fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while data := os.read(fd, _READ):
            hash_.update(data)
    finally:
        os.close(fd)
    return hash_.hexdigest()


def read_xattrs(path_fd: int) -> dict[str, bytes]:
    """All extended attributes that this process may read, except security.selinux, which the host's policy sets."""
    path = f"/proc/self/fd/{path_fd}"
    try:
        names = os.listxattr(path)
    except OSError:
        return {}  # a filesystem without extended attributes, or a symlink, which has none on some filesystems
    found = {}
    for name in names:
        if name != "security.selinux":
            try:
                found[name] = os.getxattr(path, name)
            except OSError:
                continue  # set in another user namespace, or not readable for this user
    return found


def xattrs_digest(xattrs: Mapping[str, bytes]) -> str:
    """The fingerprint of extended attributes; empty when there are none."""
    if not xattrs:
        return ""
    hash_ = xxhash.xxh3_128()
    for name, value in sorted(xattrs.items()):
        hash_.update(b"%d:%s%d:%s" % (len(name), os.fsencode(name), len(value), value))
    return hash_.hexdigest()


def _fingerprint(st: os.stat_result, content: str | tuple[int, ...], xattrs: str) -> Fingerprint:
    mode = stat.S_IMODE(st.st_mode)
    return Fingerprint(
        _TYPES[stat.S_IFMT(st.st_mode)], mode, st.st_uid, st.st_gid, st.st_mtime_ns, content, xattrs
    )  # fmt: skip


_FIELDS: Final = ("type", "mode", "owner", "group", "time", "content", "attributes")


def _different(known: Fingerprint, found: Fingerprint) -> tuple[str, ...]:
    if known.type != found.type:
        return ("type",)
    pairs: Iterator[tuple[str, Any, Any]] = zip(_FIELDS, known, found, strict=True)
    return tuple(field for field, before, now in pairs if before != now)

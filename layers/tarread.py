"""Read the entries of a layer's tar, with every name, link and number checked. Writes nothing.

Knows the tar formats through `tarfile` (ustar, GNU, pax; sparse files of all four kinds) and OCI's whiteouts
(layer.md). Does not know the disk.

The root of the layer is the root of all names: `/a` is `a`, `a/../b` is `b`. Targets of symlinks are data and are not
checked. These are refused with name and reason: names and hard links that lead above the root, names that are too long,
unknown types, whiteouts with an empty name, of `.` or of `..`, numbers out of range, and a tar that ends too early or
has other bytes between two entries. The last block may be short, and the closing blocks may be missing.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any, Final

from layers.entry import BLOCK, CHARACTER, DIRECTORY, FIFO, FILE, LINK, OPAQUE, SYMLINK, WHITEOUT, Entry
from layers.errors import Refused
from layers.limits import HEADER_MAX, NAME_MAX, PATH_MAX, Limits
from layers.safe_open import Path
from layers.tarheader import Header, plain_entry
from layers.tarstream import TarStream, cut_off
from unionfs import markers

_ID_BITS: Final = 0xFFFFFFFF  # of a uid_t
_NO_ID: Final = 0xFFFFFFFF  # (uid_t) -1
_XATTR_PREFIX: Final = "SCHILY.xattr."  # prefixes that star, GNU tar and Go write
_WHAT: Final = "reading a tar"

_KINDS: Final = {
    tarfile.REGTYPE: FILE,
    tarfile.AREGTYPE: FILE,
    tarfile.CONTTYPE: FILE,
    tarfile.GNUTYPE_SPARSE: FILE,
    tarfile.DIRTYPE: DIRECTORY,
    tarfile.SYMTYPE: SYMLINK,
    tarfile.LNKTYPE: LINK,
    tarfile.CHRTYPE: CHARACTER,
    tarfile.BLKTYPE: BLOCK,
    tarfile.FIFOTYPE: FIFO,
}


class _Archive(tarfile.TarFile):
    """The part of TarFile that `TarInfo.fromtarfile` needs; keeps no list of members."""

    def __init__(self, stream: TarStream) -> None:
        self.fileobj: Any = _HeaderReader(stream)
        self.encoding = "utf-8"
        self.errors = "surrogateescape"
        self.offset = 0
        self.pax_headers = _GlobalHeaders()


class _GlobalHeaders(dict[str, str]):
    """The pax records of global headers. `tarfile` copies them to every later entry, so their size is limited."""

    def __init__(self) -> None:
        super().__init__()
        self._size = 0  # characters of all records that were ever set

    def __setitem__(self, key: str, value: str) -> None:
        self._size += len(key) + len(str(value))
        if self._size > HEADER_MAX:
            raise Refused(_WHAT, "", f"global headers of more than {HEADER_MAX} bytes")
        super().__setitem__(key, value)


class _HeaderReader:
    """The file object that `tarfile` reads headers from. Refuses a header that is too large before reading it."""

    def __init__(self, stream: TarStream) -> None:
        self.block = b""  # a block that is read a second time
        self.needed = 0  # bytes that the next reads need, or the tar is cut off
        self._stream = stream
        self.tell = stream.tell  # right only while `block` is empty

    def read(self, size: int) -> bytes:
        if self.block:
            assert size == tarfile.BLOCKSIZE
            block, self.block = self.block, b""
            return block
        whole = max(size, self.needed)  # a newer `tarfile` (3.14.10) reads a large header in pieces
        if size < 0 or whole > HEADER_MAX:
            raise Refused(_WHAT, "", f"a header of {whole} bytes; the limit is {HEADER_MAX}")
        data = self._stream.read(size)
        if len(data) < min(size, self.needed):
            raise cut_off()
        self.needed = max(0, self.needed - len(data))
        return data


def entries(stream: TarStream, limits: Limits) -> Iterator[Entry]:
    """The entries of a tar in their order. The data of a FILE may be read from `stream` before the next entry is taken;
    unread data are skipped.

    Raises: Refused.
    """
    archive = _Archive(stream)
    count = 0
    data_end = 0  # of the last entry: its last block may be short
    while True:
        if archive.offset < stream.tell():
            raise Refused(_WHAT, "", "an entry of negative size")
        if not stream.skip_to(archive.offset):
            if stream.tell() < data_end:
                raise cut_off()
            return
        block = stream.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE and not any(block):
            return
        entry = plain_entry(block) if not archive.pax_headers else None
        if entry is not None:
            data_end = archive.offset + tarfile.BLOCKSIZE + entry.size
            archive.offset += tarfile.BLOCKSIZE + -(-entry.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            count += 1
            limits.check_entries(count)
            yield entry
            continue
        archive.fileobj.block = block
        try:
            info = Header.fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            return
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            return  # an archive without its closing blocks, which some writers leave out
        except tarfile.HeaderError as error:
            if _is_extended_only(error):
                return
            raise Refused(_WHAT, "", f"not a tar, or a damaged one, at byte {archive.offset}: {error}") from None
        except RecursionError:
            raise Refused(_WHAT, "", "too many extended headers in a row") from None
        except (ValueError, IndexError, OverflowError) as error:
            raise Refused(_WHAT, "", f"a malformed header at byte {archive.offset}: {error}") from None
        count += 1
        limits.check_entries(count)
        data_end = archive.offset - -_stored(info) % tarfile.BLOCKSIZE
        entry = entry_of(info)
        if entry is not None:
            yield entry


def _is_extended_only(error: tarfile.HeaderError) -> bool:
    """Whether the tar ends after an extended header, as `git archive` of an empty commit does."""
    cause: BaseException | None = error
    while isinstance(cause, tarfile.SubsequentHeaderError):  # type: ignore[attr-defined]
        cause = cause.__context__
    return isinstance(cause, tarfile.EOFHeaderError | tarfile.EmptyHeaderError)  # type: ignore[attr-defined]


def _stored(info: tarfile.TarInfo) -> int:
    """Bytes of a member's data in the tar: less than its size if it has holes."""
    sparse: Any = info.sparse
    return info.size if sparse is None else sum(length for _, length in sparse)


def entry_of(info: tarfile.TarInfo) -> Entry | None:
    """The checked entry of one header; None for a bookkeeping file of AUFS. Raises Refused."""
    # A sparse file may also have a `path` record, which only tar programs without support of sparse files use.
    shown = info.pax_headers.get("GNU.sparse.name", info.name)
    kind = _KINDS.get(info.type)
    if kind is None:
        raise _refused(shown, f"unknown type {info.type!r}")
    path = path_of(shown, shown)
    if not path and kind != DIRECTORY:
        raise _refused(shown, "the root of a layer is a directory" if shown else "an entry without a name")
    for name in path[:-1] if _RESERVED in shown else ():
        if markers.is_reserved(name):
            if name.startswith(_AUFS_OWN):
                return None
            raise _refused(shown, "it is below a whiteout")
    if path and markers.is_reserved(path[-1]):
        return _mark(path, shown)
    if info.size < 0:
        raise _refused(shown, f"a size of {info.size}")
    pax = info.pax_headers
    target, device = b"", (0, 0)
    link: Path = ()
    extents: tuple[tuple[int, int], ...] | None = None
    if kind == FILE:
        extents = _extents(info, shown)
    elif kind == SYMLINK:
        target = _encoded(info.linkname)
        _check_symlink(target, shown)
    elif kind == LINK:
        link = _link_target(path, info.linkname, shown)
    elif kind in (CHARACTER, BLOCK):
        device = _device(kind, info, shown)
    return Entry(
        path,
        kind,
        info.mode & 0o7777,
        _id(info.uid),
        _id(info.gid),
        _mtime_ns(pax.get("mtime"), info.mtime),
        info.size if kind == FILE else 0,
        target,
        link,
        device,
        _xattrs(pax, shown) if pax else (),
        extents,
    )


def _id(number: int) -> int:
    """The owner that chown(2) makes of a number, as in other readers: its low 32 bits; -1 becomes root."""
    low = number & _ID_BITS
    return 0 if low == _NO_ID else low


def path_of(text: str, shown: str) -> Path:
    """The names of a path from the layer's root, without `.`, `..` and empty ones.

    Raises: Refused for one that climbs above the root, is too long, or has a zero byte.
    """
    data = _encoded(text)
    if len(data) > PATH_MAX:
        raise _refused(shown[:200] + "...", f"a path of {len(data)} bytes; the limit is {PATH_MAX}")
    if b"\0" in data:
        raise _refused(shown, "a name with a zero byte")
    names: list[bytes] = []
    for name in data.split(b"/"):
        if name == b"..":
            if not names:
                raise _refused(shown, "a name with '..' that leads outside of the layer")
            names.pop()
        elif name not in (b"", b"."):
            names.append(name)
            if len(name) > NAME_MAX:
                raise _refused(shown[:200] + "...", f"a name of {len(name)} bytes; the limit is {NAME_MAX}")
    return tuple(names)


_RESERVED: Final = markers.WHITEOUT_PREFIX.decode()
_AUFS_OWN: Final = markers.WHITEOUT_PREFIX * 2
"""Prefix of AUFS's bookkeeping files, which layers of old Docker versions contain; they are ignored."""


def _mark(path: Path, shown: str) -> Entry | None:
    *parent, mark = path
    if mark.startswith(_AUFS_OWN) and mark != markers.OPAQUE_NAME:
        return None
    if mark == markers.OPAQUE_NAME:
        return Entry(tuple(parent), OPAQUE)
    hidden = markers.hidden_name(mark)
    if hidden is None:
        raise _refused(shown, "a whiteout of nothing")
    if hidden in (b".", b".."):
        raise _refused(shown, f"a whiteout of {'the directory it is in' if hidden == b'.' else 'a path outside'}")
    return Entry((*parent, hidden), WHITEOUT)


def _check_symlink(target: bytes, shown: str) -> None:
    if not target:
        raise _refused(shown, "a symbolic link to nothing")
    if len(target) > PATH_MAX:
        raise _refused(shown, f"a symbolic link of {len(target)} bytes; the limit is {PATH_MAX}")
    if b"\0" in target:
        raise _refused(shown, "a symbolic link with a zero byte")


def _link_target(path: Path, text: str, shown: str) -> Path:
    try:
        link = path_of(text, shown)
    except Refused as error:
        raise _refused(shown, f"a hard link to {text[:200]!r}: {error.why}") from None
    if any(markers.is_reserved(name) for name in link):
        raise _refused(shown, "a hard link to a whiteout")
    if not link:
        raise _refused(shown, "a hard link to the root")
    if link == path:
        raise _refused(shown, "a hard link to itself")
    return link


def _device(kind: int, info: tarfile.TarInfo, shown: str) -> tuple[int, int]:
    device = (info.devmajor, info.devminor)
    if not 0 <= device[0] < 1 << 12 or not 0 <= device[1] < 1 << 20:
        raise _refused(shown, f"a device number {device[0]}:{device[1]} that does not exist")
    if kind == CHARACTER and device == (0, 0):
        raise _refused(shown, "overlayfs's form of a whiteout, which has no meaning in an image", _CONVERT)
    return device


_CONVERT: Final = "make the tar with `layers pack`, which writes OCI's whiteouts"


def _extents(info: tarfile.TarInfo, shown: str) -> tuple[tuple[int, int], ...] | None:
    sparse: Any = info.sparse  # a list of (offset, length), whatever its declaration says
    if sparse is None:
        return None
    end = 0
    for offset, length in sparse:
        if not length:
            continue  # unused places of GNU tar's old format, and the size of the file
        if offset < end or length < 0 or offset + length > info.size:
            raise _refused(shown, "a sparse file whose parts overlap or are out of bounds")
        end = offset + length
    return tuple((offset, length) for offset, length in sparse if length)


def _xattrs(pax: Mapping[str, str], shown: str) -> tuple[tuple[str, bytes], ...]:
    found = []
    for key, value in pax.items():
        if key.startswith(_XATTR_PREFIX):
            name = key[len(_XATTR_PREFIX) :]
            if not 0 < len(_encoded(name)) <= NAME_MAX or "\0" in name:
                raise _refused(shown, "an extended attribute whose name is empty or too long")
            found.append((name, _encoded(value)))
    return tuple(found)


_TIME: Final = re.compile(r"(-?)([0-9]{1,11})(?:\.([0-9]{1,9})[0-9]*)?", re.ASCII)
_TIME_MAX_S: Final = 2**34  # ext4's inodes end in 2446
_TIME_MIN_S: Final = -(2**31)


def _mtime_ns(pax: str | None, header: float) -> int:
    """Nanoseconds since 1970, clamped to the range that filesystems can store."""
    match = _TIME.fullmatch(pax) if pax is not None else None
    if match is not None:
        nanoseconds = int(match[2]) * 10**9 + int((match[3] or "0").ljust(9, "0"))
        nanoseconds = -nanoseconds if match[1] else nanoseconds
    else:
        nanoseconds = int(header) * 10**9 if abs(header) < 2**60 else 0
    return max(_TIME_MIN_S * 10**9, min(nanoseconds, _TIME_MAX_S * 10**9 - 1))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _refused(name: str, why: str, hint: str = "") -> Refused:
    return Refused("unpacking a layer", name, why, hint=hint)

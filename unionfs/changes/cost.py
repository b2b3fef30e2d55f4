"""Find the cost of the copy-ups of an upper, by reading the upper and the lowers, without counts of a daemon.

A file was copied up if it has an origin mark. Its cost is the number of bytes that exist twice: data shared with the
lower (reflinks) and holes cost nothing. A copy-up was wasted if the file still has the content of the lower's file, by
their fingerprints (XXH3, 128 bits): a program changed only its mode or times, opened it for writing and wrote nothing,
or wrote the same bytes.

Knows branches and listings. Does not know containers, and changes nothing.
"""

from __future__ import annotations

import json
import os
import stat
from typing import Final, NamedTuple

from unionfs import markers
from unionfs.changes import listing
from unionfs.changes.objects import Branches, BranchPath, Object
from unionfs.syscalls import extents

_CHUNK: Final = 1 << 20
_ORIGINS: Final = (markers.ORIGIN_XATTR, "trusted.overlay.origin", "user.overlay.origin")


class CopiedUp(NamedTuple):
    """One file that was copied up."""

    path: bytes  # its path now, absolute within the union; of several names the first
    branch: int | None  # index of the lower it came from; None: it cannot be found any more
    size: int  # of the file now
    copied: int  # bytes of the lower's data that are in the upper, too
    changed: bool | None  # whether its content differs from the lower's; None: unknown
    fingerprint: str  # of its content, "" if it was not needed


def costs(branches: Branches) -> list[CopiedUp]:
    """Every file that was copied up, the most expensive first. Raises OSError, mostly EACCES, for files that cannot be
    read."""
    seen: dict[tuple[int, int], tuple[bytes, Object, Object | None]] = {}

    def see(path: bytes, new: Object, below: Object | None) -> None:
        key = (new.dev, new.ino)
        if key not in seen or path < seen[key][0]:
            seen[key] = (path, new, below)

    changes = listing.changes(branches, see).changes
    gone = {change.old.ino: change.old for change in changes if change.old is not None and _is_file(change.old)}
    found = []
    for path, new, below in seen.values():
        try:
            one = _cost(branches, path, new, below, gone)
        except FileNotFoundError:
            continue  # removed since it was listed
        if one is not None:
            found.append(one)
    found.sort(key=lambda one: (-one.copied, one.path))
    return found


def _cost(
    branches: Branches, path: bytes, new: Object, below: Object | None, gone: dict[int, Object]
) -> CopiedUp | None:
    marks = branches.xattrs(new.place, private=True)
    mark = next((marks[name] for name in _ORIGINS if name in marks), None)
    if mark is None:
        return None  # made here
    source = _source(mark, below, gone)
    own = _own_bytes(branches, new.place, new.space)
    if source is None:
        return CopiedUp(path, None, new.size, min(own, new.size), None, "")
    copied = min(own, new.size, source.size, source.space) if new.data == new.place else 0
    if new.size != source.size:
        return CopiedUp(path, source.place.branch, new.size, copied, True, "")
    ours = _fingerprint(branches, new.data)
    theirs = ours if new.data == source.data else _fingerprint(branches, source.data)
    changed = None if ours is None or theirs is None else ours != theirs
    return CopiedUp(path, source.place.branch, new.size, copied, changed, ours or "")


def _source(mark: bytes, below: Object | None, gone: dict[int, Object]) -> Object | None:
    """The lower object that a mark names: at the same path, or at the old path of a renamed file."""
    try:
        ino = int(mark.rpartition(b"-")[2], 16)
    except ValueError:
        return below  # a mark of another program
    if below is not None and below.ino == ino:
        return below
    return gone.get(ino, below)


def _is_file(one: Object) -> bool:
    return stat.S_ISREG(one.mode)


def _own_bytes(branches: Branches, place: BranchPath, space: int) -> int:
    """The bytes that a file shares with no other; `space`, all its bytes, if it cannot be opened."""
    try:
        fd = branches.open_data(place)
    except PermissionError:
        return space
    try:
        return extents.own_bytes(fd)
    finally:
        os.close(fd)


def _fingerprint(branches: Branches, place: BranchPath) -> str | None:
    """The XXH3 of a file's content, in hexadecimal; None if it may not be read."""
    import xxhash

    try:
        fd = branches.open_data(place)
    except PermissionError:
        return None
    digest = xxhash.xxh3_128()
    try:
        while data := os.read(fd, _CHUNK):
            digest.update(data)
    finally:
        os.close(fd)
    return str(digest.hexdigest())


def dump(found: list[CopiedUp]) -> bytes:
    """The costs as bytes, for another process."""
    return json.dumps([(os.fsdecode(one.path), *one[1:]) for one in found]).encode()


def load(data: bytes) -> list[CopiedUp]:
    """Convert the result of dump() back."""
    return [CopiedUp(os.fsencode(path), *rest) for path, *rest in json.loads(data)]

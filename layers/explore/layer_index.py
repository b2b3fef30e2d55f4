"""The entries of one layer in a file of columns (`columns`): written once from its pieces, then read in place.

An entry is a *record*, numbered in the order of the layer. Knows pieces. Does not know other layers, with which
`tree_build` merges it.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable
from typing import IO, Any, Final

from layers.entry import DIRECTORY, FILE, LINK, OPAQUE, SYMLINK, WHITEOUT, Entry
from layers.errors import Refused
from layers.explore.columns import Columns, text, write
from layers.pieces import HEAD, Piece
from layers.safe_open import Path

_DIGEST: Final = 16  # bytes of an XXH3-128
_NO_CONTENT: Final = bytes(_DIGEST)
_NO_HEAD: Final = bytes(HEAD)
_FORMAT: Final = 12  # the bits of S_IFMT begin here
TEXT_MAX: Final = 1 << 30
"""Bytes of the paths and attributes of a layer, which are kept in memory: some 200 for each of the most entries."""


def write_layer(pieces: Iterable[Piece], file: IO[bytes], about: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write the columns of a layer to an empty file; returns the facts about it. Raises: Refused beyond TEXT_MAX; the
    errors of the pieces.

    `about` is filled by the caller as the pieces are read (such as the digest of a tar), and written with the columns.
    """
    numbers = {name: array(code) for name, code in _COLUMNS.items()}
    kinds, modes, uids, gids = (numbers[name].append for name in ("kind", "mode", "uid", "gid"))
    mtimes, sizes, storeds, offsets = (numbers[name].append for name in ("mtime_ns", "size", "stored", "offset"))
    path_ends, extra_ends = array("Q", [0]), array("Q", [0])
    paths, extras, contents, heads = bytearray(), bytearray(), bytearray(), bytearray()
    counts = dict.fromkeys(COUNTS, 0)
    stored_here = 0
    for piece in pieces:
        entry = piece.entry
        kind = entry.kind
        paths += b"/".join(entry.path)
        path_ends.append(len(paths))
        kinds(kind >> _FORMAT if kind > 0 else kind)
        modes(entry.mode)
        uids(entry.uid)
        gids(entry.gid)
        mtimes(entry.mtime_ns)
        sizes(entry.size)
        storeds(piece.stored)
        offsets(piece.offset)
        contents += bytes.fromhex(piece.content) if piece.content else _NO_CONTENT
        heads += piece.head.ljust(HEAD, b"\0") if piece.head else _NO_HEAD
        if kind != FILE or entry.xattrs or entry.extents is not None or piece.metacopy or piece.partial:
            if extra := _extra(piece):
                extras += json.dumps(extra, separators=(",", ":")).encode("ascii")
            counts[_COUNTED.get(kind, "special")] += 1
            counts["redirects"] += piece.redirect is not None
        else:
            counts["files"] += 1
        extra_ends.append(len(extras))
        stored_here += piece.stored
        if len(paths) + len(extras) > TEXT_MAX:
            raise Refused("reading a layer", "", f"its names and attributes take more than {TEXT_MAX} bytes")
    facts = {**(about or {}), "records": len(path_ends) - 1, "stored": stored_here, "counts": counts}
    blobs = {"paths": paths, "extras": extras, "content": contents, "head": heads}
    write(file, facts, {**numbers, "path": path_ends, "extra": extra_ends, **blobs})
    return facts


LACKING: Final = ("metacopy", "partial")
"""Fields of a Piece, and of `_extra`, for files whose data are, in whole or in part, in a layer beneath."""

COUNTS: Final = ("files", "directories", "symlinks", "links", "special", "whiteouts", "opaque", "redirects")
_COUNTED: Final = {
    FILE: "files", DIRECTORY: "directories", SYMLINK: "symlinks", LINK: "links", WHITEOUT: "whiteouts",
    OPAQUE: "opaque",
}  # fmt: skip
_COLUMNS: Final = {
    "kind": "b", "mode": "H", "uid": "I", "gid": "I", "mtime_ns": "q", "size": "q", "stored": "q", "offset": "q",
}  # fmt: skip


def _extra(piece: Piece) -> dict[str, Any]:
    """The fields that few entries have. Bytes are in hexadecimal digits."""
    entry = piece.entry
    found: dict[str, Any] = {}
    if entry.target:
        found["target"] = entry.target.hex()
    if entry.link:
        found["link"] = b"/".join(entry.link).hex()
    if entry.device != (0, 0):
        found["device"] = entry.device
    if entry.xattrs:
        found["xattrs"] = [[name, value.hex()] for name, value in entry.xattrs]
    if entry.extents is not None:
        found["extents"] = entry.extents
    if piece.dialect:
        found["dialect"] = piece.dialect
    if piece.redirect is not None:
        found["redirect"] = b"/".join(piece.redirect).hex()
    for name in LACKING:
        if getattr(piece, name):
            found[name] = True
    return found


class LayerIndex:
    """The records of one layer. The columns are read as attributes; close it after use."""

    def __init__(self, fd: int) -> None:
        """Map the file, which may be closed afterwards. Raises: Damaged; OSError."""
        self.columns = Columns(fd)
        self.about = self.columns.about
        self.kind, self.mode = self.columns["kind"], self.columns["mode"]  # `kind` as `kind_of` understands it
        self.uid, self.gid = self.columns["uid"], self.columns["gid"]
        self.mtime_ns, self.size = self.columns["mtime_ns"], self.columns["size"]
        self.stored, self.offset = self.columns["stored"], self.columns["offset"]
        self._paths, self._path = self.columns["paths"], self.columns["path"]
        self._extras, self._extra = self.columns["extras"], self.columns["extra"]
        self._content, self._head = self.columns["content"], self.columns["head"]

    def __len__(self) -> int:
        return len(self.kind)

    def kind_of(self, record: int) -> int:
        """The kind in `entry` of a record."""
        code: int = self.kind[record]
        return code << _FORMAT if code > 0 else code

    def path(self, record: int) -> bytes:
        """The path of a record, joined by slashes; empty for the root."""
        return text(self._paths, self._path, record)

    def content(self, record: int) -> bytes:
        """The XXH3-128 of a file's data; empty when it has none or was not taken."""
        found = bytes(self._content[record * _DIGEST : (record + 1) * _DIGEST])
        return b"" if found == _NO_CONTENT else found

    def head(self, record: int) -> bytes:
        """The first bytes of a file's data, at most HEAD."""
        return bytes(self._head[record * HEAD : (record + 1) * HEAD])

    def extra(self, record: int) -> dict[str, Any]:
        """The fields that few entries have (see `_extra`); empty for other entries."""
        data = text(self._extras, self._extra, record)
        found: dict[str, Any] = json.loads(data) if data else {}
        return found

    def entry(self, record: int) -> Entry:
        """The record as an entry."""
        extra = self.extra(record)
        return Entry(
            split(self.path(record)),
            self.kind_of(record),
            self.mode[record],
            self.uid[record],
            self.gid[record],
            self.mtime_ns[record],
            self.size[record],
            bytes.fromhex(extra.get("target", "")),
            split(bytes.fromhex(extra.get("link", ""))),
            tuple(extra.get("device", (0, 0))),
            tuple((name, bytes.fromhex(value)) for name, value in extra.get("xattrs", ())),
            tuple(map(tuple, extra["extents"])) if "extents" in extra else None,
        )

    def close(self) -> None:
        for name in [name for name, value in vars(self).items() if isinstance(value, memoryview)]:
            delattr(self, name)
        self.columns.close()


def split(path: bytes) -> Path:
    """A joined path as names."""
    return tuple(path.split(b"/")) if path else ()

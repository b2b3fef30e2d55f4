"""Check a layer for contradictory, orphaned, meaningless and foreign marks, and for malformed noted owners.

Knows trees and tars. Does not know command lines. Changes nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from layers import owners
from layers.compression import Readable
from layers.data_place import CHANGED, MISSING, data_place
from layers.entry import DIRECTORY, OPAQUE, WHITEOUT
from layers.errors import Refused
from layers.fingerprint import read_xattrs
from layers.limits import Limits
from layers.safe_open import Path
from layers.tarread import entries
from layers.tarstream import TarStream
from layers.tree import LayerTree, Node, View
from unionfs import markers

_FAMILY: Final = {"aufs": "aufs", "device": "overlay", "xattr": "overlay"}
"""Form of a mark -> its dialect."""


class Finding(NamedTuple):
    """A fault of a layer: the path that has it, and a sentence."""

    path: bytes
    what: str


def of_directory(branch: LayerTree, beneath: View | None, dialect: str | None) -> Iterator[Finding]:
    """Check a layer directory. Orphaned marks are found only if `beneath` gives the layers beneath; `dialect` is the
    one that marks should have, None for any."""
    for path, node in View([branch]).walk():
        yield from _owner(branch, path)
        if node.kind == stat.S_IFREG and node.size:
            yield from _data(branch, path, beneath)
        if node.is_dir:
            yield from _directory(branch, path, beneath, dialect)


def of_tar(source: Readable) -> Iterator[Finding]:
    """Check a layer's tar. Ends at the first entry that unpacking would refuse, and reports that."""
    hidden: set[Path] = set()
    brought: dict[Path, int] = {}
    limits = Limits()
    try:
        with TarStream(source, limits) as stream:
            for entry in entries(stream, limits):
                if entry.kind == WHITEOUT:
                    if entry.path in hidden:
                        yield Finding(b"/".join(entry.path), "whited out twice")
                    hidden.add(entry.path)
                elif entry.kind != OPAQUE:
                    if entry.path in brought and (entry.kind, brought[entry.path]) != (DIRECTORY, DIRECTORY):
                        yield Finding(
                            b"/".join(entry.path), "the tar has two entries of this path; the later one counts"
                        )
                    brought[entry.path] = entry.kind
            stream.finish()
    except Refused as error:
        yield Finding(os.fsencode(error.subject), error.why)
    for path in sorted(hidden & brought.keys()):
        if brought[path] != DIRECTORY:
            yield Finding(b"/".join(path), _BOTH)
    for path in sorted(brought):
        if any(path[:depth] in brought and brought[path[:depth]] != DIRECTORY for depth in range(1, len(path))):
            yield Finding(b"/".join(path), "it is below an entry that is not a directory")


_BOTH: Final = "both a whiteout and an entry; the whiteout hides only entries of the layers below at this path"


def _directory(branch: LayerTree, path: Path, beneath: View | None, dialect: str | None) -> Iterator[Finding]:
    scan = branch.scan(path)
    for name in scan.strange:
        if not name.startswith(markers.WHITEOUT_PREFIX * 2):
            yield Finding(b"/".join((*path, name)), "a whiteout that hides no name")
        else:
            yield Finding(b"/".join((*path, name)), "a bookkeeping file of AUFS, which has no meaning in a layer")
    below = beneath.find(path) if beneath is not None else None
    for name, form in scan.whiteouts.items():
        where = b"/".join((*path, name))
        if dialect is not None and _FAMILY[form] != dialect:
            yield Finding(where, f"a whiteout of the {_FAMILY[form]} dialect ({form})")
        if name in scan.entries:
            yield Finding(where, _BOTH)
        elif beneath is not None and not _has(beneath, below, name):
            yield Finding(where, "a whiteout of a name that no layer below has")
    if scan.opaque:
        where = b"/".join(path)
        if dialect is not None and _FAMILY[scan.opaque] != dialect:
            yield Finding(where, f"an opaque mark of the {_FAMILY[scan.opaque]} dialect")
        if path and beneath is not None and (below is None or not below.is_dir):
            yield Finding(where, "opaque, but no layer below has such a directory")
        if scan.redirect is not None:
            yield Finding(where, "both opaque and redirected; the redirect has no effect")
    elif scan.redirect is not None and beneath is not None:
        components = markers.redirect_components(scan.redirect) or (*path[:-1], scan.redirect)
        target = beneath.find(components)
        if target is None or not target.is_dir:
            yield Finding(b"/".join(path), f"redirected to {os.fsdecode(scan.redirect)!r}, which no layer below has")
    yield from _bad_redirect(branch, path)


def _has(beneath: View, below: Node | None, name: bytes) -> bool:
    return below is not None and below.is_dir and beneath.lookup(below.sources, name) is not None


def _bad_redirect(branch: LayerTree, path: Path) -> Iterator[Finding]:
    found = branch.xattrs(path)
    for mark in markers.REDIRECT_XATTRS:
        value = found.get(mark)
        if value is not None and not markers.is_sane_redirect(value):
            yield Finding(b"/".join(path), f"a redirect that is not followed: {value[:100]!r}")


def _data(branch: LayerTree, path: Path, beneath: View | None) -> Iterator[Finding]:
    """Report a file whose data are, in whole or in part, in a layer beneath, and whether that layer still has them."""
    found = branch.xattrs(path)
    if not any(mark in found for mark in markers.METACOPY_XATTRS):
        return
    where = b"/".join(path)
    try:
        place = data_place(View([branch, *beneath.branches]), path) if beneath is not None else None
    except OSError as error:
        yield Finding(where, error.strerror or str(error))
        return
    if place is not None and place.fault == MISSING:
        yield Finding(where, "its data are missing: no layer beneath has the file that it was copied up from")
    elif place is not None and place.fault == CHANGED:
        yield Finding(where, "its data are lost: the file beneath that it was copied up from has changed since")
    elif markers.is_partial(found):
        yield Finding(where, "has only a part of its data: no other reader than its union can use it")
    else:
        yield Finding(where, "has its data in a layer beneath (metacopy)")


def _owner(branch: LayerTree, path: Path) -> Iterator[Finding]:
    fd = branch.open_path(path)
    try:
        st = os.fstat(fd)
        found = read_xattrs(fd)
    finally:
        os.close(fd)
    where = b"/".join(path)
    values = [found[name] for name in owners.NAMES if name in found]
    for value in values:
        noted = owners.read(value)
        if noted is None:
            yield Finding(where, f"the noted owner is malformed: {value[:100]!r}")
            continue
        # A regular file may stand for a device, fifo, socket or symlink that could not be made; never for a directory.
        kind = stat.S_IFMT(st.st_mode)
        stand_in = kind == stat.S_IFREG and noted.kind != stat.S_IFDIR
        if noted.kind and noted.kind != kind and not stand_in:
            yield Finding(where, "the noted owner is for another type of file than this one")
    if len({owners.read(value) for value in values} - {None}) > 1:
        yield Finding(where, "two noted owners that contradict each other")

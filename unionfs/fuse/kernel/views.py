"""Serve the view of a union (core.view) on the connection of the union: a second dispatcher for its node ids.

The root of the view is found by one name in the root directory of the union, which is looked up for those processes
only that `fuse.view_offer` lets. Nothing else leads from the union to the view: no listing has the name, the kernel
asks again at every lookup of it, the view has no file handles, and inodes that the kernel still has have a random
generation.

The kernel must not cache listings of a view, since they change with the union. It caches a listing when it has got the
empty answer at its end. So a view's listing ends with an answer that is not empty, and too short for an entry.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from unionfs.core import takeover
from unionfs.core.attrs import ROOT, VIEW
from unionfs.core.view import View
from unionfs.fuse.kernel import abi, encode
from unionfs.fuse.kernel.abi import Op
from unionfs.fuse.kernel.completion import Completion
from unionfs.fuse.kernel.decode import BODY, Head
from unionfs.fuse.kernel.session import MAX_WRITE
from unionfs.fuse.view_name import ASKED, PREFIX

if TYPE_CHECKING:
    from unionfs.fuse.kernel.dispatch import Dispatcher

_read_in: Final = abi.READ_IN.unpack_from

_END: Final = bytes(8)
"""A listing's end: less than a struct fuse_dirent."""

_BETWEEN_UNIONS: Final = (int(Op.COPY_FILE_RANGE), int(Op.COPY_FILE_RANGE_64))
"""Requests that may name a node of the view and one of the union: the kernel copies by itself after EXDEV."""


def root(main: Dispatcher, unique: int, name: bytes, head: Head) -> bytes | None:
    """Return the reply to a LOOKUP in the union's root, if it finds the view; None: the name is an ordinary one. The
    first such LOOKUP makes the view."""
    offer = main.session.view_offer
    if offer is None or not offer.is_for(name, head[4], head[6]):
        return None
    if main.record is not None:
        main.record.view_given()
    view = dispatcher(main)
    assert view is not None
    offer.give(head[6])
    assert isinstance(view.union, View)
    entry = view.union.root_entry()
    # Valid for no time: the kernel asks at every lookup whether it still leads there.
    encoder = encode.Encoder(0.0)
    encoder.set_generation(view.encoder.generation)
    return encoder.entry(unique, entry)


def asked(main: Dispatcher, attribute: bytes, head: Head) -> bytes | None:
    """Return the value of an extended attribute of the union's root whose name begins with ASKED: the time of the last
    statfs(2) on the union. None if the name is not the view's, or the calling process may not have it."""
    offer = main.session.view_offer
    if offer is None or not offer.is_for(PREFIX + attribute.removeprefix(ASKED), head[4], head[6]):
        return None
    return b"%d" % offer.asked_ns


def dispatcher(main: Dispatcher) -> Dispatcher | None:
    """Return the dispatcher of the view, which is made when it is first needed; None: the union offers none."""
    session = main.session
    if main.view is None and session.view_offer is not None:
        union = View(main.union)
        kept = session.kept
        if kept is not None:
            assert kept.view_record is not None  # there is an offer
            takeover.keep_record(union, kept.view_record)
            if kept.continues:
                takeover.take_over(union)
        main.view = main.for_view(union)
        main.view.unanswered = takeover.unanswered(union)
        main.completion = Completion(union, main.slow.append)
        session.view_offer.view = union
    return main.view


def answer(main: Dispatcher, head: Head, buf: memoryview, end: int) -> bytes | memoryview | None:
    """Serve a request for a node of the view. Returns its reply, or None as `Dispatcher.handle` does."""
    opcode, unique = head[1], head[2]
    view = dispatcher(main) if main.continues else main.view
    if view is None or opcode in _BETWEEN_UNIONS:
        return encode.error(unique, errno.ESTALE if view is None else errno.EXDEV)
    if opcode == Op.FORGET:
        if main.record is not None:
            main.record.forgetting(unique, 0)
        view.encoder.set_id.discard(head[3])
    kept, first_unique = main.session.kept, unique & ~abi.UNIQUE_RESEND
    record = kept.view_record if kept is not None else None
    if record is not None:
        record.serve(first_unique)
    reply = view.answer((head[0], opcode, unique, head[3] & ~VIEW, *head[4:]), buf, end)
    if unique != first_unique and record is not None:
        view.take_back(record, first_unique)
    return reply


def refuse_name(main: Dispatcher, parent: int, name: bytes, head: Head) -> None:
    """Raise EBUSY if a name in the directory `parent` is the view's for the process that asks, as for a mountpoint: the
    kernel would take the view's root for the directory that is removed or replaced."""
    if parent == ROOT and name.startswith(PREFIX):
        offer = main.session.view_offer
        if offer is not None and offer.is_for(name, head[4], head[6]):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), name)


def forget(main: Dispatcher, nodeid: int, count: int) -> None:
    """Forget a node of the view, as BATCH_FORGET asks."""
    view = dispatcher(main) if main.continues else main.view
    if view is not None:
        view.union.forget(nodeid & ~VIEW, count)
        view.encoder.set_id.discard(nodeid)


def readdir(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> bytes:
    """Answer READDIR."""
    _fh, cookie, size, _read_flags, _owner, _flags, _ = _read_in(buf, BODY)
    return encode.payload(unique, _lines(self, nodeid, cookie, min(size, MAX_WRITE), abi.DIRENT.size, encode.dirent))


def readdirplus(self: Dispatcher, unique: int, nodeid: int, head: Head, buf: memoryview, end: int) -> bytes:
    """Answer READDIRPLUS without the attributes: programs that compare ask for those of few entries."""
    _fh, cookie, size, _read_flags, _owner, _flags, _ = _read_in(buf, BODY)
    room = min(size, MAX_WRITE)
    return encode.payload(unique, _lines(self, nodeid, cookie, room, abi.DIRENTPLUS.size, encode.bare_direntplus))


def _lines(
    self: Dispatcher, nodeid: int, cookie: int, size: int, fixed: int, line: Callable[[bytes, int, int, int], bytes]
) -> list[bytes]:
    """Return the entries after `cookie` that fit `size` bytes, encoded by `line`, which takes `fixed` bytes beside the
    name. EINVAL when not even one fits."""
    lines: list[bytes] = []
    room = size
    for name, after, ino, kind in self.union.readdir(nodeid, cookie):
        room -= fixed + ((len(name) + 7) & ~7)
        if room < 0:
            break
        lines.append(line(name, after, ino, kind))
    if lines or room == size:
        return lines or [_END]
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

"""Do what a copy-up left for after its answer (`core.deferred`): put times back, copy the next file of a storm ahead.

Nobody waits for any of this, and nobody is told when it fails: whoever asks for the file later does it again and hears
why.
"""

from __future__ import annotations

from time import perf_counter
from typing import Final

from unionfs.core import copyup
from unionfs.core.attrs import IFMT, IFREG
from unionfs.core.copydata import Copy
from unionfs.core.deferred import Afterwards, Ready
from unionfs.core.node import FileNode
from unionfs.core.union_state import UnionState

_AHEAD: Final = 64 << 10
"""Bytes that are copied though nobody has asked for them yet."""

_ROOM: Final = 256 * _AHEAD
"""With less room than this nothing is copied ahead: somebody who does ask may need the last of it."""

_ROOM_FOR: Final = 64
"""Copies made ahead between two looks at how much room there is."""


def run_deferred(tree: UnionState, *, times: bool = True) -> None:
    """Do what was left for after the answer (see `core.deferred`); without `times`, those of the directory may wait
    until `copyup.put_times_back`. Never raises."""
    afterwards = tree.afterwards
    if afterwards is None:
        return
    afterwards.due = False
    try:
        if times:
            copyup.put_times_back(tree)
        if afterwards.last is not None and afterwards.ready is not None:
            rest(tree)  # another one was asked for
        node = afterwards.guess()
        if node is not None and not tree.is_strict:
            _copy_ahead(tree, node, afterwards)
    except OSError:  # the directory has gone; or whoever asks for the file will hear why
        afterwards.made = 0  # look at the room before the next


def end(tree: UnionState) -> None:
    """Nobody asks any more, nor perhaps hears the last answer: leave nothing undone. Never raises."""
    if tree.afterwards is not None:
        tree.afterwards.last = None  # what would be next is not worth a guess
        run_deferred(tree)
        rest(tree)


def rest(tree: UnionState) -> None:
    """Nobody asks now: remove what was copied in vain, and put times back. Never raises."""
    copyup.put_times_back(tree)
    afterwards = tree.afterwards
    ready = afterwards.give_up() if afterwards is not None else None
    if ready is not None:
        tree.staging.dispose(ready.leaf)


def _copy_ahead(tree: UnionState, node: FileNode, afterwards: Afterwards) -> None:
    since = perf_counter()
    if node.links is not None or node.home.branch.writable:
        return
    st = tree.stat(node)
    if st.st_mode & IFMT != IFREG or st.st_size > _AHEAD or st.st_nlink > 1:
        return
    if not afterwards.made % _ROOM_FOR and not tree.staging.has_room(_ROOM):
        return
    afterwards.made += 1
    wanted = afterwards.last_wanted if st.st_mode & 0o7777 == afterwards.last_mode else None
    length = st.st_size
    src = tree.source_fd(node) if length else None
    if copyup.has_other_data(node):
        return
    leaf, dst, mode = copyup.make_copy(tree, st, wanted)
    try:
        copied, reflinked = 0, False
        if length > copyup.AT_ONCE and src is not None:
            copy = Copy(src.fd, dst.fd, length)
            copy.run()
            copied, reflinked = copy.copied, copy.reflinked
        elif src is not None:
            copied = copyup.copy_few(src, dst, length)
        kept_mode = copyup.complete(tree, node, src, dst, leaf, length, st, mode)
    except BaseException:
        tree.staging.dispose(leaf)
        raise
    if not kept_mode:
        mode = st.st_mode & 0o7777
    afterwards.ready = Ready(node, st, leaf, dst, mode, kept_mode, copied, reflinked, since)

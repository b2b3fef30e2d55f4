"""What a copy-up leaves for the moment after its answer, while who asked goes on: the times of the directory it went
to, and the copy of the file that is likely to be next.

Programs that change a whole tree take one file after the other: in the order of the listing (chmod -R, find) or in
that of the names (what a shell makes of `*`). After two that came as guessed, the next small one is copied to the
staging directory before anybody asks: a guess that comes true is renamed into place, one that does not, or is not
asked for before the daemon sleeps, is removed, and the next is made after twice as many that would have been right.

The times may wait as long as nothing but such files is asked for: a directory whose files are all changed gets them
back once.

Holds what is left to do; `core.prefetch` does it. Used only where somebody promises to call when an answer was given
and before sleeping (`Union.answer_first`).
"""

from __future__ import annotations

from bisect import bisect_right
from time import perf_counter
from typing import Final

from unionfs.core.branch import BranchDir, Stat
from unionfs.core.fds import FileFd
from unionfs.core.node import DirNode, FileNode

_WORTH: Final = 2
_WORTH_MOST: Final = 64
_LOOK_AT: Final = 4  # names after the last one, among which a file is looked for
_SORTED_MOST: Final = 1024  # children of a directory that are put in the order of their names
_FRESH_S: Final = 0.002
"""So long after it was copied nobody looks whether the lower file is still what it was: copying takes as long."""


class Ready:
    """A whole copy in the staging directory that nobody has asked for yet."""

    __slots__ = ("node", "st", "leaf", "dst", "mode", "kept_mode", "copied", "reflinked", "seconds", "until")

    def __init__(
        self,
        node: FileNode,
        st: Stat,
        leaf: bytes,
        dst: FileFd,
        mode: int,
        kept_mode: bool,
        copied: int,
        reflinked: bool,
        since: float,
    ) -> None:
        self.node = node  # immutable, as is all the rest
        self.st = st  # of the lower file, before it was copied
        self.leaf = leaf
        self.dst = dst
        self.mode = mode  # its permissions
        self.kept_mode = kept_mode  # they are those that it was made with
        self.copied = copied  # bytes
        self.reflinked = reflinked
        now = perf_counter()
        self.seconds = now - since  # that it took
        self.until = now + _FRESH_S

    def is_of(self, st: Stat) -> bool:
        """Whether the lower file is what it was."""
        mine = self.st
        return (
            st.st_ctime_ns == mine.st_ctime_ns
            and st.st_mtime_ns == mine.st_mtime_ns
            and st.st_size == mine.st_size
            and st.st_ino == mine.st_ino
            and st.st_dev == mine.st_dev
            and st.st_nlink == mine.st_nlink
            and st.st_mode == mine.st_mode
        )


class Afterwards:
    """What is left to do, in one union."""

    def __init__(self) -> None:
        self.due = False  # there is something; set with the next two, reset by ahead.run_deferred
        self.touched: tuple[DirNode, BranchDir, Stat] | None = None
        """The directory whose times are to be put back: where it is in the upper, and the times it had."""
        self.last: FileNode | None = None  # the file copied up since the last time
        self.ready: Ready | None = None
        self.made = 0  # copies made ahead, so far
        self._guess: FileNode | None = None
        self._guessed_after: FileNode | None = None
        self._right = 0  # guesses that came true, one after the other
        self._worth = _WORTH  # so many make the next one worth copying
        self._missed: FileNode | None = None  # after which the guess was wrong
        self._by_name = False  # guess in the order of the names; turned over when the other would have been right
        self._sorted: list[bytes] = []  # names of the children of `_sorted_of`, some perhaps gone or missing
        self._sorted_of: DirNode | None = None
        self.last_mode = 0  # permissions of `last`, before
        self.last_wanted: int | None = None  # those that it was to get, if any

    def copied(self, node: FileNode, mode: int, wanted: int | None) -> None:
        """`node` was copied up to be changed: it had permissions `mode` and is to get `wanted`."""
        guess = self._guess
        if node is guess:
            self._right += 1
        elif guess is not None and guess.parent is node.parent:
            self._right = 0
            self._missed = self._guessed_after
        self._guess = None
        self.last, self.last_mode, self.last_wanted = node, mode, wanted
        self.due = True

    def guess(self) -> FileNode | None:
        """The file after `last`, in the listing or by name, if it is known and worth copying now."""
        last = self.last
        if last is None:
            return None
        self.last = None
        missed, self._missed = self._missed, None
        if missed is not None and last.name in self._names_after(missed, not self._by_name)[:1]:
            self._by_name = not self._by_name
        self._guessed_after = last
        for name in self._names_after(last, self._by_name):
            child = last.parent.children.get(name)
            if isinstance(child, FileNode) and child.has_data:
                self._guess = child
                return child if self._right >= self._worth else None
        return None

    def _names_after(self, node: FileNode, by_name: bool) -> list[bytes]:
        """The next few names in the order of the names, or of the listing."""
        parent, name = node.parent, node.name
        if by_name:
            if self._sorted_of is not parent:
                if len(parent.children) > _SORTED_MOST:
                    return []
                self._sorted, self._sorted_of = sorted(parent.children), parent
            at = bisect_right(self._sorted, name)
            return self._sorted[at : at + _LOOK_AT]
        order = parent.order
        return order.following(name, _LOOK_AT) if order is not None else []

    def seen(self, node: FileNode) -> Stat | None:
        """What the lower file of a `ready` copy was a moment ago. Not for who promises to notice what others change."""
        ready = self.ready
        return ready.st if ready is not None and ready.node is node and perf_counter() < ready.until else None

    def take(self, node: FileNode) -> Ready | None:
        """The copy of `node`, which is the caller's from now on."""
        ready = self.ready
        if ready is None or ready.node is not node:
            return None
        self.ready = None
        self._worth = _WORTH
        return ready

    def give_up(self) -> Ready | None:
        """The copy that was made in vain, for the caller to remove."""
        ready = self.ready
        if ready is not None:
            self.ready = None
            self._right = 0
            self._worth = min(2 * self._worth, _WORTH_MOST)
        return ready

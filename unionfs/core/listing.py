"""The order of a merged listing, with cookies that stay valid while the directory changes.

A cookie belongs to a name, not to a position: it is the name's hash (XXH3, 63 bits), and listings run in the order of
cookies. So a reader can be resumed after any entry however many were added or removed, and also after the listing was
dropped from memory, or by another daemon. Knows nothing of branches.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Final

from xxhash import xxh3_64_intdigest

_hash: Final = xxh3_64_intdigest  # compiled code has no need to look it up at each call

FIRST: Final = 3
"""The least cookie of an entry; 1 and 2 are "." and "..", 0 starts a listing (readdir in fuse.h, telldir(3))."""


def cookie_of(name: bytes) -> int:
    """Return the cookie of a name: its hash, in 63 bits so that it fits off_t, and at least FIRST."""
    cookie: int = _hash(name) >> 1
    return max(cookie, FIRST)


class Listing:
    """The names of a directory in the order of their cookies.

    Removing and adding are quick: a removed name stays in the arrays and is skipped, an added one stays in `fresh`
    until the next read.
    """

    __slots__ = ("cookies", "names", "gone", "fresh", "_at")

    def __init__(self, names: Iterable[bytes]) -> None:
        self.cookies: array[int] = array("Q")  # ascending, without duplicates
        self.names: list[bytes] = []  # names[i] has cookies[i]
        self.gone: set[bytes] = set()  # in `names`, but no longer in the directory
        self.fresh: list[bytes] = list(names)  # in the directory, not yet in `names`
        self._at = -1  # index that `following` reached last; may be outdated

    def add(self, name: bytes) -> None:
        """Add a name that is new in the directory."""
        if name in self.gone:
            self.gone.discard(name)
        else:
            self.fresh.append(name)

    def discard(self, name: bytes) -> None:
        """Remove a name that has left the directory."""
        if self.fresh and name in self.fresh:
            self.fresh.remove(name)
        else:
            self.gone.add(name)

    def after(self, cookie: int, most: int) -> list[tuple[int, bytes]]:
        """Return (cookie, name) of up to `most` names after `cookie`; none only at the end."""
        if self.fresh or len(self.gone) > len(self.names) // 2:
            self._merge_fresh()
        gone = self.gone
        first = bisect_right(self.cookies, cookie)
        while first < len(self.names):
            behind = first + most
            found = list(zip(self.cookies[first:behind], self.names[first:behind], strict=True))
            if gone:
                found = [line for line in found if line[1] not in gone]
            if found:
                return found
            first = behind
        return []

    def following(self, name: bytes, most: int) -> list[bytes]:
        """Return up to `most` names after `name`, without those in `fresh`; removed names may be among them."""
        names, at = self.names, self._at
        if not 0 <= at < len(names) or names[at] != name:
            at = bisect_right(self.cookies, cookie_of(name)) - 1
        self._at = at + 1  # the next call most likely asks from the first of these names on
        return names[at + 1 : at + 1 + most]

    def _merge_fresh(self) -> None:
        if len(self.fresh) < 16 and self.names and not len(self.gone) > len(self.names) // 2:
            for name in self.fresh:
                self._insert(name)
            self.fresh.clear()
            return
        merged = [
            (cookie, name) for cookie, name in zip(self.cookies, self.names, strict=True) if name not in self.gone
        ]
        merged.extend((cookie_of(name), name) for name in self.fresh)
        merged.sort()
        self.gone.clear()
        self.fresh.clear()
        cookies: list[int] = []
        previous = 0
        for cookie, _ in merged:
            previous = (
                cookie if cookie > previous else previous + 1
            )  # two names of one hash: the second moves up by one
            cookies.append(previous)
        self.cookies = array("Q", cookies)
        self.names = [name for _, name in merged]

    def _insert(self, name: bytes) -> None:
        cookie = cookie_of(name)
        index = bisect_left(self.cookies, cookie)
        while index < len(self.cookies) and self.cookies[index] == cookie:
            index, cookie = index + 1, cookie + 1
        self.cookies.insert(index, cookie)
        self.names.insert(index, name)

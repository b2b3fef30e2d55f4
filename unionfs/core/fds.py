"""A cache of descriptors, each of which may be closed at any time and opened again by name.

Owns the limit. Knows nothing of branches or nodes: an owner is any object with a `held` field.

Eviction is second chance (clock): a descriptor used since the hand last passed is spared once, so the few descriptors
that one operation needs are never closed under it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Protocol

from unionfs.core.partial import Partial


class FileFd:
    """An open descriptor, closed when the last reference to this object goes: a worker thread that holds the object
    can use `fd` even after the cache has dropped it.

    A local variable does not hold it to the end of a function: compiled code drops the reference after the last use of
    the name. Code that uses `fd` of an object without other references must do so in a `with` block.
    """

    __slots__ = ("fd", "used", "writable", "appends", "xattrs", "partial", "lower", "waits")

    def __init__(self, fd: int, writable: bool = False) -> None:
        self.fd = fd  # immutable
        self.writable = writable  # immutable: opened O_RDWR
        self.appends = False  # set once: opened O_APPEND, since the file is append-only
        self.xattrs: list[str] | None = None  # extended attributes of a lower file; set once, when listed
        self.partial: Partial | None = None  # set once: which data of a partial upper file are its own; the others ...
        self.lower: FileFd | None = None  # ... are in this lower file; None: that is missing or has changed
        self.waits: bool | None = None  # whether a read may wait for a server; set once, by fuse.kernel.data
        self.used = True  # set by the owner at each use, cleared by the clock's hand

    def __enter__(self) -> FileFd:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: `__del__` closes the descriptor, and other references may still use it."""

    def __del__(self) -> None:
        os.close(self.fd)


class Owner(Protocol):
    """An object that keeps a descriptor in the cache."""

    held: FileFd | None


class FdCache:
    """All cached descriptors of one union. Invariant: every owner in the clock was given a `held` by `keep`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit  # immutable: descriptors kept at most
        self._clock: deque[Owner] = deque()  # owners in the order of the hand; one whose `held` is gone is skipped

    def keep(self, owner: Owner, held: FileFd) -> None:
        """Let `owner` hold `held`, and evict other descriptors beyond the limit."""
        clock = self._clock
        if owner.held is None:
            clock.append(owner)
        owner.held = held
        while len(clock) > self.limit:
            victim = clock.popleft()
            kept = victim.held
            if kept is None:
                continue
            if kept.used:
                kept.used = False
                clock.append(victim)
            else:
                victim.held = None

    def drop(self, owner: Owner) -> None:
        """Drop the descriptor of `owner`, which is closed unless it is in use elsewhere."""
        owner.held = None

    def drop_if(self, is_wanted: Callable[[Owner], bool]) -> None:
        """Drop the descriptors of all owners of which `is_wanted` is true."""
        for owner in self._clock:
            if is_wanted(owner):
                owner.held = None

    def clear(self) -> None:
        """Drop all cached descriptors."""
        for owner in self._clock:
            owner.held = None
        self._clock.clear()

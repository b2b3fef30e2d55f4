"""A bounded cache of directory names: decides which directories drop their remembered names.

Second chance, as in `fds`: a directory used since the hand last passed keeps its names once more. The weight is the
number of names; one name costs some 200 bytes with its entry.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol


class CachedDirectory(Protocol):
    """A directory with remembered names."""

    cached_use: bool  # set at each use, cleared by the hand

    def name_count(self) -> int:
        """Return the number of names remembered now."""
        ...

    def forget_names(self) -> None:
        """Drop all remembered names."""
        ...


class NameCache:
    """Bounds the names remembered by all directories of a union."""

    def __init__(self, limit: int) -> None:
        self.limit = limit  # immutable: names
        self.weight = 0  # names remembered now; a directory counts one more, so that empty ones are bounded too
        self._clock: deque[CachedDirectory] = deque()

    def add(self, directory: CachedDirectory, weight: int) -> None:
        """Add `directory`, which remembers `weight` names now. Other directories may have to drop theirs."""
        directory.cached_use = True
        self.weight += weight + 1
        self._clock.append(directory)
        self._shrink(directory)

    def grow(self, directory: CachedDirectory, count: int) -> None:
        """Change the weight of a cached directory by `count` names (negative: fewer)."""
        self.weight += count
        if self.weight > self.limit:
            self._shrink(directory)

    def forget(self, directory: CachedDirectory) -> None:
        """Drop the names of `directory`, which are outdated, and remove it from the cache."""
        count = directory.name_count()
        directory.forget_names()
        try:
            self._clock.remove(directory)
        except ValueError:
            return
        self.weight = max(0, self.weight - count - 1)

    def forget_if(self, is_wanted: Callable[[CachedDirectory], bool]) -> None:
        """As `forget`, for all directories of which `is_wanted` is true."""
        kept: deque[CachedDirectory] = deque()
        for directory in self._clock:
            if is_wanted(directory):
                self.weight = max(0, self.weight - directory.name_count() - 1)
                directory.forget_names()
            else:
                kept.append(directory)
        self._clock = kept

    def _shrink(self, spared: CachedDirectory) -> None:
        clock = self._clock
        rounds = 2 * len(clock)
        while self.weight > self.limit and rounds:
            rounds -= 1
            victim = clock.popleft()
            if victim is spared or victim.cached_use:
                victim.cached_use = False
                clock.append(victim)
                continue
            self.weight = max(0, self.weight - victim.name_count() - 1)
            victim.forget_names()

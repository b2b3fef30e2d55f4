"""How many directory names the union remembers at once, and which directories have to forget theirs.

Second chance, as in `fds`: a directory used since the hand last passed keeps its names once more. The weight is the
number of names; one name costs some 200 bytes with its entry.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol


class Rememberer(Protocol):
    """A directory that remembers its names."""

    cached_use: bool  # set at each use, cleared by the hand

    def remembered(self) -> int:
        """How many names it remembers now."""
        ...

    def forget_names(self) -> None:
        """Remember none of them any more."""
        ...


class NameCache:
    """Bounds the names remembered by all directories of a union."""

    def __init__(self, limit: int) -> None:
        self.limit = limit  # immutable: names
        self.weight = 0  # names remembered now; a directory counts one more, so that empty ones are bounded too
        self._clock: deque[Rememberer] = deque()

    def add(self, directory: Rememberer, weight: int) -> None:
        """`directory` remembers `weight` names more and was not here yet. Others may have to forget theirs."""
        directory.cached_use = True
        self.weight += weight + 1
        self._clock.append(directory)
        self._shrink(directory)

    def grow(self, directory: Rememberer, count: int) -> None:
        """`directory`, which is here already, remembers `count` names more (or fewer)."""
        self.weight += count
        if self.weight > self.limit:
            self._shrink(directory)

    def forget(self, directory: Rememberer) -> None:
        """What `directory` remembers is not so any more."""
        remembered = directory.remembered()
        directory.forget_names()
        try:
            self._clock.remove(directory)
        except ValueError:
            return
        self.weight = max(0, self.weight - remembered - 1)

    def _shrink(self, spared: Rememberer) -> None:
        clock = self._clock
        rounds = 2 * len(clock)
        while self.weight > self.limit and rounds:
            rounds -= 1
            victim = clock.popleft()
            if victim is spared or victim.cached_use:
                victim.cached_use = False
                clock.append(victim)
                continue
            self.weight = max(0, self.weight - victim.remembered() - 1)
            victim.forget_names()

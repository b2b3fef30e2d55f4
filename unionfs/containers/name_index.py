"""The names of a store's containers as symbolic links, so that a look-up of a name reads one record, not all.

    ROOT/container-names/NAME -> ID

A link counts only if the record of this container has the name: a process may be killed between the writing of the two.
An older program has made no links; then all are made before the first is asked for.

Precondition of all functions: the lock of the containers is held by this process alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Final

from unionfs.containers import names

_DIRECTORY: Final = "container-names"
_NEW: Final = "container-names.new"


class NameIndex:
    """The names of the containers of one root directory."""

    def __init__(self, root: str, ids: Callable[[], Iterable[str]], name_of: Callable[[str], str | None]) -> None:
        self._root: Final = root
        self._directory: Final = os.path.join(root, _DIRECTORY)
        self._ids: Final = ids  # of all containers
        self._name_of: Final = name_of  # the name in the record of an id; None if that cannot be read

    def prepare(self) -> bool:
        """Make all links, if there are none; return whether that was so. Raises: OSError."""
        if os.path.lexists(self._directory):
            return False
        from unionfs.trees.remove import remove_path  # imports ctypes

        new = os.path.join(self._root, _NEW)
        remove_path(new)
        os.mkdir(new, 0o700)
        for container_id in self._ids():
            name = self._name_of(container_id)
            if name is not None and names.PATTERN.fullmatch(name):
                with contextlib.suppress(FileExistsError):
                    os.symlink(container_id, os.path.join(new, name))
        os.rename(new, self._directory)
        return True

    def has(self, name: str) -> bool:
        """Whether there is a link of this name, which may be outdated."""
        return os.path.lexists(self._link(name))

    def holder(self, name: str) -> str | None:
        """The id of the container that has this name; None if there is none."""
        container_id = self._target(name)
        return container_id if container_id is not None and self._name_of(container_id) == name else None

    def put(self, name: str, container_id: str) -> None:
        """Link a name that no container has. Raises: OSError."""
        try:
            os.symlink(container_id, self._link(name))
        except FileExistsError:  # outdated
            os.unlink(self._link(name))
            os.symlink(container_id, self._link(name))

    def drop(self, name: str, container_id: str) -> None:
        """Remove the link of a name, if it leads to this container. Never raises: without a record it is outdated."""
        if self._target(name) == container_id:
            with contextlib.suppress(OSError):
                os.unlink(self._link(name))

    def _target(self, name: str) -> str | None:
        if not names.PATTERN.fullmatch(name):  # the record is damaged
            return None
        try:
            target = os.readlink(self._link(name))
        except OSError:
            return None
        return None if "/" in target else target

    def _link(self, name: str) -> str:
        return os.path.join(self._directory, name)

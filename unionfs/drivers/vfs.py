"""The driver `vfs`: a full copy of the layers, made when the container is first mounted. Works everywhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final

from unionfs.drivers import whole
from unionfs.drivers.driver import DriverError, Provisions, Tree
from unionfs.syscalls import mounts
from unionfs.trees.remove import remove_path

is_whole: Final = True


def check(root: str, lowers: Sequence[str]) -> None:
    """Nothing can be known before there is no room left."""


def mount(tree: Tree, provisions: Provisions) -> None:
    fill(tree, _begin, tree.union.lowers)
    show(tree, provisions)


def remove(directory: str) -> None:
    """There is nothing that cannot be removed as files."""


def fill(tree: Tree, begin: Callable[[str], None], lowers: Sequence[str]) -> None:
    """Make the upper what the lowers show, if it is empty. The copy is built beside it: a crash leaves all or none.

    `begin` makes the directory that `lowers` are added to. Raises: DriverError.
    """
    upper = tree.union.upper
    assert upper is not None
    if os.path.isdir(upper) and os.listdir(
        upper
    ):  # it was copied before: even then it has the directories for mountpoints
        return
    new = os.path.join(tree.directory, "upper.new")
    try:
        remove_path(new)
        begin(new)
        if lowers:
            whole.add(lowers, new, unmapped_as_root=tree.union.unmapped_as_root, hidden=tree.union.hidden)
        os.rename(new, upper)
    except OSError as error:
        remove_path(new)
        raise DriverError.of("copying the layers", error) from error


def show(tree: Tree, provisions: Provisions) -> None:
    """Mount the upper as it is. Raises: DriverError."""
    try:
        mounts.mount(tree.union.upper, tree.merged, None, mounts.MS_BIND)
    except OSError as error:
        raise DriverError.of("mounting the copy", error) from error
    provisions.add(tree.merged)


def _begin(path: str) -> None:
    os.mkdir(path, 0o755)

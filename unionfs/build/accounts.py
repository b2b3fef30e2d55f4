"""Users and groups of an image, looked up in its own files. Preconditions: in a process with all ids."""

from __future__ import annotations

import stat
from typing import Final

from layers.safe_open import Path
from unionfs.build.copy_layer import Owner
from unionfs.build.trees import Layers
from unionfs.launcher import users

_LARGEST: Final = 16 << 20  # a passwd of a hundred thousand users


def of_chown(lowers: tuple[str, ...], text: str) -> Owner:
    """The ids of --chown=USER[:GROUP]. A number without a group is its own group (Dockerfile reference, COPY --chown).

    Raises: LaunchError when a name is not in the image's files.
    """
    name, _, group = text.partition(":")
    return of_user(lowers, f"{name}:{name}" if name.isdigit() and not group else text)


def of_user(lowers: tuple[str, ...], text: str) -> Owner:
    """The ids of USER. Raises: as `of_chown`."""
    with Layers(lowers) as tree:
        account = users.resolve(text, _text(tree, (b"etc", b"passwd")), _text(tree, (b"etc", b"group")))
    return Owner(account.uid, account.gid)


def _text(tree: Layers, path: Path) -> str:
    """The text of a file of the image; empty if there is no regular file."""
    try:
        found = tree.look(tree.resolve(path))
        if found.kind != stat.S_IFREG:
            return ""
        with open(tree.open(found), "rb") as file:
            return file.read(_LARGEST).decode(errors="surrogateescape")
    except OSError:
        return ""

"""Recognise command lines that mount or run a container, before anything else is imported."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MOUNT_HELPER_NAMES = ("fuse-overlayfs", "mount.unionfs", "mount.fuse.unionfs", "mount.fuse3.unionfs")
"""If the program has one of these names (a symlink), it is the mount helper, with any arguments."""

_NOT_IN_THE_BACKGROUND = frozenset(("-f", "-d", "--foreground", "--debug", "-h", "--help", "-V", "--version"))

_RULING_OUT = frozenset(("--tty", "--detach", "--as-me", "--debug", "--help"))
_RULED_OUT_BY = ("UNIONFS_TTY", "UNIONFS_DETACH", "UNIONFS_AS_ME", "UNIONFS_DEBUG")


def is_mount_helper(program: str, arguments: Sequence[str]) -> bool:
    """Whether this is a call of the mount helper: by the program's name, or by mount(8)'s form `SOURCE /MOUNTPOINT -o
    lowerdir=...`, in which SOURCE may equal a verb."""
    if os.path.basename(program) in MOUNT_HELPER_NAMES:
        return True
    if len(arguments) < 3 or not arguments[1].startswith("/") or not arguments[2].startswith("-o"):
        return False
    return any(",lowerdir=" in f",{option.removeprefix('-o')}" for option in arguments[2:])


def mounts_in_background(program: str, arguments: Sequence[str]) -> bool:
    """Whether the command line mounts and returns, and its mountpoint is not a descriptor of the caller (/dev/fd/N).

    False for some of these, such as those whose source does not look like a path: they are recognised later.
    """
    if not _NOT_IN_THE_BACKGROUND.isdisjoint(arguments) or any("/dev/fd/" in word for word in arguments):
        return False
    if os.environ.get("UNIONFS_DEBUG") or os.environ.get("UNIONFS_FOREGROUND"):
        return False
    if is_mount_helper(program, arguments):
        return True
    first = arguments[0] if arguments else ""
    if first == "mount":
        return True
    return ("/" in first or first.startswith("-o")) and any(word.startswith("-o") for word in arguments)


def runs_attached(arguments: Sequence[str]) -> bool:
    """Whether the command line runs a container without a terminal, waits for its end, and passes no descriptors of the
    caller to it, as `--as-me` does.

    May be False for such a command line if the container's command has an option that looks like a flag that excludes
    it.
    """
    if not arguments or arguments[0] != "run":
        return False
    if any(os.environ.get(name) for name in _RULED_OUT_BY):
        return False
    return not any(_rules_out(word) for word in arguments)


def _rules_out(word: str) -> bool:
    if word.startswith("--"):
        return word.partition("=")[0] in _RULING_OUT
    if word.startswith("-") and ("t" in word or "d" in word):
        return True
    return "/dev/fd/" in word or "/proc/self/" in word

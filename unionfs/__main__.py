"""The `unionfs` command. It first asks the parent of mounts (unionfs.mount_parent) to do the work, before it imports
the modules of the command line; if there is no parent, `unionfs.cli.entry` runs the command.
"""

from __future__ import annotations

import os
import sys

from unionfs import standard_descriptors
from unionfs.cli.mount_forms import mounts_in_background, runs_attached

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_ENTERING = frozenset(("run", "start", "restart", "exec", "build"))
"""Verbs of which a process becomes a container's command."""
_COLLECTED = (50_000, 20, 100)
"""Imports make no garbage; garbage collection during imports takes a tenth of a command's start."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` and return its exit code. Without `argv` run that of this process, and exit."""
    standard_descriptors.open_missing()
    if argv is None:
        _end(_run(sys.argv))
    from unionfs.cli import entry

    return entry.main(argv)


def _run(argv: list[str]) -> int:
    if argv[1:] in (["--version"], ["-V"]):
        from unionfs import compiled, version

        compiled.use_compiled()
        try:
            os.write(1, f"{version.text()}\n".encode())
            return 0
        except OSError:
            pass  # entry.main tries again, and reports the error
    if mounts_in_background(argv[0], argv[1:]):
        from unionfs.mount_parent import client

        try:
            status = client.mount(argv)
        except KeyboardInterrupt:
            return 130
        if status is not None:
            return status
    if runs_attached(argv[1:]):
        from unionfs.mount_parent import client

        try:
            status = client.run(argv)
        except KeyboardInterrupt:
            return 130
        if status is not None:
            return status
    if not _ENTERING.isdisjoint(argv[1:3]):
        from unionfs.launcher import own_executable

        own_executable.protect_if_writable()  # first, since it begins anew
    import gc

    gc.set_threshold(*_COLLECTED)
    from unionfs.cli import entry

    return entry.main(argv[1:])


def _end(status: int) -> NoReturn:
    """Exit without Python's finalization, which frees every object and takes up to 10 ms."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # None when the caller has closed the descriptor
            try:
                stream.flush()
            except (OSError, ValueError):
                pass
    os._exit(status)


if __name__ == "__main__":
    main()

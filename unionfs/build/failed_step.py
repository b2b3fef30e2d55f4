"""Keep a container of a RUN that failed, for inspection by `unionfs exec`, `diff` and `cp`."""

from __future__ import annotations

import os

from unionfs.build.jobs import call
from unionfs.build.run_container import DIFF, MOUNTPOINTS, Run
from unionfs.containers import create, rootfs
from unionfs.containers.config import ContainerConfig, RootFilesystem
from unionfs.containers.store import ContainerStore
from unionfs.launcher.spec import Process
from unionfs.trees.remove import remove_path


def keep(root: str, directory: str, wanted: Run, lowers: tuple[str, ...], name: str, shell: str) -> str:
    """Make a container of the store at `root` with the upper that the command left in DIRECTORY/diff; returns its name.
    It has the command's configuration without the --mount flags and secrets. It runs `shell` on a terminal, so that
    `unionfs exec` can enter it; empty: the command again.

    Raises: ContainerError, OSError.
    """
    process = Process(
        (shell,) if shell else wanted.command,
        wanted.environment,
        wanted.user,
        wanted.workdir,
        terminal=bool(shell),
        interactive=bool(shell),
        no_new_privileges=False,
    )
    config = ContainerConfig(process, RootFilesystem(lowers), network=wanted.network, logged=True)
    container = create.create(ContainerStore(root), config, name)

    def move() -> bytes:
        os.rmdir(container.upper)
        os.rename(os.path.join(directory, DIFF), container.upper)
        mountpoints = os.path.join(directory, MOUNTPOINTS)
        if os.path.exists(mountpoints):
            os.rename(mountpoints, os.path.join(container.directory, MOUNTPOINTS))
        remove_path(directory)
        rootfs.make_mountpoint_lower(container)
        return b""

    call(move)
    return container.name

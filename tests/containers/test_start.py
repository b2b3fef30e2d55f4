"""The record of a container while its command starts."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.timing import limit
from unionfs.containers import record, start
from unionfs.containers.config import ContainerConfig, RootFilesystem
from unionfs.containers.store import ContainerStore
from unionfs.launcher.spec import Process

pytestmark = pytest.mark.runs_as("root")


def test_a_command_that_fills_the_disk_at_once_runs_on(scratch: Path, root_user: object) -> None:
    """Its first write may come before it is recorded as running: its exit code stands, as with a full log."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", scratch], check=True, timeout=limit(30))
    try:
        store = ContainerStore(os.fspath(scratch))
        config = ContainerConfig(Process(("true",)), RootFilesystem(("/",)))
        container = store.claim(store.add(record.new(store.root, config, "c")))
        dd = ["dd", "if=/dev/zero", f"of={scratch}/full", "bs=4k"]
        assert subprocess.run(dd, check=False, capture_output=True, timeout=limit(30)).returncode == 1  # it is full
        warned: list[str] = []
        around = start._AroundCommand(container, warned.append, again=False, debug=False)
        around.started(os.getpid())
        assert warned == [
            "warning: c: it could not be recorded as running, so other commands cannot enter it: "
            + os.strerror(errno.ENOSPC)
        ]
        around.finish(3, has_started=True)
        assert warned[1:] == [f"warning: c: cleaning up the container failed: {os.strerror(errno.ENOSPC)}"]
        assert [name for name in os.listdir(container.directory) if name.startswith(".")] == []
    finally:
        subprocess.run(["umount", scratch], check=True, timeout=limit(30))

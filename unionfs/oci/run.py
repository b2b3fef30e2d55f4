"""Create a container, start it, wait for it and remove it, in one command."""

from __future__ import annotations

import os
import signal
from typing import Final

from unionfs.launcher.terminal import ConsoleSocket
from unionfs.oci import end, foreground, process
from unionfs.oci.config import load, parse
from unionfs.oci.create import Options, create
from unionfs.oci.errors import OciError
from unionfs.oci.report import Report
from unionfs.oci.start import start
from unionfs.syscalls.namespaces import set_child_subreaper

_DONE: Final = 0


def run(options: Options, report: Report, *, detach: bool, keep: bool) -> int:
    """Run the container. Return its exit code, or 0 at once with `detach`. Raises: OciError."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # an ignored SIGCHLD is inherited, and makes waitpid(2) fail
    if not detach:
        set_child_subreaper()
    console = None if detach or options.console_socket else _console_for(options)
    sent = process.SentConsole(console.child_end, _rows_and_columns(console)) if console else None
    container = create(options, report, sent)
    try:
        start(container, report)
    except OciError:
        end.delete(container, report, force=True)
        raise
    if detach:
        return _DONE
    status = foreground.wait(container.load().pid, console)
    if not keep:
        end.delete(container, report, force=True)
    return status


def _console_for(options: Options) -> ConsoleSocket | None:
    config = parse(load(os.path.join(options.bundle, "config.json")))
    return ConsoleSocket() if config.process and config.process.terminal else None


def _rows_and_columns(console: ConsoleSocket) -> tuple[int, int] | None:
    return None if console.size is None else process.rows_and_columns(console.size)

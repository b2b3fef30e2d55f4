"""The process that starts a daemon for `mounting`: a fresh interpreter, because a program with threads cannot fork.

Reads one JSON object with the daemon's options from stdin, and writes one with the result to stdout.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from unionfs.core.options import OptionError, Options
from unionfs.daemon.options import DaemonOptions, StartError
from unionfs.daemon.start import start
from unionfs.fuse.mounting import MountOptions
from unionfs.fuse.options import ServeOptions


def main() -> None:
    """Start the daemon, which inherits nothing of the calling program but a lifeline."""
    settings: dict[str, Any] = json.load(sys.stdin)
    warnings: list[str] = []
    try:
        answer: dict[str, Any] = {"pid": start(_options(settings), warn=warnings.append).pid, "warnings": warnings}
    except StartError as error:
        answer = {"failed": str(error), "hint": error.hint, "code": error.code}
    except OptionError as error:
        answer = {"failed": str(error), "hint": "", "code": error.errno}
    json.dump(answer, sys.stdout)


def _options(settings: dict[str, Any]) -> DaemonOptions:
    union = Options(**{**settings["union"], "lowers": tuple(settings["union"]["lowers"])})
    read_only = settings["read_only"]
    return DaemonOptions(
        union=union,
        mountpoint=settings["mountpoint"],
        mount=MountOptions(read_only=read_only, allow_other=settings["allow_other"]),
        serve=ServeOptions(read_only=read_only),
        log=settings["log"],
        watch=settings["watch"],
        exclusive=True,
        lifeline_fd=settings["lifeline_fd"],
    )

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
    told: dict[str, Any] = json.load(sys.stdin)
    warnings: list[str] = []
    try:
        answer: dict[str, Any] = {"pid": start(_options(told), warn=warnings.append).pid, "warnings": warnings}
    except StartError as error:
        answer = {"failed": str(error), "hint": error.hint, "code": error.code}
    except OptionError as error:
        answer = {"failed": str(error), "hint": "", "code": error.errno}
    json.dump(answer, sys.stdout)


def _options(told: dict[str, Any]) -> DaemonOptions:
    union = Options(**{**told["union"], "lowers": tuple(told["union"]["lowers"])})
    read_only = told["read_only"]
    return DaemonOptions(
        union=union,
        mountpoint=told["mountpoint"],
        mount=MountOptions(read_only=read_only, allow_other=told["allow_other"]),
        serve=ServeOptions(read_only=read_only),
        log=told["log"],
        watch=told["watch"],
        exclusive=True,
        lifeline_fd=told["lifeline_fd"],
    )

"""Run the hooks of a container: programs at points of its life, with its state as their standard input.

Source: OCI runtime specification, config.md "POSIX-platform Hooks".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from unionfs.launcher import hooks
from unionfs.launcher.spec import Hook
from unionfs.oci.errors import OciError
from unionfs.oci.report import Report


def run(name: str, wanted: Iterable[Hook], state: Mapping[str, Any]) -> None:
    """Run these hooks in order. Raises: OciError for the first that fails, with its output."""
    text = json.dumps(state).encode()
    for position, hook in enumerate(wanted):
        why = hooks.run(hook, text)
        if why:
            raise OciError(f"error running {name} hook #{position}: {hook.path}: {why}")


def run_late(name: str, wanted: Iterable[Hook], state: Mapping[str, Any], report: Report) -> None:
    """Run hooks whose failure is only a warning, since the container runs or has ended already."""
    text = json.dumps(state).encode()
    for position, hook in enumerate(wanted):
        why = hooks.run(hook, text)
        if why:
            report.warning(f"error running {name} hook #{position}: {hook.path}: {why}")

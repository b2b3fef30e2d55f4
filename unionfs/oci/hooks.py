"""Run the hooks of a container: programs at points of its life, with its state as their standard input.

Source: OCI runtime specification, config.md "POSIX-platform Hooks".
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

from unionfs.oci.config import Hook
from unionfs.oci.errors import OciError
from unionfs.oci.report import Report


def run(name: str, hooks: Iterable[Hook], state: Mapping[str, Any]) -> None:
    """Run these hooks in order. Raises: OciError at the first that fails, with what it said."""
    text = json.dumps(state).encode()
    for position, hook in enumerate(hooks):
        why = _run(hook, text)
        if why:
            raise OciError(f"error running {name} hook #{position}: {hook.path}: {why}")


def run_late(name: str, hooks: Iterable[Hook], state: Mapping[str, Any], report: Report) -> None:
    """Run hooks whose failure is only a warning: the container runs or has ended already."""
    text = json.dumps(state).encode()
    for position, hook in enumerate(hooks):
        why = _run(hook, text)
        if why:
            report.warning(f"error running {name} hook #{position}: {hook.path}: {why}")


def _run(hook: Hook, state: bytes) -> str:
    """Run a hook, in a session of its own. Return why it failed, or an empty text."""
    environment = dict(pair.partition("=")[::2] for pair in hook.env)
    try:
        process = subprocess.Popen(
            hook.args,
            executable=hook.path,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return (error.strerror or str(error)).lower()
    try:
        said, _ = process.communicate(state, hook.timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"hook ran past the timeout of {hook.timeout_s} s"
    if not process.returncode:
        return ""
    ended = f"exit status {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
    return f"{ended}, stdout and stderr: {said[-4096:].decode(errors='replace').strip()}"

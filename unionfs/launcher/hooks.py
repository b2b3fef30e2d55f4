"""Run one hook of a container: a program that gets the container's state as its standard input.

Source: OCI runtime specification, config.md "POSIX-platform Hooks", runtime.md "State".
"""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

from unionfs.launcher.spec import Hook, Spec


def run(hook: Hook, state: bytes) -> str:
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


def state(spec: Spec, status: str, pid: int) -> dict[str, Any]:
    """The state of a container, as hooks get it. Pure."""
    name = os.path.basename(os.path.dirname(spec.bundle))
    found = {"ociVersion": "1.0.2", "id": name, "status": status, "bundle": spec.bundle}
    return found if status == "stopped" else {**found, "pid": pid}

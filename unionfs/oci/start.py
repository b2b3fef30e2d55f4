"""Start a created container: its process executes the command."""

from __future__ import annotations

import json
import socket
from typing import Final

from unionfs.oci import hooks, state
from unionfs.oci.errors import OciError
from unionfs.oci.report import Report
from unionfs.oci.state import Container

_LONGEST: Final = 64 << 10
_WHY_NOT: Final = {
    "running": "cannot start an already running container",
    "stopped": "cannot start a container that has stopped",
}


def start(container: Container, report: Report) -> None:
    """Have the container's process execute its command, and wait for that. Raises: OciError."""
    with container.locked():
        saved, config = container.load(), container.config()
        status = state.status_of(container, saved)
        if status != "created":
            raise OciError(_WHY_NOT.get(status, f"cannot start a container in the {status} state"))
        try:
            connection = container.connect()
            if connection is None:
                container.note_started()
                raise OciError(_WHY_NOT["running"])
            with connection:
                connection.send(b"s")
                failure = _all_from(connection)
        except OSError as error:
            raise OciError.of("starting the container", error) from error
        container.note_started()
        if failure:
            raise OciError(json.loads(failure))
    hooks.run_late("poststart", config.hooks["poststart"], state.as_json(saved, config, "running"), report)


def _all_from(connection: socket.socket) -> bytes:
    found = b""
    while len(found) < _LONGEST and (data := connection.recv(_LONGEST)):
        found += data
    return found

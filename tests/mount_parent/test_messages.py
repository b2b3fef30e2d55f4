"""Messages between a process and the parent of mounts."""

from __future__ import annotations

import os
import signal
import socket

from unionfs.mount_parent import messages


def test_a_peer_that_has_gone_is_an_error_where_sigpipe_would_kill() -> None:
    """As in a monitor, whose request the forked process waits for only some seconds."""
    ours, theirs = socket.socketpair()
    theirs.close()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        try:
            messages.send(ours, bytes(10))
        except BrokenPipeError:
            os._exit(0)
        os._exit(1)
    ours.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

"""Commands started by nohup(1) or in a script's background: what is ignored at the start stays ignored."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.timing import limit
from tests.support.users import User

_IGNORING = ("bash", "-c", "trap '' HUP INT; exec \"$@\"", "bash")


def test_an_import_in_a_namespace(ordinary_user: User, scratch: Path) -> None:
    """The process outside of the user namespace does not pass on a SIGINT that it ignores."""
    tar = tiny.make(scratch / "tiny.tar").read_bytes()
    ordinary_user.own(scratch)
    argv = [*_IGNORING, *ordinary_user.unionfs_cmd, "import", "-q", "--root", os.fspath(scratch), "-", "tiny:1"]
    with subprocess.Popen(
        [*ordinary_user.prefix, *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(ordinary_user.env),
        cwd=ordinary_user.home,
        start_new_session=True,
    ) as importing:
        assert importing.stdin is not None
        importing.stdin.write(tar[: len(tar) // 2])
        importing.stdin.flush()  # more than a pipe holds: it is being read
        importing.send_signal(signal.SIGINT)
        out, err = importing.communicate(tar[len(tar) // 2 :], timeout=limit(60))
    assert (importing.returncode, err) == (0, b"")
    assert out.startswith(b"sha256:")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_the_snapshotter(scratch: Path, number: signal.Signals) -> None:
    """It serves until SIGTERM."""
    pytest.importorskip("grpc")
    from tests.snapshotter.serving import Snapshotter

    with Snapshotter(scratch, before=_IGNORING) as snapshotter:
        snapshotter.send(number)
        assert snapshotter.call("List") == []
        assert snapshotter.stop() == 0

"""How many system calls a message takes, exactly: those of the loop, since missing names in a directory that was listed
need none in the branches."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.kernel.engine_process import Mount
from tests.support.timing import limit

MESSAGES = 200

ASK = f"""
import os
os.listdir(".")
for number in range({MESSAGES}):
    if number == 100:
        print("ready", flush=True)
        input()
    assert not os.path.exists(f"missing{{number}}")
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is missing (Debian package strace)")
@pytest.mark.parametrize(("watch", "a_message"), [(False, ["read", "write"]), (True, ["poll", "read", "write"])])
def test_system_calls_of_a_message(
    tmp_path: Path, mount: Callable[..., Mount], watch: bool, a_message: list[str]
) -> None:
    (tmp_path / "lower").mkdir()
    mounted = mount(tmp_path / "lower", watch=watch, busy_poll="off")
    trace = tmp_path / "trace"
    argv = [sys.executable, "-I", "-S", "-c", ASK]
    with subprocess.Popen(argv, cwd=mounted.path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asking:
        assert asking.stdout is not None
        assert asking.stdout.readline() == "ready\n"
        tracing = subprocess.Popen(["strace", "-o", trace, "-p", str(mounted.pid)], stderr=subprocess.PIPE, text=True)
        with tracing:
            assert tracing.stderr is not None
            said = tracing.stderr.readline()
            if "attached" not in said:
                pytest.skip(f"the daemon cannot be traced: {said}")
            asking.communicate("go\n", timeout=limit(60))
            assert asking.returncode == 0
            tracing.send_signal(signal.SIGINT)
            tracing.wait(limit(60))
    lines = [line for line in trace.read_text().splitlines() if "EAGAIN" not in line]  # no changes in the branches
    calls = re.findall(r"^(\w+)\(", "\n".join(lines), re.MULTILINE)
    rest = calls[calls.index("write") + 1 :]  # behind the first answer, whose message may have come before the trace
    later = a_message * (MESSAGES - 100 - 1)
    assert rest[: len(later)] == later
    assert rest[len(later) :] in ([], a_message[:1]), "it sleeps again"

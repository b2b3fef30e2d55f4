"""The helper of a daemon that is killed while a thread of it waits in the kernel."""

from __future__ import annotations

import sys

import pytest

from tests.support import process
from tests.support.timing import limit

_SCRIPT = """
import ctypes, os, signal, sys, threading, time
from unionfs.fuse import death_helper
from unionfs.syscalls import namespaces

is_late, patience_s, sys_exit = sys.argv[1] == "late", float(sys.argv[2]), {"x86_64": 60}.get(os.uname().machine, 93)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
keeper, daemon = os.getpid(), os.fork()
if daemon == 0:
    daemon, set_signal = os.getpid(), namespaces.set_parent_death_signal

    def set_late(number):
        while is_late and death_helper._runs(daemon):
            time.sleep(0.001)
        set_signal(number)

    namespaces.set_parent_death_signal = set_late
    helper = death_helper.DeathHelper(None)
    helper.keeper = keeper
    helper.start()
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    if not is_late:
        time.sleep(0.5)  # so that the helper waits
    ctypes.CDLL(None).syscall(sys_exit, 0)  # ends the main thread only, as a kill does while another one cannot end
found = signal.sigtimedwait([signal.SIGCHLD], patience_s)
os.kill(daemon, signal.SIGKILL)
print("a process has sent a signal" if found is not None and found.si_pid != daemon else found)
"""


@pytest.mark.parametrize("when", ["late", "usual"])
def test_the_keeper_learns_that_the_main_thread_has_ended(when: str) -> None:
    """Also if it ends before its helper has asked for a signal: then none comes, and the process does not end."""
    done = process.run([sys.executable, "-c", _SCRIPT, when, str(limit(20))])
    assert done.stdout == "a process has sent a signal\n"

"""A child process that mounts a union and serves it with the engine, and the test's end of it.

Run as a program it takes one JSON argument, prints `ready` when the mount can be used, and then answers lines on its
standard input: `counts` with the messages so far as JSON, `sent` with the number of notifications, `go` with `gone`
after letting copy-ups go on that `slow` holds back. It ends when the union is unmounted.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.support import process
from tests.support.mountinfo import detach, mount_at
from tests.support.timing import limit
from unionfs import compiled

CHECKOUT = Path(__file__).resolve().parents[3]
_ENDS_WITHIN_S = 60


@dataclass(frozen=True)
class Plan:
    """What the child is to mount and how. Lowers top first; `slow`: copy-ups in threads move no bytes before `go`."""

    mountpoint: str
    lowers: Sequence[str]
    upper: str | None = None
    work: str | None = None
    writeback: bool = False
    slow: bool = False
    watch: bool = False
    durability: str = "normal"
    busy_poll: str = "auto"
    passthrough: bool = False


class Mount:
    """The test's end: a mounted union whose messages can be counted."""

    def __init__(self, child: subprocess.Popen[str], mountpoint: Path) -> None:
        self.path = mountpoint
        self._child = child
        self.pid = child.pid
        self._before: dict[str, int] = {}

    def ask(self, line: str) -> str:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()
        return self._child.stdout.readline()

    def new_messages(self) -> dict[str, int]:
        """The messages since the last time, by name, without INIT and FORGETs, which come when the kernel likes."""
        now: dict[str, int] = json.loads(self.ask("counts"))
        new = {name: count - self._before.get(name, 0) for name, count in now.items()}
        self._before = now
        return {name: count for name, count in new.items() if count and "FORGET" not in name and name != "INIT"}

    def run(self, *argv: str) -> str:
        """Run a program on the mount: what it printed."""
        return process.run(argv, cwd=self.path, timeout_s=120).stdout

    def python(self, code: str, *args: str) -> str:
        """Run a piece of Python on the mount. `os.open` is quiet; `open` asks every file whether it is a terminal."""
        # It enters the mount afterwards: since 3.12 Python looks for a file of its own where it starts.
        code = f"import os\nos.chdir({os.fspath(self.path)!r})\n{code}"
        return process.run([sys.executable, "-I", "-S", "-c", code, *args], cwd="/", timeout_s=120).stdout


@contextmanager
def serving(plan: Plan) -> Iterator[Mount]:
    """Mount and serve as `plan` says; unmount at the end.

    Raises: AssertionError when the child does not come up, complains, or does not end with its mount.
    """
    mountpoint = Path(plan.mountpoint)
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.fuse.kernel.engine_process", json.dumps(asdict(plan))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
        start_new_session=True,
    )
    try:
        assert child.stdout is not None
        ready = child.stdout.readline()
        assert ready == "ready\n", (ready, child.communicate(timeout=limit(_ENDS_WITHIN_S)))
        mount = Mount(child, mountpoint)
        mount.new_messages()
        yield mount
        if mount_at(mountpoint) is not None:
            umount = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
            process.run([*umount, plan.mountpoint])
        _, complaints = child.communicate(timeout=limit(_ENDS_WITHIN_S))
        assert child.returncode == 0, complaints
        assert complaints == "", complaints
    finally:
        while mount_at(mountpoint) is not None:
            detach(mountpoint)
        if child.poll() is None:
            process.kill_group(child)
        child.communicate(timeout=limit(_ENDS_WITHIN_S))


def _main(plan: Plan) -> None:
    compiled.use_compiled()
    from unionfs.core.copydata import CancelledError, Copy
    from unionfs.core.options import Options
    from unionfs.core.union import Union
    from unionfs.fuse.kernel import server
    from unionfs.fuse.kernel.session import Session, Tuning
    from unionfs.fuse.mounting import MountOptions, mount_union
    from unionfs.fuse.options import ServeOptions
    from unionfs.fuse.watching import Notifier

    logging.basicConfig(level=logging.WARNING)
    go = threading.Event()
    if plan.slow:
        copy = Copy.run

        def run_when_told(self: Copy) -> None:
            while threading.current_thread() is not threading.main_thread() and not go.is_set():
                if self.cancelled:
                    raise CancelledError
                time.sleep(0.01)
            copy(self)

        Copy.run = run_when_told  # type: ignore[method-assign]

    union = Union(Options(
        lowers=tuple(plan.lowers), upper=plan.upper, work=plan.work, durability=plan.durability,
        passthrough=plan.passthrough,
    ))  # fmt: skip
    fd = mount_union(plan.mountpoint, MountOptions())
    serve_options = ServeOptions(writeback=plan.writeback, busy_poll=plan.busy_poll, passthrough=plan.passthrough)
    session = Session(serve_options, Tuning())

    notifier = Notifier(union) if plan.watch else None

    def obey() -> None:
        for line in sys.stdin:
            if line == "go\n":
                go.set()
            if line == "sent\n":
                print(notifier.sent if notifier is not None else 0, flush=True)
            else:
                print(json.dumps(session.messages) if line == "counts\n" else "gone", flush=True)

    threading.Thread(target=obey, daemon=True).start()
    print("ready", flush=True)
    server.serve(fd, union, options=session.options, traffic=session, notifier=notifier)
    union.close()


if __name__ == "__main__":
    _main(Plan(**json.loads(sys.argv[1])))

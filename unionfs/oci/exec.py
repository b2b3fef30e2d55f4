"""Execute one more process in a running container."""

from __future__ import annotations

import os
import signal
from typing import Final, NamedTuple, NoReturn

from unionfs.launcher.terminal import ConsoleSocket
from unionfs.launcher.userns import reset_signals
from unionfs.oci import apparmor, channel, child, create, foreground, namespaces, process, show, state
from unionfs.oci.cgroups import Cgroup
from unionfs.oci.channel import Channel
from unionfs.oci.config import Config, Process
from unionfs.oci.errors import OciError
from unionfs.oci.report import Report
from unionfs.oci.state import Container, Saved
from unionfs.syscalls.namespaces import set_child_subreaper, set_dumpable

_DONE: Final = 0
_FAILED: Final = 1


class Request(NamedTuple):
    """The flags of the command `exec`, besides the process itself."""

    detach: bool
    console_socket: str = ""
    pid_file: str = ""
    preserve_fds: int = 0
    cgroups: tuple[str, ...] = ()  # [CONTROLLERS:]PATH below the container's groups
    ignore_paused: bool = False


def execute(container: Container, wanted: Process, request: Request, report: Report) -> int:
    """Execute the process, and wait for it unless `detach`. Return its exit code. Raises: OciError."""
    with container.locked():
        saved, config = container.load(), container.config()
        now = show.status(container, saved)
    if now == "stopped":
        raise OciError("cannot exec in a stopped container")
    if now == "paused" and not request.ignore_paused:
        raise OciError("cannot exec in a paused container (use --ignore-paused to override)")
    if wanted.terminal and request.detach and not request.console_socket:
        raise OciError("cannot allocate tty if the runtime will detach without setting console socket")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # an ignored SIGCHLD is inherited, and makes waitpid(2) fail
    if not request.detach:
        set_child_subreaper()
    return _Execution(saved, config, wanted, request, report).run()


class _Execution:
    def __init__(self, saved: Saved, config: Config, wanted: Process, request: Request, report: Report) -> None:
        self._saved: Final = saved
        self._config: Final = config
        self._wanted: Final = wanted
        self._request: Final = request
        self._report: Final = report
        self._pid = 0  # set once, by _attend

    def run(self) -> int:
        request, wanted = self._request, self._wanted
        preserved = process.check_preserved(request.preserve_fds)
        joined = namespaces.open_of(self._saved.pid)
        console = ConsoleSocket() if wanted.terminal and not request.console_socket else None
        sent = self._console(console)
        shown = state.as_json(self._saved, self._config, "running")
        privileges = create.make_privileges(wanted, self._config.seccomp, shown, preserved=preserved, new_keyring=False)
        ours, theirs = channel.make()
        kept = [*privileges.descriptors(), *([sent.connection.fileno()] if sent else [])]
        between = child.Intermediate(joined, None, lambda: None, tuple(kept), preserved)

        def body() -> NoReturn:
            _run_process(wanted, privileges, sent, theirs)

        middle = child.fork(between, body, theirs, ours)
        joined.close()
        if sent:
            sent.connection.close()
        try:
            self._attend(ours, middle)
        finally:
            ours.close()
            os.waitpid(middle, 0)
        if request.pid_file:
            create.write_pid_file(request.pid_file, self._pid)
        return _DONE if request.detach else foreground.wait(self._pid, console)

    def _console(self, console: ConsoleSocket | None) -> process.SentConsole | None:
        size = self._wanted.console_size
        if console:
            size = size or (process.rows_and_columns(console.size) if console.size else None)
            return process.SentConsole(console.child_end, size)
        if self._wanted.terminal:
            return process.SentConsole(process.connect(self._request.console_socket, "console socket"), size)
        return None

    def _attend(self, ours: Channel, middle: int) -> None:
        """Handle the messages of the processes until the command was executed: then all other ends are closed."""
        for message in ours.messages(self._report):
            kind = message["kind"]
            if kind == "user":
                ours.send("go", pid=0)
            elif kind == "group":
                self._admit(middle)
                ours.send("go", pid=0)
            elif kind == "pid":
                self._pid = message["pid"]
            elif kind == "mounted":
                create.raise_limits(self._pid, self._wanted)
                ours.send("go", pid=self._pid)
        if not self._pid:
            raise OciError("the process ended unexpectedly")

    def _admit(self, middle: int) -> None:
        tolerant = self._saved.tolerant
        Cgroup(_below(self._saved.cgroups, self._request.cgroups)).add(middle, tolerant=tolerant)
        if self._wanted.oom_score_adj is not None:
            create.set_oom_score(middle, self._wanted.oom_score_adj, tolerant=tolerant, report=self._report)


def _below(groups: dict[str, str], wanted: tuple[str, ...]) -> dict[str, str]:
    """The groups of the process: those of the container, or given ones below them. Raises: OciError."""
    found = dict(groups)
    for text in wanted:
        controllers, colon, path = text.rpartition(":")
        below = os.path.normpath(f"/{path}").lstrip("/")
        for name, directory in groups.items():
            if not colon or set(controllers.split(",")) & set(name.split(",")):
                found[name] = os.path.join(directory, below)
                if not os.path.isdir(found[name]):
                    raise OciError(f"--cgroup: {found[name]} is no directory")
    return found


def _run_process(
    wanted: Process, privileges: process.Privileges, sent: process.SentConsole | None, theirs: Channel
) -> NoReturn:
    """In the container's namespaces and root: execute the command."""
    try:
        set_dumpable(False)  # no process in the container may trace this one
        os.setsid()
        label = apparmor.open_label(wanted.apparmor_profile)
        theirs.send("mounted")
        theirs.wait_for_go()
        process.take_terminal(wanted, sent, is_console=False)

        def warn(message: str) -> None:
            theirs.send("warning", message=message)

        program = process.become(wanted, privileges, warn)
        reset_signals()
        process.execute(wanted, privileges._replace(label=label), program, warn)
    except OciError as error:
        theirs.send("error", message=str(error))
    except OSError as error:
        theirs.send("error", message=str(OciError.of("executing in the container", error)))
    except Exception as error:  # noqa: BLE001 - no process above this one would report it
        theirs.send("error", message=f"internal error: {error!r}")
    finally:
        os._exit(_FAILED)

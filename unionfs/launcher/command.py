"""Execute the user's command: set its terminal, user, limits, capabilities and environment, then exec.

Runs in a child of the container's init, inside the container's root. Knows what docker's exit codes mean.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
from typing import TYPE_CHECKING, NoReturn

from unionfs.launcher import capabilities, resources, users
from unionfs.launcher.errors import NOT_EXECUTABLE, NOT_FOUND, LaunchError
from unionfs.launcher.spec import SEARCH_PATH, Spec
from unionfs.syscalls.namespaces import (
    Capabilities,
    capget,
    capset,
    clear_ambient_set,
    join_new_session_keyring,
    limit_bounding_set,
    set_no_new_privileges,
    setns,
)

if TYPE_CHECKING:
    from unionfs.launcher.capture import Capture
    from unionfs.launcher.terminal import ConsoleSocket


def describe(spec: Spec) -> tuple[str, ...]:
    """Return what `exec_command` will do, one line for each action."""
    privileges = ("gain no privileges by exec",) if spec.process.no_new_privileges else ()
    return (
        "take a new terminal" if spec.process.terminal else "keep standard output and error",
        *(() if spec.process.interactive or spec.process.terminal else ("read standard input from /dev/null",)),
        f"stay user {spec.caller.uid}, with all groups"
        if spec.caller
        else f"become {_describe_user(spec.process.user)}",
        *(f"limit {limit}" for limit in spec.process.limits),
        f"keep capabilities: {', '.join(spec.process.capabilities).lower() or 'none'}",
        *privileges,
        f"change to {spec.process.workdir}",
        f"execute {' '.join(spec.process.command)}",
    )


def exec_command(
    spec: Spec,
    console: ConsoleSocket | None,
    capture: Capture | None = None,
    supervisor: socket.socket | None = None,
    *,
    is_first: bool = True,
    own_ids_fd: int = -1,
) -> NoReturn:
    """Execute the command in this process. Never returns.

    With a `console` it gets a new terminal, which is the container's console if `is_first`. At the other end of
    `supervisor` is the process that answers system calls about ids that the container does not have. `own_ids_fd`: the
    user namespace that a `spec.caller` enters (`launcher.own_ids`); -1: it has its ids already.
    Raises: LaunchError; this process is then half changed and must exit.
    """
    identity = _resolve_identity(spec)
    owner = identity.uid if own_ids_fd < 0 else 0  # as our user namespace has it
    os.setsid()
    if console:
        from unionfs.launcher import terminal

        terminal.open_terminal(console, owner, is_console=is_first)
    else:
        if capture:
            capture.redirect_output()
        if not spec.process.interactive:
            os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), 0)
        chown_pipes(owner)
    os.umask(spec.caller.umask if spec.caller else 0o022)
    try:
        os.chdir(spec.process.workdir)
    except OSError as error:
        raise LaunchError.of("changing to the working directory", error) from None
    if not spec.caller:
        join_new_session_keyring()  # a caller's own one may hold its Kerberos tickets
    if supervisor:
        from unionfs.launcher.supervisor import install_filter

        install_filter(supervisor, identity.groups)
    if is_first:
        _run_start_hooks(spec)
    resources.apply(spec.process.limits)
    if own_ids_fd >= 0:
        setns(own_ids_fd)  # with all capabilities in it, until _change_identity drops them
    _change_identity(spec, identity)
    _close_on_exec(spec.caller.descriptors if spec.caller else ())
    _execute(spec.process.command, {"HOME": identity.home, **dict(spec.process.environment)})


def _resolve_identity(spec: Spec) -> users.Account:
    if spec.caller:
        return users.Account(spec.caller.uid, spec.caller.gid, (), "/")
    identity = users.look_up(spec.process.user)
    identity = identity._replace(groups=(*identity.groups, *spec.groups))
    id_map = spec.id_map
    if id_map is None or spec.supervised:
        return identity
    if not id_map.has_uid(identity.uid) or not id_map.has_gid(identity.gid):
        why = f"{identity.uid}:{identity.gid} is not in the container's id map"
        raise LaunchError("changing the user", spec.process.user, f"{why}: {id_map.limited}" if id_map.limited else why)
    return identity._replace(groups=tuple(gid for gid in identity.groups if id_map.has_gid(gid)))


def _change_identity(spec: Spec, identity: users.Account) -> None:
    kept = capabilities.mask(spec.process.capabilities)
    limit_bounding_set(kept)
    if not spec.caller and (
        spec.id_map is None or not spec.id_map.limited
    ):  # denied where the map has one id; see install_filter
        os.setgroups(identity.groups)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    left = capget().permitted & kept if identity.uid == 0 else 0
    capset(Capabilities(effective=left, permitted=left, inheritable=0))
    clear_ambient_set()
    if spec.process.no_new_privileges:
        set_no_new_privileges()


def _run_start_hooks(spec: Spec) -> None:
    """Run the hooks whose programs are in the container. Raises: LaunchError."""
    for hook in (hook for name, hook in spec.hooks if name == "startContainer"):
        from unionfs.launcher import hooks  # the monitor has imported it

        if why := hooks.run(hook, json.dumps(hooks.state(spec, "created", 1)).encode()):
            raise LaunchError("", "", f"the startContainer hook {hook.path} failed: {why}")


def _execute(command: tuple[str, ...], environment: dict[str, str]) -> NoReturn:
    if not command[0]:
        raise LaunchError("executing", '""', "the command has no name", status=NOT_FOUND)
    try:
        os.execvpe(command[0], command, {"PATH": SEARCH_PATH, **environment})
    except FileNotFoundError:
        why = "no such file in the container" if "/" in command[0] else "no such command in PATH of the container"
        if "/" in command[0] and os.path.exists(command[0]):
            why = "its interpreter or loader is missing in the container"
        raise LaunchError("executing", command[0], why, status=NOT_FOUND) from None
    except NotADirectoryError as error:
        raise LaunchError.of("executing", error, path=command[0], status=NOT_FOUND) from None
    except OSError as error:
        why = "is a directory" if os.path.isdir(command[0]) else os.strerror(error.errno or errno.EIO)
        raise LaunchError("executing", command[0], why, status=NOT_EXECUTABLE) from None


def chown_pipes(uid: int) -> None:
    """Give standard descriptors that are pipes to user `uid`, so that the command can open /dev/stdout and the like.

    Only anonymous pipes: named ones are files of other users, whose owner must not change.
    """
    read_fd, write_fd = os.pipe()
    anonymous = os.fstat(read_fd).st_dev
    os.close(read_fd)
    os.close(write_fd)
    for fd in (0, 1, 2):
        with contextlib.suppress(OSError):
            status = os.fstat(fd)
            if stat.S_ISFIFO(status.st_mode) and status.st_dev == anonymous and status.st_uid != uid:
                os.fchown(fd, uid, -1)


def _close_on_exec(inherited: tuple[int, ...]) -> None:
    """Mark all descriptors above 2 close-on-exec, also those that our caller left open, except `inherited`."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one of the listing itself is gone already
            if int(name) > 2 and int(name) not in inherited:
                os.set_inheritable(int(name), False)


def _describe_user(user: str) -> str:
    return f"user {user}, as the container's /etc/passwd and /etc/group have it" if user else "root"

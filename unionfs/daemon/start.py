"""Start a daemon: the parent of our mounts forks it (mount_parent), or else this process.

Imports the core's union and the daemon only if this process becomes or forks a daemon.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

from unionfs.daemon.options import BecomeParent, DaemonOptions, Forked, StartError
from unionfs.fuse import mounting
from unionfs.mount_parent import client

Warn = Callable[[str], None]


class Started(NamedTuple):
    """A running daemon; its mount can be used. The descriptors are the caller's to close."""

    pid: int
    pidfd: int
    ended: int  # readable when no daemon serves the mount any more, and no other can


def start(
    options: DaemonOptions,
    *,
    warn: Warn = lambda _: None,
    parent: client.Parent | None = None,
    become_parent: BecomeParent | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> Started:
    """Mount in a new process that outlives this one, and return it as soon as the mount can be used.

    The parent of our mounts forks the daemon, if it accepts: `parent`, or, if that is None, the one that is found now.
    A process that was forked to become the daemon becomes it, and this does not return. Else this process forks it; if
    there was no parent, the forked process becomes one by `become_parent`, unless that is None, and forks the daemon.
    `meanwhile` is called once in this process: while a daemon that the parent forks starts, or before this process
    forks it. The new process is a daemon(7): reparented, in a new session, in /, with the descriptors of `options`
    only.
    Raises: StartError.
    """
    if _forked is not None:
        from unionfs.daemon import process

        process.become(options._replace(started_by=f"parent {_forked.parent}"), warn, _forked)
    once = cache(meanwhile)
    reply = _ask_parent(options, parent, once)
    if reply is None:
        once()
        reply = _fork(options, become_parent)
    verdict, *fields = reply.fields
    if verdict == client.READY:
        pid, warning = fields
        if warning:
            warn(warning)
        pidfd, ended = reply.descriptors
        return Started(int(pid), pidfd, ended)
    if verdict == client.FAILED:
        sentence, hint, code = fields
        raise StartError(sentence, hint, int(code))
    raise StartError(client.ENDED, client.ENDED_HINT)


def _ask_parent(
    options: DaemonOptions, parent: client.Parent | None, meanwhile: Callable[[], None]
) -> client.Reply | None:
    """Have the parent fork the daemon. Returns its reply; None if this process must fork the daemon."""
    if parent is None and client.refusal is not None:
        return None
    fds = [] if options.lifeline_fd is None else [options.lifeline_fd]
    try:
        if mounting.inherited_fd(options.mountpoint) is not None:
            raise client.NoParentError("the mountpoint is a descriptor")
        if parent is None:
            parent = client.connect()
        return parent.ask(client.OPTIONS, partial(_pickled, options), fds, meanwhile)
    except client.NoParentError as why:
        client.refusal = why
        return None
    except client.ParentEndedError:
        return client.Reply([""], [])


def _pickled(options: DaemonOptions) -> bytes:
    import _pickle  # the C module alone: `pickle` has its Python version, too

    return _pickle.dumps(options)


def _fork(options: DaemonOptions, become_parent: BecomeParent | None) -> client.Reply:
    from unionfs.daemon import process

    started_by = "itself" if client.refusal is None else f"itself: {client.refusal}"
    ended, held = os.pipe()
    try:
        if client.refusal is None or not client.refusal.is_absent:
            become_parent = None
        fields = process.fork(options._replace(started_by=started_by, held_fd=held), become_parent)
        if fields[0] == client.READY:
            return client.Reply(fields, [os.pidfd_open(int(fields[1])), ended])
    except OSError as error:
        os.close(ended)
        raise StartError(client.ENDED, client.ENDED_HINT) from error
    finally:
        os.close(held)
    os.close(ended)
    return client.Reply(fields, [])


_forked: Forked | None = None  # set once, by `become_at_start`


def become_at_start(forked: Forked) -> None:
    """Let the first call of `start` make this process the daemon. Precondition: this process was forked to become a
    daemon, has one thread and leads no process group."""
    global _forked  # noqa: PLW0603 - one process is one daemon
    _forked = forked

"""Continue a mount that another version of this program has served; a keeper executes this for an upgrade.

The first process that executes this becomes the daemon, after it has reported that it can continue; then the keeper
executes this, too (fuse.upgrade). Nothing is opened by path, and nothing is changed before the former daemon has ended.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from unionfs.daemon import continued, keeper_process, mounted_union
from unionfs.daemon.mounted_union import Service
from unionfs.daemon.state import RefusedError
from unionfs.fuse import keeper_channel, upgrade
from unionfs.fuse.daemon_history import DaemonHistory
from unionfs.fuse.keeper_channel import Channel
from unionfs.fuse.kernel.session import Kept

if TYPE_CHECKING:
    from logging import Logger


def main(arguments: list[str]) -> NoReturn:
    """Continue the mount that a keeper hands over. `arguments`: the number of the descriptor with the values."""
    try:
        values = keeper_channel.read_state(int(arguments[0]))
        channel = keeper_channel.channel_of(values["channel"])
    except (OSError, ValueError, LookupError) as bad:
        error = f"{bad} is missing" if isinstance(bad, LookupError) else bad
        sys.stderr.write(f"unionfs: upgrade failed: {error}; this is executed by the keeper of a mount\n")
        os._exit(2)
    status = 1
    try:
        if values["role"] == upgrade.KEEPER:
            service = _become_keeper(values, channel)
        else:
            service = _become_daemon(values, channel)
        with continued.serving(service):
            service.serve()
        status = 0
    except BaseException:  # noqa: BLE001 - this process ends here
        _logger().exception("the daemon ends because of a bug")
    finally:
        os._exit(status)


class _Continued(NamedTuple):
    """A mount that another process has served. Immutable."""

    service: Service
    kept: Kept
    history: DaemonHistory


def _become_keeper(values: dict[str, Any], channel: Channel) -> Service:
    """Be the keeper of a daemon that serves. Returns in the next daemon."""
    service, kept, history = _make(values)
    keeper_process.show_in_process_list(service.mounted.connection, keeper=True)
    history.continues = True
    channel.kept()
    mask = [signal.Signals(number) for number in values["mask"]]
    keeper_process.stay(service, kept, history=history, daemon=values["daemon"], channel=channel, mask=mask)
    return service


def _become_daemon(values: dict[str, Any], channel: Channel) -> Service:
    """Continue when the daemon before has ended. Ends this process if the keeper decides against it."""
    try:
        service, kept, history = _make(values)
        for module in mounted_union.MODULES:
            import_module(module)
    except Exception as error:  # noqa: BLE001 - the version before goes on
        channel.refuse(_why(error))
        os._exit(1)
    history.channel = channel
    ended_at = channel.offer()
    if ended_at is None:
        os._exit(0)
    os.dup2(values["stderr"], 2)
    os.close(values["stderr"])
    history.died_at = ended_at
    try:
        keeper_process.show_in_process_list(service.mounted.connection)
        took_ms = keeper_process.take_over(service, kept, history)
    except Exception as error:  # noqa: BLE001 - the version before goes on
        _logger().exception("the takeover fails")
        channel.refuse(_why(error))
        os._exit(1)
    _logger().info(
        "version %s continues for version %s, after %.1f ms", service.version, history.version_before, took_ms
    )
    keeper_process.begin(service, kept, history)
    history.awaits_keeper = True
    channel.serves()
    return service


def _why(error: Exception) -> str:
    if isinstance(error, RefusedError):
        return f"the new version refuses: {error}"
    return f"the new version refuses: {type(error).__name__}: {error}"


def _make(values: dict[str, Any]) -> _Continued:
    """Make the service that the keeper has described. Changes nothing on disk, since a daemon may still serve it.
    Raises: as `continued.make`."""
    for fd in values["descriptors"]:
        os.set_inheritable(fd, False)
    service, kept = continued.make(values, "\0".join(sys.argv[2:]))
    return _Continued(service, kept, DaemonHistory.of_values(values["life"], kept.record))


def _logger() -> Logger:
    import logging

    return logging.getLogger(__name__)

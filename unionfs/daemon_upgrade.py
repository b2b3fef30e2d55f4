"""What a keeper executes for an upgrade: continue a mount that another version of this program has served.

The first process so executed becomes the daemon, when it has said that it can; then the keeper becomes this version by
executing it, too (fuse.upgrade). Nothing is opened by path, and nothing is changed before the daemon has ended.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from unionfs import daemon_keeper, daemon_service
from unionfs.core import handover, takeover
from unionfs.core.node_record import NodeRecord
from unionfs.core.union import Union
from unionfs.daemon_service import Service
from unionfs.daemon_state import RefusedError, options_of
from unionfs.fuse import upgrade
from unionfs.fuse.detachment import Mounted
from unionfs.fuse.kernel.session import Kept, Session
from unionfs.fuse.life import Life
from unionfs.fuse.shutdown import GracefulShutdown
from unionfs.fuse.upgrade import Channel
from unionfs.mount_parent import identity
from unionfs.syscalls.namespaces import set_command_line

if TYPE_CHECKING:
    from logging import Logger


def main(arguments: list[str]) -> NoReturn:
    """Continue the mount that a keeper hands over. `arguments`: the number of the descriptor with the values."""
    try:
        values = upgrade.read_state(int(arguments[0]))
        channel = upgrade.channel_of(values["channel"])
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
        try:
            with service.until_its_end():
                service.serve()
        finally:
            service.union.close()
        status = 0
    except BaseException:  # noqa: BLE001 - this process ends here
        _logger().exception("the daemon ends because of a bug")
    finally:
        os._exit(status)


class _Continued(NamedTuple):
    """A mount that another process has served. Immutable."""

    service: Service
    kept: Kept
    life: Life


def _become_keeper(values: dict[str, Any], channel: Channel) -> Service:
    """Be the keeper of a daemon that serves. Returns in the next daemon."""
    service, kept, life = _make(values)
    daemon_keeper.show_in_process_list(service.mounted.connection, keeper=True)
    life.continues = True
    channel.kept()
    mask = [signal.Signals(number) for number in values["mask"]]
    daemon_keeper.stay(service, kept, life=life, daemon=values["daemon"], channel=channel, mask=mask)
    return service


def _become_daemon(values: dict[str, Any], channel: Channel) -> Service:
    """Continue when the daemon before has ended. Ends this process if that is not to be."""
    try:
        service, kept, life = _make(values)
        for module in daemon_service.MODULES:
            import_module(module)
    except Exception as error:  # noqa: BLE001 - the version before goes on
        channel.refuse(_why(error))
        os._exit(1)
    life.channel = channel
    ended_at = channel.offer()
    if ended_at is None:
        os._exit(0)
    os.dup2(values["stderr"], 2)
    os.close(values["stderr"])
    life.died_at = ended_at
    try:
        daemon_keeper.show_in_process_list(service.mounted.connection)
        took_ms = daemon_keeper.take_over(service, kept, life)
    except Exception as error:  # noqa: BLE001 - the version before goes on
        _logger().exception("the takeover fails")
        channel.refuse(_why(error))
        os._exit(1)
    _logger().info(
        "version %s continues where %s has left, after %.1f ms", service.version, life.version_before, took_ms
    )
    daemon_keeper.begin(service, kept, life)
    life.awaits_keeper = True
    channel.serves()
    return service


def _why(error: Exception) -> str:
    if isinstance(error, RefusedError):
        return f"the new version refuses: {error}"
    return f"the new version refuses: {type(error).__name__}: {error}"


def _make(values: dict[str, Any]) -> _Continued:
    """Make what the keeper has described, and change nothing: a daemon may serve it. Raises: RefusedError, and what the
    parts raise."""
    for fd in values["descriptors"]:
        os.set_inheritable(fd, False)
    options = options_of(values["options"])
    shutdown = GracefulShutdown()
    _check_facts(values["facts"])
    set_command_line("\0".join(sys.argv[2:]))
    daemon_service.prepare(options)
    union = Union(options.union, handover.from_values(values["branches"]))
    service = Service(options, union, Mounted.continued(**values["mounted"]), values["device"], shutdown)
    session = Session.continued(options.serve, daemon_service.tuning(), values["session"])
    service.traffic, service.control_fd, service.since = session, values["control"], values["since"]
    session.death_helper = service.helper
    daemon_service.offer_view(service)
    view_record = None if values["view_record"] is None else NodeRecord(values["view_record"])
    kept = service.kept = Kept(NodeRecord(values["record"]), view_record)
    takeover.keep_record(union, kept.record)
    session.keep(kept)
    daemon_service.tune_garbage_collection()
    daemon_service.import_late_modules(service)
    return _Continued(service, kept, Life.of_values(values["life"], kept.record))


def _check_facts(before: list[tuple[str, str]]) -> None:
    """Check that executing has changed nothing of what this process may do. Raises: RefusedError."""
    own = identity.facts()
    lost = [what for what, value in before if (what, value) not in own]
    if lost:
        raise RefusedError(f"executing it changes what the daemon may do: not the same {lost[0]}")


def _logger() -> Logger:
    import logging

    return logging.getLogger(__name__)

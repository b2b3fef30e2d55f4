"""Start the keeper of a daemon's mount: the parent of mounts that has forked this process; if there is none, this
process becomes the keeper, and a process that it forks becomes the daemon.

Knows the service of a daemon (daemon.mounted_union), its keeper and the record of nodes. Does not mount.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from unionfs import process_properties
from unionfs.control import listening
from unionfs.core import handover, takeover, unfinished_change
from unionfs.core.node_record import NodeRecord
from unionfs.core.recorded_entry import DamagedError
from unionfs.core.union import Union
from unionfs.daemon import mounted_union
from unionfs.daemon.mounted_union import Service, import_late_modules
from unionfs.fuse import keeper, mounting
from unionfs.fuse.daemon_history import DIED, DaemonHistory

if TYPE_CHECKING:
    from logging import Logger

    from unionfs.fuse.detachment import Mounted
    from unionfs.fuse.keeper_channel import Channel
    from unionfs.fuse.kernel.session import Kept
    from unionfs.fuse.upgrade import Program


def start(service: Service, parent: Channel | None) -> None:
    """Ask the parent of mounts at the other end of `parent` to keep the mount, and return. If there is no parent, or it
    cannot, this process becomes the keeper, and this function returns in a daemon that it forks; if that is impossible,
    too, it returns without a keeper.

    Raises: DamagedError, in a daemon that cannot continue.
    """
    from unionfs.fuse.kernel.session import Kept, Session

    assert isinstance(service.traffic, Session)
    try:
        view_record = NodeRecord() if service.traffic.view_offer is not None else None
        kept = Kept(NodeRecord(), view_record)
    except (OSError, ValueError) as error:  # no memory, or a limit
        _logger().warning("without a keeper: no shared memory: %s", error)
        show_in_process_list(service.mounted.connection)
        return
    service.kept = kept
    takeover.keep_record(service.union, kept.record)
    service.traffic.keep(kept)
    if parent is None:
        _stay_or_serve(service, kept)
        return
    try:
        history = DaemonHistory(os.getppid())
        history.channel, history.is_parent = parent, True
        give(service, kept, parent)
    except OSError as error:  # the parent has ended, or no descriptor is left
        _logger().warning("a keeper of its own: the parent of mounts cannot keep it: %s", error)
        _stay_or_serve(service, kept)
        return
    show_in_process_list(service.mounted.connection)
    begin(service, kept, history)


def tell(service: Service, kept: Kept, history: DaemonHistory) -> bool:
    """Send the keeper the present branches, in any thread. Returns whether the keeper has acknowledged them."""
    from unionfs.daemon.state import describe

    assert history.channel is not None
    with history.asking:
        try:
            if history.is_parent:
                give(service, kept, history.channel, acknowledge=True)
            else:
                history.channel.give(takeover.opened(service.union).descriptors())
                history.channel.keep(describe(service, kept))
                if not history.call():
                    return False
        except OSError as error:
            _logger().warning("the keeper could not be sent the branches: %s", error)
            return False
        return history.channel.wait_until_kept()


def give(service: Service, kept: Kept, parent: Channel, *, acknowledge: bool = False) -> None:
    """Send the parent of mounts all that another daemon needs to continue. `acknowledge`: the parent must acknowledge
    it. Raises: OSError."""
    from unionfs import version
    from unionfs.daemon.state import describe, shown

    if service.version is None:
        service.version = version.installed()
    values = describe(service, kept)
    places = process_properties.open_namespaces()
    try:
        parent.give([*values["descriptors"], *places, 2])
    finally:
        for fd in places:
            os.close(fd)
    parent.keep(
        {
            **values,
            "shown": " ".join(shown()),
            "properties": process_properties.read(0),
            "environment": [*os.environb.items()],
            "version": service.version,
            "acknowledge": acknowledge,
        }
    )


def stay(service: Service, kept: Kept, **continued: Any) -> None:
    """Be the keeper; return in a daemon that may begin to serve. `continued`: arguments of fuse.keeper.keep.

    Raises: DamagedError, in a daemon that cannot continue; OSError if the first daemon cannot be forked.
    """

    show_in_process_list(service.mounted.connection, keeper=True)
    learn = partial(_learn, service, kept)

    def give_up(why: str) -> None:
        if service.control_fd is not None:
            os.close(service.control_fd)  # unmounting needs descriptors, and perhaps none is left
        given_up(service.mounted, why)

    ended = partial(has_ended, service.fd, service.control_fd)
    program = partial(_described, service, kept)
    history = keeper.keep(kept.record, give_up, ended, program, learn=learn, **continued)
    if history.continues:
        continue_after(service, kept, history)
    else:
        show_in_process_list(service.mounted.connection)
        begin(service, kept, history)


def has_ended(device: int, control: int | None) -> bool:
    """Return whether the mount of a connection has ended, while no daemon serves it. If it has, its control socket
    refuses clients from now on: a new mount may have the connection's number."""
    is_ended = mounting.has_ended(device)
    if is_ended and control is not None:
        listening.stop(control)
    return is_ended


def _stay_or_serve(service: Service, kept: Kept) -> None:
    """Be the keeper, and return in a daemon; or serve without a keeper if no process can be forked."""
    try:
        stay(service, kept)
    except OSError as error:
        _logger().warning("without a keeper: no process can be started: %s", error)
        show_in_process_list(service.mounted.connection)


def given_up(mounted: Mounted, why: str) -> None:
    """Unmount, because no daemon can continue. `why`: the reason, for the log."""
    _logger().error("no daemon can continue (%s): the union is unmounted", why)
    try:
        problem = "" if mounted.unmount() else "it is not to be reached"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        _logger().error("unmounting failed (%s): `umount --lazy %s` removes what is left", problem, mounted.mountpoint)


def _learn(service: Service, kept: Kept, values: dict[str, Any], fds: list[int]) -> None:
    """In the keeper: store the present branches for the next daemons. Raises: OSError, OptionError."""
    from unionfs.daemon.state import options_of

    given = handover.from_values(values["branches"]).with_descriptors(fds)
    unfinished_change.close(service.union)
    service.union = Union(options_of(values["options"]).union, given)
    if service.traffic.view_offer is not None:
        mounted_union.offer_view(service)
        service.traffic.view_offer.withdraw()
    if service.options.watch:
        from unionfs.fuse.watching import Notifier

        service.notifier = Notifier(service.union)
        service.notifier.pause()
    takeover.keep_record(service.union, kept.record)


def continue_after(service: Service, kept: Kept, history: DaemonHistory) -> None:
    """Continue where another daemon has ended. Does not return if that fails.

    Raises: DamagedError: no daemon can continue.
    """
    show_in_process_list(service.mounted.connection)
    try:
        took_ms = take_over(service, kept, history)
    except DamagedError:
        raise
    except Exception:  # noqa: BLE001 - the keeper tries again
        _logger().exception("the takeover fails")
        os._exit(DIED)
    _logger().warning("the daemon before %s; this one continues after %.1f ms", history.ended, took_ms)
    begin(service, kept, history)


def _described(service: Service, kept: Kept) -> Callable[[DaemonHistory], Program]:
    from unionfs.daemon.state import Described

    import_late_modules(service)  # for the daemons after this one
    return Described(service, kept)


def take_over(service: Service, kept: Kept, history: DaemonHistory) -> float:
    """Continue where another daemon has ended. Returns how long that took, in milliseconds."""
    began = time.perf_counter()
    unfinished_change.undo_freeze(service.union)
    kept.changes, kept.refused, kept.continues = takeover.take_over(service.union), history.refused, True
    kept.unanswered = takeover.unanswered(service.union)
    service.unfinished = unfinished_change.finish(service.union)
    return (time.perf_counter() - began) * 1e3


def begin(service: Service, kept: Kept, history: DaemonHistory) -> None:
    """Note that this daemon begins to serve."""
    service.history = history
    if history.is_parent and history.channel is not None:
        service.shutdown.pass_on = history.channel.pass_on
    if history.channel is not None:
        service.tell_keeper = partial(tell, service, kept, history)
    history.begin(kept.record)


def show_in_process_list(connection: int | None, *, keeper: bool = False) -> None:
    """Name this process after its FUSE connection, so that `unionfs umount` finds it and `ps` shows which one it is."""
    if connection is not None:
        name = mounting.keeper_name(connection) if keeper else mounting.process_name(connection)
        with suppress(OSError), open("/proc/self/comm", "w") as comm:
            comm.write(name)


def _logger() -> Logger:
    import logging  # late: it takes as long as mounting

    return logging.getLogger(__name__)

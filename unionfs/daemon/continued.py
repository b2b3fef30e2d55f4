"""Continue a mount that another process has served, from its description (daemon.state): no path is opened.

The other process may be one of another version (daemon.upgrade), or a daemon of this one that has died
(mount_parent.kept).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from unionfs.core import handover, takeover
from unionfs.core.node_record import NodeRecord
from unionfs.core.union import Union
from unionfs.daemon import mounted_union
from unionfs.daemon.mounted_union import Service
from unionfs.daemon.state import RefusedError, options_of
from unionfs.fuse.death_helper import DeathHelper
from unionfs.fuse.detachment import Mounted
from unionfs.fuse.kernel.session import Kept, Session
from unionfs.fuse.shutdown import GracefulShutdown
from unionfs.mount_parent import identity
from unionfs.syscalls.namespaces import set_command_line


def make(values: dict[str, Any], shown: str, version: str | None = None) -> tuple[Service, Kept]:
    """Make the described service, whose descriptors have the same numbers in this process. Changes nothing on disk,
    since another daemon may still serve it. `shown`: the command line. `version`: of this code; None: that of the
    files, since it was executed now. Raises: RefusedError, OSError, OptionError, DamagedError."""
    options = options_of(values["options"])
    shutdown = GracefulShutdown()
    _check_facts(values["facts"])
    set_command_line(shown)
    mounted_union.prepare(options)
    branches = handover.from_values(values["branches"])
    union = Union(options.union, branches)
    service = Service(options, union, Mounted.continued(**values["mounted"]), values["device"], shutdown)
    session = Session.continued(options.serve, mounted_union.tuning(union), values["session"])
    service.version = version
    service.traffic, service.control_fd, service.since = session, values["control"], values["since"]
    if options.watch:
        from unionfs.fuse.watching import Notifier

        service.notifier = Notifier(union)
        service.notifier.pause()  # it would report the writes of the daemon that still serves as external changes
        service.helper = DeathHelper(service.mounted.connection)
    session.death_helper = service.helper
    mounted_union.offer_view(service)
    if branches.is_restacked and session.view_offer is not None:
        session.view_offer.withdraw()
    view_record = None if values["view_record"] is None else NodeRecord(values["view_record"])
    kept = service.kept = Kept(NodeRecord(values["record"]), view_record)
    takeover.keep_record(union, kept.record)
    session.keep(kept)
    mounted_union.tune_garbage_collection()
    mounted_union.import_late_modules(service)
    return service, kept


@contextmanager
def serving(service: Service) -> Iterator[None]:
    """End the mount correctly when the body, which serves it, ends."""
    try:
        with service.until_its_end():
            yield
    finally:
        service.union.close()


def _check_facts(before: list[tuple[str, str]]) -> None:
    """Check that this process has the rights of the daemon before it. Raises: RefusedError."""
    own = identity.facts()
    lost = [what for what, value in before if (what, value) not in own]
    if lost:
        raise RefusedError(f"it has other rights than the daemon before: not the same {lost[0]}")

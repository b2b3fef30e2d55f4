"""Make a mount that another process has served, of its description (daemon.state): no path is opened.

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
    """Make the service that is described, whose descriptors have their numbers here, and change nothing: a daemon may
    serve it. `shown`: the command line. `version`: of this code; None: that of the files, since it was executed now.
    Raises: RefusedError, and what the parts raise."""
    options = options_of(values["options"])
    shutdown = GracefulShutdown()
    _check_facts(values["facts"])
    set_command_line(shown)
    mounted_union.prepare(options)
    branches = handover.from_values(values["branches"])
    union = Union(options.union, branches)
    service = Service(options, union, Mounted.continued(**values["mounted"]), values["device"], shutdown)
    session = Session.continued(options.serve, mounted_union.tuning(), values["session"])
    service.version = version
    service.traffic, service.control_fd, service.since = session, values["control"], values["since"]
    if options.watch:
        from unionfs.fuse.watching import Notifier

        service.notifier = Notifier(union)
        service.notifier.pause()  # it would notice what the daemon that serves writes
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
    """End what is mounted as it must be when the body, which serves, ends."""
    try:
        with service.until_its_end():
            yield
    finally:
        service.union.close()


def _check_facts(before: list[tuple[str, str]]) -> None:
    """Check that this process may do what the one before might. Raises: RefusedError."""
    own = identity.facts()
    lost = [what for what, value in before if (what, value) not in own]
    if lost:
        raise RefusedError(f"it may not do what the daemon before might: not the same {lost[0]}")

"""A mount described for another version of this program, which continues it (daemon.upgrade).

The description consists of plain values and descriptors; fuse.upgrade has the rest of the format that versions share. A
version refuses values that it does not know: an option of the mount must not be lost.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

from unionfs.core import handover, takeover
from unionfs.core.options import Options
from unionfs.core.owners import IdTranslation, OwnerTranslation
from unionfs.daemon.options import DaemonOptions
from unionfs.fuse.daemon_history import DaemonHistory
from unionfs.fuse.kernel.session import Kept, Session
from unionfs.fuse.mounting import MountOptions
from unionfs.fuse.options import ServeOptions
from unionfs.fuse.upgrade import Program
from unionfs.id_ranges import IdRange
from unionfs.mount_parent import identity

if TYPE_CHECKING:
    from unionfs.daemon.mounted_union import Service

_ENTRY: Final = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "upgrade_entry.py")
"""The file that a keeper executes; it has this name in all versions."""


class RefusedError(Exception):
    """This version cannot continue. `str()` says why."""


class Described:
    """Describes a keeper's mount for another version. Made while the installed files are those of this version."""

    def __init__(self, service: Service, kept: Kept) -> None:
        self._service = service  # immutable
        self._kept = kept  # immutable

    def __call__(self, history: DaemonHistory) -> Program:
        """Return the program to execute, with its arguments and descriptors. `history`: of the daemons as it will be
        then, without `version_before`. Raises: OSError."""
        history.version_before = self._service.version or ""
        values = describe(self._service, self._kept)
        flag = "-I" if sys.flags.isolated else "-P"
        program = [sys.executable, flag, _ENTRY]
        return Program(program, shown(), {**values, "life": history.values()}, values["descriptors"])


def shown() -> list[str]:
    """Return the words of the command line that this process shows. Raises: OSError."""
    with open("/proc/self/cmdline", "rb") as file:
        return os.fsdecode(file.read()).rstrip("\0").split("\0")


def describe(service: Service, kept: Kept) -> dict[str, Any]:
    """Return the arguments of `continued.make` without `history`, as values for marshal. "descriptors" lists all
    descriptors that they name. Raises: OSError."""
    assert isinstance(service.traffic, Session)
    branches = takeover.opened(service.union)
    options = service.options
    view_fd = None if kept.view_record is None else kept.view_record.fd
    fds = [service.fd, kept.record.fd, *branches.descriptors()]
    more = (view_fd, service.control_fd, options.lifeline_fd, options.held_fd)
    return {
        "options": plain(options._replace(union=service.union.options)),  # with frozen branches
        "branches": handover.to_values(branches),
        "mounted": service.mounted.values(),
        "session": service.traffic.state(),
        "device": service.fd,
        "record": kept.record.fd,
        "view_record": view_fd,
        "control": service.control_fd,
        "since": service.since,
        "facts": identity.facts(),
        "descriptors": [*fds, *(fd for fd in more if fd is not None)],
    }


def plain(value: Any) -> Any:
    """Return a value of options as one for marshal: a dictionary for each named tuple."""
    if isinstance(value, tuple):
        fields = getattr(value, "_fields", None)
        if fields is None:
            return [plain(each) for each in value]
        return {name: plain(getattr(value, name)) for name in fields}
    return value


def options_of(values: dict[str, Any]) -> DaemonOptions:
    """Undo `plain` for options of this or another version. Raises: RefusedError."""
    try:
        union = dict(values["union"])
        for name in ("lowers", "hidden", "without_xattrs"):
            union[name] = tuple(union.get(name, ()))
        if union["owners"] is not None:
            kinds = {kind: _translation(one) for kind, one in union["owners"].items()}
            union["owners"] = OwnerTranslation(**kinds)
        given = {
            **values,
            "union": Options(**union),
            "mount": MountOptions(**values["mount"]),
            "serve": ServeOptions(**values["serve"]),
        }
        return DaemonOptions(**given)
    except (TypeError, KeyError, ValueError) as error:
        raise RefusedError(f"the options of the mount are not known to it: {error}") from error


def _translation(values: dict[str, Any]) -> IdTranslation:
    ranges = tuple(IdRange(**one) for one in values["ranges"])
    return IdTranslation(**{**values, "ranges": ranges})

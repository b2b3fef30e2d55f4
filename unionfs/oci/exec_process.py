"""The process of `exec`: that of process.json, or the container's own with changes by flags."""

from __future__ import annotations

from typing import Any, NamedTuple

from unionfs.oci.config import CAPABILITY_SETS, Process, load, parse_process
from unionfs.oci.errors import OciError
from unionfs.oci.fields import Field
from unionfs.oci.state import Container


class Overrides(NamedTuple):
    """Flags of the command line; empty: the value of the container's own process."""

    args: tuple[str, ...]
    cwd: str
    env: tuple[str, ...]
    user: str  # UID[:GID]
    groups: tuple[int, ...]
    terminal: bool
    no_new_privileges: bool | None
    capabilities: tuple[str, ...]
    apparmor_profile: str
    selinux_label: str


def process_from(container: Container, path: str, overrides: Overrides) -> Process:
    """The process at `path`, or the one that the flags describe. Raises: OciError."""
    container.load()
    if overrides.selinux_label:
        raise OciError("--process-label: SELinux labels are not supported")
    if path:
        return parse_process(Field(load(path)))
    if not overrides.args:
        raise OciError("process args cannot be empty")
    own = container.config().process
    if own is None:
        raise OciError("the container has no process: -p is needed")
    found = own._replace(
        args=overrides.args,
        cwd=overrides.cwd or own.cwd,
        env=(*own.env, *overrides.env),
        terminal=overrides.terminal,
        console_size=None,
        apparmor_profile=overrides.apparmor_profile or own.apparmor_profile,
    )
    if overrides.no_new_privileges is not None:
        found = found._replace(no_new_privileges=overrides.no_new_privileges)
    if overrides.user or overrides.groups:
        found = found._replace(user=_user(found, overrides))
    if overrides.capabilities:
        found = found._replace(capabilities=_with(found.capabilities, overrides.capabilities))
    return found


def _user(process: Process, overrides: Overrides) -> Any:
    uid, colon, gid = overrides.user.partition(":")
    try:
        changed = process.user._replace(uid=int(uid)) if uid else process.user
        changed = changed._replace(gid=int(gid)) if colon else changed
    except ValueError:
        raise OciError(f"--user: {overrides.user!r} is not UID[:GID] in numbers") from None
    return changed._replace(groups=overrides.groups or changed.groups)


def _with(own: dict[str, tuple[str, ...]] | None, added: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    names = {name if name.startswith("CAP_") else f"CAP_{name}" for name in map(str.upper, added)}
    sets = own or dict.fromkeys(CAPABILITY_SETS, ())
    grown = ("bounding", "effective", "permitted")
    return {name: (*old, *sorted(names)) if name in grown else old for name, old in sets.items()}

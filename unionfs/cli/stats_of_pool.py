"""The statistics of a thin pool, for `unionfs stats --pool`."""

from __future__ import annotations

import json

from unionfs.cli.errors import CommandError
from unionfs.drivers import devicemapper
from unionfs.drivers.driver import DriverError
from unionfs.drivers.thin_pool import Usage
from unionfs.printable import printable
from unionfs.store_files import default_root


def show(root: str | None, *, as_json: bool) -> int:
    """Print the used and free space of the store's pool. Raises: CommandError."""
    root = root or default_root()
    try:
        found = devicemapper.usage(root)
    except DriverError as error:
        raise CommandError(f"stats failed: {error}", hint=error.hint) from error
    except OSError as error:
        raise CommandError.of("reading the pool", error) from error
    if found is None:
        hint = "the first container with --driver devicemapper makes one"
        raise CommandError(f"stats failed: {printable(root)}: it has no thin pool", hint=hint)
    print(json.dumps(found._asdict() | {"problem": found.problem}) if as_json else _for_people(found))
    return 0


def _for_people(found: Usage) -> str:
    rows = [
        ("pool", printable(found.where)),
        ("data", _part(found.data, found.data_max)),
        ("metadata", _part(found.metadata, found.metadata_max)),
        ("state", f"takes no new device: {found.problem}" if found.problem else "ready"),
        ("devices", ", ".join(f"{count} {kind}" for kind, count in found.devices.items()) or "none"),
    ]
    if found.disk is not None:
        rows.append(("disk", f"{_mib(found.disk)} of the files' filesystem"))
    return "\n".join(f"{title:<9} {text}" for title, text in rows)


def _part(used: int, most: int) -> str:
    return f"{_mib(used)} of {_mib(most)} used ({used * 100 // most if most else 0} %)"


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"

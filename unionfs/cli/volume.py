"""`unionfs volume`: manage volumes, directories that outlive the containers that use them."""

from __future__ import annotations

import datetime as dt
import json
import sys
from typing import Any, Final

from unionfs.cli import store_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.each import each_name
from unionfs.cli.errors import CommandError
from unionfs.containers.remove import remove_volume
from unionfs.containers.store import ContainerStore
from unionfs.containers.volumes import NamedVolume, VolumeStore, used_by
from unionfs.printable import printable, printable_line

_DESCRIPTION: Final = """\
Volumes are directories that outlive the containers that use them: `unionfs run -v NAME:/path` makes one if
it is missing, and copies the image's files at /path into it. Volumes that an image declares are anonymous, with a
random number as their name; `unionfs rm -v` removes them with their container.

  unionfs volume create [NAME]     make one
  unionfs volume ls [-q] [--json]  list them
  unionfs volume inspect NAME...   print them as JSON
  unionfs volume rm NAME...        remove them; volumes that a container uses are refused
  unionfs volume prune             remove unused anonymous volumes; with -a all unused volumes"""

_VERBS: Final = ("create", "ls", "inspect", "rm", "prune")


def main(argv: list[str]) -> int:
    """Run `unionfs volume ARGV`."""
    parser = Parser("volume", _DESCRIPTION)
    parser.add_argument("verb", choices=_VERBS, metavar="VERB")
    parser.add_argument("names", metavar="NAME", nargs="*")
    parser.add_argument("-q", "--quiet", action="store_true", help="ls: names only")
    parser.add_argument("-a", "--all", action="store_true", help="prune: also named volumes")
    parser.add_argument(
        "-l", "--label", metavar="NAME=VALUE", action="append", help="create: store a label with the volume"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    store_flags.add_root(parser)
    arguments = parser.parse(argv)
    containers = ContainerStore(arguments.root)
    store = VolumeStore(containers.root)
    names: list[str] = arguments.names
    if arguments.verb == "create":
        import secrets

        labels = tuple((text.partition("=")[0], text.partition("=")[2]) for text in arguments.label or ())
        for name in names or [secrets.token_hex(32)]:
            print(store.create(name, labels=labels).name)
        return 0
    if arguments.verb == "inspect" and names:
        print(json.dumps([_as_json(store.find(name), used_by(containers)) for name in names], indent=2))
        return 0
    if arguments.verb in ("inspect", "rm") and not names:
        parser.error(f"{arguments.verb}: no volume given")
    if arguments.verb == "ls":
        return _list(store, containers, quiet=arguments.quiet, as_json=arguments.json)
    if arguments.verb == "rm":
        return _remove(store, containers, names)
    used = used_by(containers)
    idle = [volume.name for volume in store.list() if volume.name not in used and (volume.anonymous or arguments.all)]
    return _remove(store, containers, idle)


def _list(store: VolumeStore, containers: ContainerStore, *, quiet: bool, as_json: bool) -> int:
    found, used = store.list(), used_by(containers)
    if as_json:
        print(json.dumps([_as_json(volume, used) for volume in found]))
    elif quiet:
        for volume in found:
            print(printable(volume.name))
    else:
        width = max([len(printable(volume.name)) for volume in found] + [4])
        print(f"{'NAME'.ljust(width)}  USED BY")
        for volume in found:
            users = printable_line(", ".join(used.get(volume.name, ())))
            print(f"{printable(volume.name).ljust(width)}  {users}".rstrip())
    sys.stdout.flush()
    return 0


def _remove(store: VolumeStore, containers: ContainerStore, names: list[str]) -> int:
    used = used_by(containers)

    def remove_one(name: str) -> str:
        if name in used:
            hint = f"remove the container first: unionfs rm {used[name][0]}"
            raise CommandError(f"the volume {name} is in use by {', '.join(used[name])}", hint=hint)
        remove_volume(store, name)
        return ""

    return each_name(names, remove_one)


def _as_json(volume: NamedVolume, used: dict[str, list[str]]) -> dict[str, Any]:
    created = dt.datetime.fromtimestamp(volume.created, dt.UTC).isoformat().replace("+00:00", "Z")
    return {
        "Name": volume.name,
        "Mountpoint": volume.directory,
        "CreatedAt": created,
        "Anonymous": volume.anonymous,
        "Labels": dict(volume.labels),
        "UsedBy": used.get(volume.name, []),
    }

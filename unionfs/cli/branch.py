"""`unionfs branch`: list, add, remove and move the read-only branches of a union that is mounted."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from typing import Final

from unionfs.cli import store_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import CommandError
from unionfs.control import branch_client
from unionfs.control.branch_client import BOTTOM, BranchError, BranchLine
from unionfs.fuse import mounting
from unionfs.printable import printable

_DESCRIPTION: Final = """\
Change the read-only branches of a union while it is in use. Afterwards the union shows the same as a new mount of these
branches. Open files, mappings, working directories and running copy-ups stay valid: a file that is no longer in the
union is like a file that was removed while in use.

  unionfs branch ls MOUNTPOINT                        list the branches, the topmost first
  unionfs branch add MOUNTPOINT DIR [--at N]          add one, by default on top of the read-only ones
  unionfs branch rm MOUNTPOINT DIR [--force]          remove one
  unionfs branch mv MOUNTPOINT DIR --at N             move one

Positions are those of `ls`: 0 is the topmost branch, which is the upper if there is one. The change lasts
until the union is unmounted. With the name of a container, running or not, instead of MOUNTPOINT, it lasts as long as
the container; if the container was made of an image, its `commit` is refused then."""

_EPILOG: Final = """\
A branch on which the upper depends is removed with --force only: copies of its files stay, with other inode numbers
after the next mount; renamed directories lose its content; names of hard links that only it has disappear.

If the daemon is killed while branches are changed, another one finishes the change.

--json prints one list of objects: position, role (upper, lower), path."""

_VERBS: Final = ("ls", "add", "rm", "mv")
_POINTERS_SHOWN: Final = 20

WORDS: Final = ("add", "del", "append", "prepend")
"""Options of `mount -o remount` that change branches (aufs(5))."""
_PERMISSIONS: Final = ("ro", "rr", "ro+wh", "rr+wh")
_WRITABLE: Final = ("rw", "rw+nolwh")


def main(argv: list[str]) -> int:
    """Run `unionfs branch ARGV`."""
    parser = Parser("branch", _DESCRIPTION, _EPILOG)
    add = parser.add_argument
    add("verb", choices=_VERBS, metavar="VERB")
    add("target", metavar="MOUNTPOINT|CONTAINER")
    add("directory", metavar="DIR", nargs="?")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--at", metavar="N", type=int, help="add, mv: the new position")
    where.add_argument("--append", action="store_true", help="add, mv: the lowest position")
    add("--force", action="store_true", help="rm: even if the upper depends on it; add: even inside another branch")
    add("--json", action="store_true", help="print JSON")
    store_flags.add_root(parser)
    arguments = parser.parse(argv)
    verb = arguments.verb
    if (verb == "ls") != (arguments.directory is None):
        parser.error(f"{verb}: no directory is named" if verb != "ls" else "ls takes no directory")
    if arguments.at is not None and arguments.at < 0:
        parser.error("--at: positions begin with 0")
    position = BOTTOM if arguments.append else arguments.at
    if (verb == "mv") != (position is not None) and verb != "add":
        parser.error("mv: --at N says where it is to be" if verb == "mv" else f"{verb} takes no position")
    try:
        found = _run(arguments, position)
    except BranchError as error:
        raise _failed(arguments, error) from error
    if verb == "ls" or arguments.json:
        print(json.dumps([line._asdict() for line in found]) if arguments.json else _for_people(found))
    return 0


def change_by_words(mountpoint: str, words: list[str]) -> None:
    """Change branches by AUFS's options of `mount -o remount`: `add:N:DIR`, `del:DIR`, `append:DIR`, `prepend:DIR`, one
    after the other. Raises: CommandError."""
    try:
        union = branch_client.at(mountpoint)
        for word in words:
            verb, _, rest = word.partition(":")
            if verb == "del":
                branch_client.remove(union, rest)
                continue
            position = BOTTOM if verb == "append" else None
            if verb == "add":
                number, _, rest = rest.partition(":")
                if not number.isdecimal():
                    raise BranchError(f"{printable(word)}: the form is add:N:DIR")
                position = int(number)
            directory, mark, permission = rest.rpartition("=")
            if mark and permission in _PERMISSIONS:
                rest = directory
            elif mark and permission in _WRITABLE:
                raise BranchError(f"{printable(word)}: branches that are added are read-only")
            branch_client.add(union, rest, position)
    except BranchError as error:
        hint = f"unionfs branch rm --force {mountpoint} DIR" if error.pointers else ""
        raise CommandError(f"mount failed: {mountpoint}: {error}", hint=hint) from error


def _run(arguments: Namespace, position: int | None) -> list[BranchLine]:
    if not is_mountpoint(arguments.target):
        return _of_container(arguments, position)
    union = branch_client.at(arguments.target)
    if arguments.verb == "ls":
        return branch_client.listed(union)
    if arguments.verb == "add":
        return branch_client.add(union, arguments.directory, position, force=arguments.force)
    if arguments.verb == "rm":
        return branch_client.remove(union, arguments.directory, force=arguments.force)
    assert position is not None
    return branch_client.move(union, arguments.directory, position)


def is_mountpoint(target: str) -> bool:
    """Whether a path is named, and not a container."""
    return "/" in target or target in (".", "..") or mounting.union_at(mounting.resolve_mountpoint(target)) is not None


def _of_container(arguments: Namespace, position: int | None) -> list[BranchLine]:
    from unionfs.containers import branches
    from unionfs.containers.store import ContainerStore

    container = ContainerStore(arguments.root).find(arguments.target)
    if arguments.verb == "ls":
        return branches.listed(container)
    if arguments.verb == "add":
        return branches.add(container, arguments.directory, position, force=arguments.force)
    if arguments.verb == "rm":
        return branches.remove(container, arguments.directory, force=arguments.force)
    assert position is not None
    return branches.move(container, arguments.directory, position)


def _failed(arguments: Namespace, error: BranchError) -> CommandError:
    shown = error.pointers[:_POINTERS_SHOWN]
    for kind, path in shown:
        print(f"{kind}: {printable(path)}", file=sys.stderr)
    if len(error.pointers) > len(shown):
        print(f"... and {len(error.pointers) - len(shown)} more", file=sys.stderr)
    hint = "--force removes it all the same" if error.pointers else ""
    return CommandError(f"branch {arguments.verb} failed: {arguments.target}: {error}", hint=hint)


def _for_people(found: list[BranchLine]) -> str:
    return "\n".join(f"{line.position:>3}  {line.role:<5}  {printable(line.path)}" for line in found)

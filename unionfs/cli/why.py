"""`unionfs why`: print which branch of a union provides a path, and which marks hide it in other branches."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Final

from layers import why
from unionfs.cli import each, stats
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import FAILED, CommandError, failed
from unionfs.cli.units import human_size
from unionfs.containers.store import ContainerStore
from unionfs.containers.why import Question, answer, normal, of_container, of_directories
from unionfs.fuse import mounting
from unionfs.printable import printable

_DESCRIPTION: Final = """\
Print which branch of a union provides the file at PATH, which branches have a hidden file there, and the
mark that hides it, with its dialect. PATH is CONTAINER:/path, a path in a mounted union, or with --lower a path in the
union of these directories, topmost first, with --upper above them. No symlink in PATH is followed."""

_EPILOG: Final = """\
examples:
  unionfs why box:/etc/motd
  unionfs why merged/etc/motd
  unionfs why --upper changes --lower top --lower bottom /etc/motd

--json prints one object: path, shown (true or false), kind, and branches, a list with branch (0 on top), role (upper,
lower or mountpoints), directory, shows (provides, merges, hides, hidden or absent), holds (the type of its object
at PATH, or null), marks (kind, dialect and path of each) and because (the reason). A file whose data are, in whole or
in part, in a branch below has data: size, own (bytes here), branch and at (where the others are, or null), fault
(missing or changed, or empty).

exit codes: 0 PATH exists, 1 PATH does not exist, or failure, 2 invalid command line."""

_SIGNS: Final = {why.PROVIDES: "=>", why.MERGES: "+ ", why.HIDES: "x ", why.HIDDEN: "- ", why.ABSENT: "  "}


def main(argv: list[str]) -> int:
    """Run `unionfs why ARGV`."""
    parser = Parser("why", _DESCRIPTION, _EPILOG)
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--lower", metavar="DIR", action="append", help="a directory of the union; topmost first")
    parser.add_argument("--upper", metavar="DIR", help="the writable directory above them")
    parser.add_argument(
        "-a", "--all", action="store_true", help="also list branches that have neither PATH nor a mark on it"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    each.add_root(parser)
    arguments = parser.parse(argv)
    if arguments.upper and not arguments.lower:
        parser.error("--upper needs --lower")
    if arguments.lower:
        question = of_directories(arguments.path, arguments.upper, arguments.lower)
    else:
        question = _of_container(arguments.path, arguments.root) or _of_mount(arguments.path)
    verdicts = answer(question)
    shown = any(verdict["shows"] == why.PROVIDES for verdict in verdicts)
    if arguments.json:
        kind = next((one["holds"] for one in verdicts if one["shows"] == why.PROVIDES), None)
        print(json.dumps({"path": question.path, "shown": shown, "kind": kind, "branches": verdicts}))
    else:
        _print(question, verdicts, everything=arguments.all)
    sys.stdout.flush()
    return 0 if shown else FAILED


def _of_container(text: str, root: str | None) -> Question | None:
    """The question for CONTAINER:/path; None if `text` has another form."""
    name, colon, path = text.partition(":")
    if not colon or not name or "/" in name or not path.startswith("/"):
        return None
    return of_container(path, ContainerStore(root).find(name))


def _of_mount(path: str) -> Question:
    """The question for a path in a mounted union, found without a system call on the mount, whose daemon may hang."""
    whole = os.path.abspath(path)
    mountpoint = whole
    while mounting.union_at(mountpoint) is None:
        if mountpoint == "/":
            hint = "name a path in a mounted union, CONTAINER:/path, or directories with --lower"
            raise CommandError(failed("why", path, "it is not in a mounted union"), hint=hint)
        mountpoint = os.path.dirname(mountpoint)
    union: dict[str, Any] | None = next(stats.ask_daemon(mountpoint, "stats"), None)
    if union is None:
        raise CommandError(failed("why", path, "the union's daemon ended without an answer"))
    found = of_directories("", union["upper"], union["lowers"])
    return found._replace(path=normal(os.path.relpath(whole, mountpoint)))


def _print(question: Question, verdicts: list[dict[str, Any]], *, everything: bool) -> None:
    listed = [
        one for one in verdicts
        if everything or one["shows"] != why.ABSENT or one["marks"]
    ]  # fmt: skip
    if not any(one["shows"] == why.PROVIDES for one in verdicts):
        print(f"there is no {printable(question.path)}" + ("" if listed else ": no branch has it"))
    for one in listed:
        print(f"{_SIGNS[one['shows']]} {one['branch']:>3} {one['role']:<11} {_sentence(one)}")
        print(f"           {printable(one['directory'])}{printable(one.get('at') or question.path)}")
        for mark in one["marks"]:
            print(f"           {mark['kind']}, {mark['dialect']}: {printable(mark['path'])}")


def _sentence(one: dict[str, Any]) -> str:
    if one["shows"] == why.PROVIDES:
        return f"provides the {one['holds']}" + _data(one.get("data"))
    if one["shows"] == why.MERGES:
        return "its directory shows through"
    if one["shows"] == why.HIDES:
        return "hides the branches below"
    if one["shows"] == why.HIDDEN:
        return f"its {one['holds']} is hidden: {one['because']}"
    return "has a mark on the way to it" if one["marks"] else "has nothing there"


def _data(place: dict[str, Any] | None) -> str:
    """Describe the place of the visible file's data, unless they are all in its own branch."""
    if place is None:
        return ""
    here = f", {human_size(place['own'])} of its {human_size(place['size'])} of data"
    if place["branch"] is None:
        return f"{here}; the others are missing: its lower file is gone"
    there = f"{here}; the others are in branch {place['branch']}"
    if place["fault"]:
        return f"{there}, whose file has changed since and is not read"
    return there

"""`unionfs why`: which branch of a union provides a path, and what hides what, in which dialect."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Final, NamedTuple

from layers import why
from layers.tree import Branches
from layers.why import Verdict
from unionfs.cli import each, stats
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import FAILED, CommandError, failed
from unionfs.cli.output import named
from unionfs.containers import diff
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore
from unionfs.drivers.driver import is_whole
from unionfs.fuse import mounting
from unionfs.launcher import mapped
from unionfs.launcher.errors import LaunchError

_DESCRIPTION: Final = """\
Say which branch of a union provides what is at PATH, which branches have something there that does not show, and which
mark hides it, in which dialect. PATH is CONTAINER:/path, a path in a mounted union, or with --lower the path in the
union of the directories given, top first, and --upper above them. No symlink in PATH is followed."""

_EPILOG: Final = """\
examples:
  unionfs why box:/etc/motd
  unionfs why merged/etc/motd
  unionfs why --upper changes --lower top --lower bottom /etc/motd

--json prints one object: path, shown (true or false), kind, and branches, a list with branch (0 on top), role (upper,
lower or ground), directory, shows (provides, merges, hides, hidden or absent), holds (the kind of what it has there, or
null), marks (kind, dialect and path of each) and because.

exit codes: 0 there is something at PATH, 1 there is nothing, or it failed, 2 the command line makes no sense."""

_SIGNS: Final = {why.PROVIDES: "=>", why.MERGES: "+ ", why.HIDES: "x ", why.HIDDEN: "- ", why.ABSENT: "  "}


class Question(NamedTuple):
    """A path in a union of directories."""

    path: str  # from the union's root
    directories: tuple[str, ...]  # top first
    roles: tuple[str, ...]
    container: Container | None = None  # whose ids are needed to look


def main(argv: list[str]) -> int:
    """Run `unionfs why ARGV`."""
    parser = Parser("why", _DESCRIPTION, _EPILOG)
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--lower", metavar="DIR", action="append", help="a directory of the union; topmost first")
    parser.add_argument("--upper", metavar="DIR", help="the writable directory above them")
    parser.add_argument("-a", "--all", action="store_true", help="list branches that have nothing to do with it, too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    each.add_root(parser)
    arguments = parser.parse(argv)
    if arguments.upper and not arguments.lower:
        parser.error("--upper needs --lower")
    if arguments.lower:
        question = _of_directories(arguments.path, arguments.upper, arguments.lower)
    else:
        question = _of_container(arguments.path, arguments.root) or _of_mount(arguments.path)
    try:
        verdicts = _answer(question)
    except OSError as error:
        raise CommandError.of("why", error) from error
    except LaunchError as error:
        raise CommandError(str(error), hint=error.hint) from error
    shown = any(verdict["shows"] == why.PROVIDES for verdict in verdicts)
    if arguments.json:
        kind = next((one["holds"] for one in verdicts if one["shows"] == why.PROVIDES), None)
        print(json.dumps({"path": question.path, "shown": shown, "kind": kind, "branches": verdicts}))
    else:
        _print(question, verdicts, everything=arguments.all)
    sys.stdout.flush()
    return 0 if shown else FAILED


def _of_directories(path: str, upper: str | None, lowers: list[str]) -> Question:
    above = (upper,) if upper else ()
    roles = (*("upper" for _ in above), *("lower" for _ in lowers))
    return Question(_normal(path), (*above, *lowers), roles)


def _of_container(text: str, root: str | None) -> Question | None:
    """CONTAINER:/path; None if it is none."""
    name, colon, path = text.partition(":")
    if not colon or not name or "/" in name or not path.startswith("/"):
        return None
    container = ContainerStore(root).find(name)
    if is_whole(container.driver):
        why_not = f"the {container.driver} driver has copied everything: nothing is provided by a layer any more"
        raise CommandError(failed("why", text, why_not), hint=f"unionfs diff {name} tells what is different")
    roles = ["upper", *("lower" for _ in container.lowers), *(("ground",) if container.has_ground else ())]
    return Question(_normal(path), (container.upper, *container.branches), tuple(roles), container)


def _of_mount(path: str) -> Question:
    """The mount that `path` is in, found from its name alone: the daemon may be one that does not answer."""
    whole = os.path.abspath(path)
    mountpoint = whole
    while mounting.union_at(mountpoint) is None:
        if mountpoint == "/":
            hint = "name a path in a mounted union, CONTAINER:/path, or directories with --lower"
            raise CommandError(failed("why", path, "it is in no union that is mounted"), hint=hint)
        mountpoint = os.path.dirname(mountpoint)
    told: dict[str, Any] | None = next(stats.ask_daemon(mountpoint, "stats"), None)
    if told is None:
        raise CommandError(failed("why", path, "the union's daemon ended without an answer"))
    found = _of_directories("", told["upper"], told["lowers"])
    return found._replace(path=_normal(os.path.relpath(whole, mountpoint)))


def _normal(path: str) -> str:
    return "/" + os.path.normpath("/" + path).lstrip("/")


def _answer(question: Question) -> list[dict[str, Any]]:
    """The verdicts as JSON has them, looked for with the ids that can see everything."""

    def look() -> bytes:
        with Branches() as branches:
            path = tuple(os.fsencode(part) for part in question.path.split("/") if part)
            verdicts = why.explain(branches.view(question.directories), path)
        return json.dumps(
            [_as_json(verdict, role) for verdict, role in zip(verdicts, question.roles, strict=True)]
        ).encode()

    id_map = diff.id_map_of(question.container) if question.container else None
    found: list[dict[str, Any]] = json.loads(mapped.call(id_map, look))
    return found


def _as_json(verdict: Verdict, role: str) -> dict[str, Any]:
    return {
        "branch": verdict.branch,
        "role": role,
        "directory": verdict.directory,
        "shows": verdict.shows,
        "holds": verdict.holds or None,
        **({"at": verdict.place} if verdict.place else {}),
        "marks": [mark._asdict() for mark in verdict.marks],
        "because": verdict.because,
    }


def _print(question: Question, verdicts: list[dict[str, Any]], *, everything: bool) -> None:
    told = [
        one for one in verdicts
        if everything or one["shows"] != why.ABSENT or one["marks"]
    ]  # fmt: skip
    if not any(one["shows"] == why.PROVIDES for one in verdicts):
        print(f"there is no {named(question.path)}" + ("" if told else ": no branch has it"))
    for one in told:
        print(f"{_SIGNS[one['shows']]} {one['branch']:>3} {one['role']:<6} {_sentence(one)}")
        print(f"           {named(one['directory'])}{named(one.get('at') or question.path)}")
        for mark in one["marks"]:
            print(f"           {mark['kind']}, {mark['dialect']}: {named(mark['path'])}")


def _sentence(one: dict[str, Any]) -> str:
    if one["shows"] == why.PROVIDES:
        return f"provides the {one['holds']}"
    if one["shows"] == why.MERGES:
        return "its directory shows through"
    if one["shows"] == why.HIDES:
        return "hides what is beneath"
    if one["shows"] == why.HIDDEN:
        return f"its {one['holds']} is hidden: {one['because']}"
    return "has a mark on the way to it" if one["marks"] else "has nothing there"

"""`unionfs diff`: list the changes of a container, running or not."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, Final

from unionfs.changes.cost import CopiedUp
from unionfs.cli import output, store_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.units import human_size
from unionfs.containers import diff
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore
from unionfs.printable import printable

_DESCRIPTION: Final = """\
List the changes of a container's root filesystem, one path on a line: A added, C changed, D deleted. A directory is
changed if an entry of it is; of a deleted directory only the top is listed. A file that was written but has the same
content as before is not listed."""

_EPILOG: Final = """\
--json prints one object: id, name, and changes, a list of objects with
  kind      A, C or D
  path      the path; if it is not UTF-8, with U+FFFD in it, and path_base64 has its bytes
  type      file, directory, symlink, fifo, socket or device
  size      bytes of the file as it is now; old_size: as it was before
  changed   of a C, the differences: type, content, mode, owner, xattrs, mtime; empty: only an entry below it changed

--cost lists the files that were copied up instead, the most expensive first: the number of bytes copied (without data
shared with the lower by reflink, and holes), "wasted" if the content still equals the lower's, by its XXH3
fingerprint, and the path. With --json: id, name, files, bytes, wasted_files, wasted_bytes, and
copy_ups, a list of objects with path (and path_base64), branch (null: not found any more), bytes, size, wasted (null:
unknown) and xxh3 (of files that were compared).

exit codes: 0 listed (also if nothing changed), 1 failed, 2 invalid command line."""


def main(argv: list[str]) -> int:
    """Run `unionfs diff ARGV`."""
    parser = Parser("diff", _DESCRIPTION, _EPILOG)
    parser.add_argument("name", metavar="NAME", help="the container's name, its id, or the beginning of the id")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON object")
    form.add_argument("-z", "--null", action="store_true", help="end lines with a zero byte, for names with newlines")
    parser.add_argument("--cost", action="store_true", help="list copy-ups by the number of bytes copied")
    store_flags.add_root(parser)
    arguments = parser.parse(argv)
    if arguments.cost and arguments.null:
        parser.error("argument --cost: not allowed with -z")
    container = ContainerStore(arguments.root).find(arguments.name)
    if arguments.cost:
        _show_costs(container, diff.costs_of(container), as_json=arguments.json)
        return 0
    changes = diff.changes_of(container).changes
    if arguments.json:
        shown = {"id": container.id, "name": container.name, "changes": output.as_json(changes)}
        print(json.dumps(shown))
    else:
        output.print_lines(changes, end=b"\0" if arguments.null else b"\n")
    return 0


def _show_costs(container: Container, found: Sequence[CopiedUp], *, as_json: bool) -> None:
    wasted = [one for one in found if one.changed is False]
    total, for_nothing = (sum(one.copied for one in some) for some in (found, wasted))
    if as_json:
        shown = {
            "id": container.id,
            "name": container.name,
            "files": len(found),
            "bytes": total,
            "wasted_files": len(wasted),
            "wasted_bytes": for_nothing,
            "copy_ups": [_as_json(container, one) for one in found],
        }
        print(json.dumps(shown))
        return
    for one in found:
        verdict = {False: "wasted", True: "changed", None: "?"}[one.changed]
        path = printable(one.path)
        print(f"{human_size(one.copied):>10}  {verdict:<7}  {path}")
    sentence = f"{len(found)} files copied up, {human_size(total)} copied"
    if wasted:
        sentence += f"; {len(wasted)} of them, {human_size(for_nothing)}, needlessly: their content equals the lower's"
    print(sentence, file=sys.stderr)


def _as_json(container: Container, one: CopiedUp) -> dict[str, Any]:
    shown: dict[str, Any] = {
        **output.path_as_json(one.path),
        "branch": None if one.branch is None else container.branches[one.branch - 1],
        "bytes": one.copied,
        "size": one.size,
        "wasted": None if one.changed is None else not one.changed,
    }
    if one.fingerprint:
        shown["xxh3"] = one.fingerprint
    return shown

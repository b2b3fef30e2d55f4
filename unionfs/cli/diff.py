"""`unionfs diff`: list what a container changed, while it runs or after."""

from __future__ import annotations

import json
from typing import Final

from unionfs.cli import changing, showing
from unionfs.cli.arguments import Parser
from unionfs.cli.containers import ContainerStore

_DESCRIPTION: Final = """\
List what a container changed in its root filesystem, one path on a line: A added, C changed, D deleted. A directory is
changed when something in it is; of a deleted directory only the top is listed. What was written but is equal to what
was there is no change."""

_EPILOG: Final = """\
--json prints one object: id, name, and changes, a list of objects with
  kind      A, C or D
  path      the path; if it is not UTF-8, with U+FFFD in it, and path_base64 has its bytes
  type      file, directory, symlink, fifo, socket or device
  size      bytes of a file that is there now; old_size of one that was there
  changed   of a C, what is different: type, content, mode, owner, xattrs, mtime; empty: only something below it

exit codes: 0 listed (also if nothing changed), 1 failed, 2 the command line makes no sense."""


def main(argv: list[str]) -> int:
    """Run `unionfs diff ARGV`."""
    parser = Parser("diff", _DESCRIPTION, _EPILOG)
    parser.add_argument("name", metavar="NAME", help="the container's name, its id, or how that begins")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON object")
    form.add_argument("-z", "--null", action="store_true", help="end lines with a zero byte, for names with newlines")
    parser.add_argument("--root", metavar="DIR", help="where containers are kept (default: $XDG_DATA_HOME/unionfs)")
    arguments = parser.parse(argv)
    container = ContainerStore(arguments.root).find(arguments.name)
    changes = changing.changes_of(container).changes
    if arguments.json:
        shown = {"id": container.id, "name": container.name, "changes": showing.as_json(changes)}
        print(json.dumps(shown))
    else:
        showing.print_lines(changes, end=b"\0" if arguments.null else b"\n")
    return 0

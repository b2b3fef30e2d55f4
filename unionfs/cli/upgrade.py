"""`unionfs upgrade`: have mounted unions continue in the version that is installed now."""

from __future__ import annotations

import json
import sys
from typing import Final

from unionfs.cli.arguments import Parser
from unionfs.cli.errors import FAILED, CommandError, format_failure
from unionfs.control.upgrade_client import Outcome, Target, own_targets, request, target_of
from unionfs.fuse import mounting
from unionfs.printable import printable, printable_line

_EPILOG: Final = """\
The new daemon runs from the same files as the old one: the same Python, and the package in the same
directory, which `pip install --upgrade` or the package manager has replaced. Programs wait for some milliseconds
and see no error; open files, locks and mappings stay valid. If the new version cannot continue, the old daemon does.
Mounts without a keeper (docs/reliability.md) and those with --watch or --passthrough must be unmounted and mounted
again.

--json prints a list of objects: mountpoint, upgraded (true or false), version_before, version (that serves now), why
(the reason if it is not upgraded, else ""), kept (false if its keeper was killed meanwhile).

exit codes: 0 all are upgraded; 1 at least one is not, and continues as before"""


def main(argv: list[str]) -> int:
    """Run `unionfs upgrade ARGV`."""
    parser = Parser("upgrade", "Let daemons of the installed version serve mounted unions from now on.", _EPILOG)
    parser.add_argument("mountpoints", metavar="MOUNTPOINT", nargs="*")
    parser.add_argument(
        "--all", action="store_true", help="all unions of this user, including those of running containers"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse(argv)
    if bool(arguments.mountpoints) is arguments.all:
        parser.error("either MOUNTPOINT or --all")
    targets = own_targets() if arguments.all else [_union_at(path) for path in arguments.mountpoints]
    outcomes = [request(target) for target in targets]
    if arguments.json:
        print(json.dumps([_as_json(outcome) for outcome in outcomes]))
    else:
        _print_table(outcomes)
    for outcome in outcomes:
        if not outcome.is_kept:
            why = "upgraded, but its keeper was killed meanwhile: if the daemon dies, the mount ends"
            print(printable_line(f"unionfs: {outcome.mountpoint}: {why}"), file=sys.stderr)
    failures = [outcome for outcome in outcomes if outcome.why]
    for outcome in failures:
        print(format_failure(CommandError(f"upgrade failed: {outcome.mountpoint}: {outcome.why}")), file=sys.stderr)
    return FAILED if failures else 0


def _union_at(path: str) -> Target:
    mount = mounting.union_at(mounting.resolve_mountpoint(path))
    if mount is None:
        raise CommandError(f"upgrade failed: {path}: no union is mounted there", hint="`findmnt -t fuse.unionfs`")
    return target_of(mount)


def _print_table(outcomes: list[Outcome]) -> None:
    if not outcomes:
        print("no union of this user is mounted", file=sys.stderr)
        return
    rows: list[tuple[str, ...]] = [("MOUNTPOINT", "BEFORE", "NOW", "RESULT")]
    for one in outcomes:
        result = "not upgraded" if one.why else "upgraded"
        cells = (one.mountpoint, one.version_before or "-", one.version or "-", result)
        rows.append(tuple(map(printable, cells)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    sys.stdout.flush()


def _as_json(outcome: Outcome) -> dict[str, str | bool]:
    return {
        "mountpoint": outcome.mountpoint,
        "upgraded": not outcome.why,
        "version_before": outcome.version_before,
        "version": outcome.version,
        "why": outcome.why,
        "kept": outcome.is_kept,
    }

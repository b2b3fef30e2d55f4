"""`unionfs doctor`: list what this machine lacks, why it matters, and the command that installs or enables it."""

from __future__ import annotations

import json
import os
import sys
from typing import Final

from unionfs.cli import store_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import FAILED
from unionfs.doctor.diagnosis import LIMITED, OK, Finding, diagnose
from unionfs.doctor.machine import examine
from unionfs.printable import printable_line

_DESCRIPTION: Final = """\
Test whether this machine has all that `unionfs run` needs, and print the command that installs or enables the rest."""

_EPILOG: Final = """\
exit codes: 0 if `unionfs run` works, possibly with limits; 1 if it does not."""

_COLOURS: Final = {OK: "32", LIMITED: "33"}  # of SGR: green, yellow; all else is red
_RED: Final = "31"


def main(argv: list[str]) -> int:
    """Run `unionfs doctor ARGV`."""
    parser = Parser("doctor", _DESCRIPTION, _EPILOG)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    store_flags.add_root(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    arguments = parser.parse(argv)
    findings = diagnose(examine(arguments.root))
    works = not any(finding.stops_run for finding in findings)
    if arguments.json:
        checks = [finding._asdict() for finding in findings]
        print(json.dumps({"works": works, "checks": checks}, indent=1))
    else:
        _print(findings, works=works, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ)
    return 0 if works else FAILED


def _print(findings: list[Finding], *, works: bool, colour: bool) -> None:
    for finding in findings:
        print(f"{_coloured(finding.state, colour)} {finding.name}: {printable_line(finding.found)}")
        for label, text in (("why", finding.why), ("mend", finding.mend)):
            if text:
                print(f"          {label + ':':<5} {printable_line(text)}")
    limited = any(finding.state == LIMITED for finding in findings)
    print()
    if not works:
        print("`unionfs run` does not work here.")
    else:
        print("`unionfs run` works here, within the limits above." if limited else "`unionfs run` works here.")


def _coloured(state: str, colour: bool) -> str:
    padded = f"{state:<9}"
    return f"\x1b[{_COLOURS.get(state, _RED)}m{padded}\x1b[0m" if colour else padded

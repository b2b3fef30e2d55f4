"""`unionfs profile`: record where a job's time on a union went, and list remedies."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from contextlib import suppress
from types import FrameType
from typing import Any, Final

from unionfs.cli import each, live
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import NOT_EXECUTABLE, NOT_FOUND, OWN_FAILURE, CommandError, failed
from unionfs.cli.live import Target
from unionfs.cli.units import human_size
from unionfs.control import activity_client
from unionfs.control.client import NoAnswerError
from unionfs.output_file import OutputFile
from unionfs.printable import printable, printable_line
from unionfs.profiles import causes, page
from unionfs.profiles.causes import Cause
from unionfs.profiles.recording import Recording, Row

_DESCRIPTION: Final = """\
Record the requests to a union while COMMAND runs, or for some seconds: requests and waits by program, directory and
kind, copy-ups, and why the kernel asked instead of using its cache. Then list remedies, with the time and requests that
each would have saved. Requests of all programs on the union are recorded, not only those of COMMAND."""

_EPILOG: Final = """\
Without MOUNTPOINT, all unions that are mounted when COMMAND begins are recorded, and those that it used are reported.
With COMMAND the report goes to standard error, and the exit code is COMMAND's (125 if recording failed).

--json prints a list with an object for each union: union, seconds, complete (false: its daemon ended first), forgot
(true: reasons may be wrong, since too much was to be remembered), settings, messages, cost_s (seconds that programs
waited for the daemon), rows (kind, reason, program, directory, requests, size, seconds, copying, blocked, disk), files
(those with the most requests), copy_ups (program, directory, use, count, size, seconds), timeline, and causes: name,
what, remedy, requests, size and seconds (which the remedy saves), program, directory.

Reasons: first (asked for the first time), again (the kernel had dropped it), expired (older than --timeout), missing
and missing again (no such name), atime (attributes after a read), written (after a write), changed (after a change in
the directory), earlier (after something before the recording), xattr (the kernel caches none).

examples:
  unionfs profile -- make -C merged
  unionfs profile merged --for 30 --html profile.html"""

_ROWS: Final = 8  # of each table
_INTERVAL_S: Final = 0.25
_PATIENCE_S: Final = 30.0
"""Seconds to wait for the last line of a daemon, which may have to finish other work first."""


def main(argv: list[str]) -> int:
    """Run `unionfs profile ARGV`."""
    parser = Parser("profile", _DESCRIPTION, _EPILOG)
    parser.add_argument("union", metavar="MOUNTPOINT|CONTAINER", nargs="?", help="default: all unions")
    help_ = "record for SECONDS (5, or 5s), or until Ctrl-C"
    parser.add_argument("--for", metavar="SECONDS", dest="duration", type=_seconds, help=help_)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--html", metavar="FILE", help="write a page with a time line, too")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the report to FILE")
    each.add_root(parser)
    help_ = "the command to record, after `--`"
    parser.add_argument("command", metavar="COMMAND", nargs="*", help=help_)
    # argparse would take the first word of COMMAND for MOUNTPOINT, and would not find COMMAND behind a flag.
    before = argv[: argv.index("--")] if "--" in argv else argv
    command = argv[len(before) + 1 :]
    parser.acts_as_owner = False  # COMMAND runs with the caller's ids
    arguments = parser.parse(before)
    if arguments.command:
        parser.error("write `--` before COMMAND")
    if bool(command) == (arguments.duration is not None):
        parser.error("give either `-- COMMAND` or --for SECONDS")
    if not command and arguments.union is None:
        parser.error("--for needs a MOUNTPOINT or CONTAINER")
    named = arguments.union is not None
    targets = (
        [live.target_of(arguments.union, arguments.root, "profile")] if named else live.all_targets(arguments.root)
    )
    if not targets:
        hint = "mount one first (unionfs mount), or name a running container"
        raise CommandError("profile failed: no union is mounted here", hint=hint, status=OWN_FAILURE)
    recorders = [_Recorder(target) for target in targets]
    for recorder in recorders:
        recorder.start()
    recorders = [recorder for recorder in recorders if _is_recording(recorder, is_named=named)]
    try:
        status = _run(command) if command else _wait(arguments.duration)
    finally:
        for recorder in recorders:
            recorder.end()
    recordings = [recorder.recording for recorder in recorders if recorder.recording is not None]
    _report([one for one in recordings if one.messages or named], arguments, has_command=bool(command))
    return status


def _seconds(text: str) -> float:
    return live.seconds(text.removesuffix("s"))


class _Recorder:
    """Receives the recording of a daemon, on a thread that ends with the process."""

    def __init__(self, target: Target) -> None:
        self.target = target  # immutable
        self.recording: Recording | None = None  # set once
        self.failure = ""  # why there is no recording; set once
        self._connection: activity_client.Recording | None = None  # set once
        self._has_begun = threading.Event()
        self._is_to_end = False
        self._thread = threading.Thread(target=self._receive, daemon=True)

    def start(self) -> None:
        """Return when the daemon records, or cannot."""
        self._thread.start()
        self._has_begun.wait()

    def end(self) -> None:
        """Have the daemon send its last line, and wait for it."""
        self._is_to_end = True
        if self._connection is not None:
            self._connection.end()
        self._thread.join(_PATIENCE_S)

    def _receive(self) -> None:
        mount = self.target.mount
        try:
            with activity_client.record(mount.minor, mount.user_id, _INTERVAL_S) as self._connection:
                for line in self._connection.lines():
                    if self.recording is None:
                        self.recording = Recording(self.target.name, line["settings"], line["at"])
                        self._has_begun.set()
                    else:
                        self.recording.add(line)
                if self.recording is not None:
                    self.recording.is_complete = self._is_to_end
        except NoAnswerError as why:
            self.failure = str(why)
        except (KeyError, TypeError):
            self.recording, self.failure = None, "its daemon is of another version of unionfs"
        finally:
            self._has_begun.set()


def _is_recording(recorder: _Recorder, *, is_named: bool) -> bool:
    """Whether it records. Raises: CommandError if it does not and the user has named the union."""
    if recorder.recording is None and is_named:
        why = recorder.failure or "its daemon has ended"
        raise CommandError(failed("profile", recorder.target.name, why), status=OWN_FAILURE)
    return recorder.recording is not None


def _wait(seconds: float) -> int:
    """Wait, until Ctrl-C at most."""
    with suppress(KeyboardInterrupt):
        time.sleep(seconds)
    return 0


def _run(command: list[str]) -> int:
    """Run a command. Returns its exit code, 128 + the number of the signal that has killed it. Ctrl-C is the command's
    to handle; other signals that would end this process are passed on."""
    children: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGINT:  # the terminal has sent it to the command, too
            for child in children:
                child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        children.append(subprocess.Popen(command))
        code = children[0].wait()
    except FileNotFoundError as error:
        raise CommandError.of("starting the command", error, status=NOT_FOUND) from error
    except OSError as error:
        raise CommandError.of("starting the command", error, status=NOT_EXECUTABLE) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


# -- the report --------------------------------------------------------------------------------------------------------


def _report(recordings: list[Recording], arguments: Namespace, *, has_command: bool) -> None:
    if arguments.html is not None:
        _write(arguments.html, page.page(recordings, "Where the time on unions went"))
    if arguments.json:
        text = json.dumps([{**one.as_json(), "causes": list(map(_as_json, causes.causes(one)))} for one in recordings])
    else:
        parts = ["\n".join(_lines(one)) for one in recordings]
        text = "\n\n".join(parts) or "No union was used."
    if arguments.output is not None:
        _write(arguments.output, text + "\n")
    else:
        print(text, file=sys.stderr if has_command else sys.stdout, flush=True)


def _write(path: str, text: str) -> None:
    try:
        with OutputFile(path) as output:
            output.file.write(text.encode(errors="replace"))
    except OSError as error:
        raise CommandError.of("writing the report", error, status=OWN_FAILURE) from error


def _as_json(cause: Cause) -> dict[str, Any]:
    return {**cause._asdict(), "seconds": round(cause.seconds, 6)}


def _lines(recording: Recording) -> list[str]:
    lines = [
        f"{printable(recording.name)}: {recording.messages} requests in {recording.seconds:.1f} s; "
        f"programs waited {_ms(recording.cost)} for the daemon"
    ]
    if not recording.is_complete:
        lines.append("The daemon ended or was replaced before the end: the last requests are missing.")
    if recording.forgot:
        lines.append("The job used more names and files than are remembered: reasons may be wrong.")
    found = causes.causes(recording)
    lines += ["", "WHAT WOULD HELP" if found else "No cause stands out."]
    for number, cause in enumerate(found, 1):
        lines += _cause_lines(number, cause)
    for title, fields in (("PROGRAM  DIRECTORY", ("program", "directory")), ("KIND  REASON", ("kind", "reason"))):
        lines += ["", f"{'REQUESTS':>8}  {'WORKED':>10}  {'WAITED':>10}  {title}"]
        rows = recording.by(*fields)
        lines += [_row(row, fields) for row in rows[:_ROWS]]
        if len(rows) > _ROWS:
            lines.append(f"{sum(row.requests for row in rows[_ROWS:]):>8}  in {len(rows) - _ROWS} other rows")
    return lines


def _cause_lines(number: int, cause: Cause) -> list[str]:
    place = f"most by {printable(cause.program) or 'the kernel'} in {printable(cause.directory) or 'unknown places'}"
    lines = [f"{number:>2}. {printable_line(cause.what)} They took {_ms(cause.seconds)}, {place}."]
    if cause.remedy:
        lines.append(f"    {printable_line(cause.remedy)} {causes.saved(cause, human_size)}".rstrip())
    return lines


def _row(row: Row, fields: tuple[str, ...]) -> str:
    names = "  ".join(printable(getattr(row, field)) or "-" for field in fields)
    return f"{row.requests:>8}  {_ms(row.seconds):>10}  {_ms(row.waited):>10}  {names}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"

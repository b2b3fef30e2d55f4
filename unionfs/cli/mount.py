"""`unionfs mount`: merge directories into one tree at a mountpoint, ready when the command returns."""

from __future__ import annotations

import os
import sys
from argparse import Namespace

from unionfs.cli import parents, union_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import USAGE, CommandError, failed
from unionfs.core.options import OptionError, Options, make_work
from unionfs.core.owners import OwnerTranslation
from unionfs.daemon.options import DaemonOptions, StartError
from unionfs.daemon.start import start
from unionfs.fuse.mounting import MountOptions
from unionfs.fuse.options import BUSY_POLL_AUTO, BUSY_POLL_MODES, FOREVER_S, ServeOptions
from unionfs.printable import printable_line

_DESCRIPTION = """\
Merge read-only directories and at most one writable directory into one tree, shown at MOUNTPOINT.

A file of a higher directory hides files of the same name in lower ones; directories are merged. All changes are written
to the upper directory; without one the union is read-only. The union can be used when the command returns, and stays
mounted until `unionfs umount MOUNTPOINT`."""

_EPILOG = """\
The first mount or container leaves a process, unionfs-parent, which makes further mounts of the same user faster. It
ends a minute, or UNIONFS_LINGER seconds, after its last mount has ended; UNIONFS_LINGER=0 disables it. It needs
Linux 6.5. `unionfs stats` says whether a mount was made by a parent, and why not.

example:
  mkdir -p upper merged
  unionfs mount --lower changes --lower base --upper upper merged"""


def main(argv: list[str]) -> int:
    """Run `unionfs mount ARGV`."""
    arguments = _parser().parse(argv)
    if not arguments.lower:
        raise CommandError("mount: no --lower DIR given", hint="see unionfs mount --help", status=USAGE)
    made_work = _default_work(arguments)
    try:
        return run(_daemon_options(arguments), foreground=arguments.foreground)
    except CommandError:
        if made_work is not None:
            from shutil import rmtree  # late: importing it takes longer than checking the arguments

            rmtree(made_work, ignore_errors=True)  # this call has made it
        raise


def run(options: DaemonOptions, *, foreground: bool) -> int:
    """Mount a union; return when it can be used, or with `foreground` when it is unmounted."""
    try:
        if foreground:
            from unionfs.daemon import process

            process.serve(options, warn=_warn)
        else:
            start(options, warn=_warn, become_parent=parents.for_first_mount())
    except StartError as error:
        raise CommandError(str(error), hint=error.hint) from error
    return 0


def branches(
    lowers: list[str],
    upper: str | None,
    work: str | None,
    *,
    whiteout: str,
    durability: str,
    owners: OwnerTranslation | None = None,
    atime: bool = True,
    overrides: str = "",
    static_nlink: bool = False,
    passthrough: bool = False,
    metacopy: bool = False,
    partial_from: int = 0,
) -> Options:
    """The core's options, with absolute paths, since the daemon changes its directory."""
    try:
        return Options(
            lowers=tuple(map(os.path.abspath, lowers)),
            upper=None if upper is None else os.path.abspath(upper),
            work=None if work is None else os.path.abspath(work),
            whiteout=whiteout,
            durability=durability,
            owners=owners,
            atime=atime,
            overrides=overrides,
            overrides_shared=True,
            static_nlink=static_nlink,
            passthrough=passthrough,
            metacopy=metacopy,
            partial_from=partial_from,
        )
    except OptionError as error:
        raise CommandError(f"mount failed: {error}") from error


def _parser() -> Parser:
    parser = Parser("mount", _DESCRIPTION, _EPILOG)
    add = parser.add_argument
    add("mountpoint", metavar="MOUNTPOINT", help="an existing directory")
    add("--lower", metavar="DIR", action="append", help="a read-only directory; repeat it, the topmost first")
    add("--upper", metavar="DIR", help="the writable directory on top (default: none, the union is read-only)")
    add(
        "--work",
        metavar="DIR",
        help="the work directory, on the filesystem of the upper directory "
        "(default: UPPER.work beside the upper, made if missing)",
    )
    add("--read-only", action="store_true", help="refuse changes even if there is an upper directory")
    add("--allow-other", action="store_true", help="let other users access the mount, too (always if root mounts)")
    union_flags.add_upper(parser)
    union_flags.add_partial_from(parser)
    union_flags.add_transport(parser)
    add(
        "--busy-poll",
        choices=BUSY_POLL_MODES,
        default=BUSY_POLL_AUTO,
        help="poll for the next request for some 200 microseconds before sleeping, which keeps a processor busy; auto: "
        "while that saves as much time as it costs, and no other process wants the processor "
        "(default: auto; kernel transport only)",
    )
    add("--writeback", action="store_true", help="let the kernel collect small writes in its cache")
    add(
        "--passthrough",
        action="store_true",
        help="let the kernel itself read and write the files of the directories, which is faster for large files and "
        "slower for many small ones; for root of the machine, Linux 6.9 or newer (see docs/passthrough.md)",
    )
    add(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=FOREVER_S,
        help="how long the kernel may cache names and attributes (default: until they change)",
    )
    add(
        "--watch",
        action="store_true",
        help="notice changes that others make to the directories underneath (inotify); without it such changes are "
        "undefined",
    )
    union_flags.add_no_keeper(parser, " (see docs/reliability.md)")
    add("-f", "--foreground", action="store_true", help="serve the union in this process; Ctrl-C unmounts")
    add("--log", metavar="FILE", help="append the daemon's log to FILE (default: none, or stderr in the foreground)")
    add("--debug", action="store_true", help="log everything and show tracebacks; implies --foreground without --log")
    return parser


def _daemon_options(arguments: Namespace) -> DaemonOptions:
    read_only = arguments.read_only or arguments.upper is None
    union = branches(
        arguments.lower,
        arguments.upper,
        arguments.work,
        whiteout=arguments.whiteout,
        durability=arguments.durability,
        passthrough=arguments.passthrough,
        metacopy=arguments.partial_from > 0,
        partial_from=arguments.partial_from,
    )
    if arguments.debug and arguments.log is None:
        arguments.foreground = True
    return DaemonOptions(
        union=union,
        mountpoint=arguments.mountpoint,
        transport=arguments.transport,
        mount=MountOptions(read_only=read_only, allow_other=arguments.allow_other or None),
        serve=ServeOptions(
            timeout_s=arguments.timeout,
            writeback=arguments.writeback,
            passthrough=arguments.passthrough,
            read_only=read_only,
            busy_poll=arguments.busy_poll,
            debug=arguments.debug,
        ),
        log=None if arguments.log is None else os.path.abspath(arguments.log),
        watch=arguments.watch,
        keeper=not arguments.no_keeper,
        debug=arguments.debug,
    )


def _default_work(arguments: Namespace) -> str | None:
    """Fill in --work if it is missing. Returns the directory if it was made."""
    if arguments.upper is None or arguments.work is not None:
        return None
    try:
        arguments.work, is_new = make_work(arguments.upper)
    except OSError as error:
        sentence = failed("making the work directory", str(error.filename), error.strerror or str(error))
        raise CommandError(sentence, hint="name another one on the same filesystem: --work DIR") from error
    made: str = arguments.work
    return made if is_new else None


def _warn(warning: str) -> None:
    print(printable_line(f"unionfs: warning: {warning}"), file=sys.stderr)

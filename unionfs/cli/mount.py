"""`unionfs mount`: merge directories into one tree at a mountpoint, ready when the command returns."""

from __future__ import annotations

import os
import sys
from argparse import Namespace

from unionfs.cli import parents
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import USAGE, CommandError, failed
from unionfs.core.options import DURABILITIES, WHITEOUT_FORMATS, OptionError, Options, make_work
from unionfs.core.owners import OwnerTranslation
from unionfs.daemon_options import DaemonOptions, StartError
from unionfs.daemon_start import start
from unionfs.fuse.mounting import MountOptions
from unionfs.fuse.options import BUSY_POLL_AUTO, BUSY_POLL_MODES, DEFAULT_TRANSPORT, FOREVER_S, TRANSPORTS, ServeOptions
from unionfs.printable import printable_line

_DESCRIPTION = """\
Merge read-only directories and at most one writable directory into one tree, shown at MOUNTPOINT.

What a higher directory holds hides what lower ones hold under the same name. All changes go to the upper directory;
without one the union is read-only. The union can be used when the command returns, and stays until
`unionfs umount MOUNTPOINT`."""

_EPILOG = """\
The first mount or container leaves a process that makes further ones of the same user quick: unionfs-parent. It ends a
minute after its last mount has gone, or after UNIONFS_LINGER seconds; with UNIONFS_LINGER=0 none is left and none is
asked. It needs Linux 6.5. `unionfs stats` says which mounts it has made, and why it has not made one.

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
            from shutil import rmtree  # late: importing it takes longer than to see that all is well

            rmtree(made_work, ignore_errors=True)  # all that is in it was made by the try
        raise


def run(options: DaemonOptions, *, foreground: bool) -> int:
    """Mount as `options` say and return when the union can be used, or with `foreground` when it is unmounted."""
    try:
        if foreground:
            from unionfs import daemon

            daemon.serve(options, warn=_warn)
        else:
            parents.leave(start(options, warn=_warn).pid)
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
        )
    except OptionError as error:
        raise CommandError(f"mount failed: {error}") from error


def _parser() -> Parser:
    parser = Parser("mount", _DESCRIPTION, _EPILOG)
    add = parser.add_argument
    add("mountpoint", metavar="MOUNTPOINT", help="an existing directory")
    add("--lower", metavar="DIR", action="append", help="a read-only directory; repeat it, the topmost first")
    add("--upper", metavar="DIR", help="the writable directory on top; without it the union is read-only")
    add(
        "--work",
        metavar="DIR",
        help="a directory for unfinished work, on the filesystem of the upper directory "
        "(default: UPPER.work beside it, made if missing)",
    )
    add("--read-only", action="store_true", help="refuse changes even if there is an upper directory")
    add("--allow-other", action="store_true", help="let other users in, too; always so when root mounts")
    add("--whiteout", choices=WHITEOUT_FORMATS, default="aufs", help="how removed names are marked (default: aufs)")
    add(
        "--durability",
        choices=DURABILITIES,
        default="normal",
        help="strict: a copied-up file is on the device before it shows; volatile: fsync does nothing "
        "(default: normal)",
    )
    add("--transport", choices=tuple(TRANSPORTS), default=DEFAULT_TRANSPORT, help=f"default: {DEFAULT_TRANSPORT}")
    add(
        "--busy-poll",
        choices=BUSY_POLL_MODES,
        default=BUSY_POLL_AUTO,
        help="look for the next request for some 200 microseconds before sleeping, which keeps a processor busy; auto: "
        "while it finds requests and nobody else wants the processor (default: auto; kernel transport only)",
    )
    add("--writeback", action="store_true", help="let the kernel collect small writes")
    add(
        "--passthrough",
        action="store_true",
        help="let the kernel read and write the files of the directories itself, which is faster for large files and "
        "slower for opening many; for root of the machine, Linux 6.9 or newer (see docs/passthrough.md)",
    )
    add(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=FOREVER_S,
        help="how long the kernel may remember names and attributes (default: until they change)",
    )
    add(
        "--watch",
        action="store_true",
        help="notice changes that others make to the directories underneath (inotify); without it such changes are "
        "undefined",
    )
    add(
        "--no-keeper",
        action="store_true",
        help="leave no process that has another daemon continue when this one dies (see docs/reliability.md)",
    )
    add("-f", "--foreground", action="store_true", help="serve in this process; Ctrl-C unmounts")
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
    """Fill in --work if it is missing; the directory, if it had to be made for that."""
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

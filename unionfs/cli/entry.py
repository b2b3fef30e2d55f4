"""Find the verb of a command line, import its module only, and turn failures into a message and an exit code.

Must stay fast: imports nothing that a verb may not need. Each `unionfs/cli/VERB.py` has `main(argv) -> int`.
"""

from __future__ import annotations

import errno
import os
import sys
from keyword import iskeyword

from unionfs import compiled, version
from unionfs.cli.errors import (
    BROKEN_PIPE,
    EXIT_CODES,
    FAILED,
    FAILURES,
    INTERRUPTED,
    OWN_FAILURE,
    USAGE,
    CommandError,
    format_failure,
    status_of,
)
from unionfs.cli.mount_forms import is_mount_helper
from unionfs.printable import printable_line
from unionfs.write_all import replace_standard_streams

VERBS = {
    "mount": "merge directories into one tree at a mountpoint",
    "branch": "list, add, remove and move the read-only branches of a mounted union",
    "freeze": "make the upper of a mounted union read-only, with an empty upper on top",
    "status": "show how many paths a container has changed, and conflicting changes of this machine",
    "fork": "make a second container with the present files of a container",
    "tree": "list forks, with the number of paths that each has changed",
    "merge": "bring the changes of a fork into the container that it was forked from",
    "drop": "remove containers at once",
    "umount": "unmount a union and wait until its daemon has ended",
    "upgrade": "let daemons of the installed version serve mounted unions from now on",
    "complete": "bring all data of changed files to the upper directory of a union",
    "run": "run a command in a container whose root filesystem is a union",
    "try": "run a command on a copy-on-write view of this machine, then list its changes",
    "diff": "list the changes of a container",
    "apply": "apply the changes of a container to this machine",
    "ps": "list containers",
    "create": "make a container without running it",
    "exec": "run one more command in a running container",
    "start": "run a container that was created or has ended",
    "stop": "end a container",
    "restart": "end a container and run it again",
    "kill": "send a signal to a container",
    "wait": "wait until a container has ended, and print its exit code",
    "top": "list the processes of a container, or all unions by activity",
    "logs": "show the output of a container",
    "cp": "copy files between a container and this machine",
    "rename": "give a container another name",
    "inspect": "show a container or an image as JSON",
    "commit": "make an image of a container",
    "build": "build an image from a Containerfile",
    "volume": "manage volumes, directories that outlive containers: create, ls, inspect, rm, prune",
    "export": "write the root filesystem of a container as a tar",
    "rm": "remove containers",
    "container": "the verbs on containers under longer names (`container ls`), and `container prune`",
    "pull": "fetch images from a registry",
    "push": "send an image to a registry",
    "login": "store a user name and a password for a registry",
    "logout": "delete the stored password of a registry",
    "search": "list repositories, tags or referrers of a registry",
    "images": "list images",
    "image": "the verbs on images under longer names (`image ls`), and `image prune`",
    "tag": "give an image another name",
    "rmi": "remove images",
    "history": "list the steps by which an image was made",
    "load": "load images from an archive",
    "save": "write images to an archive",
    "import": "make an image of a root filesystem's tar",
    "why": "show which branch of a union provides a path, and which branches it hides",
    "stats": "show messages, copy-ups and memory of a mounted union",
    "watch": "show the activity of a mounted union: requests, waits, copy-ups, memory",
    "profile": "record where a job's time on a union went, and list remedies",
    "trace": "print the copy-ups of a mounted union as they happen",
    "oci": "run containers as an OCI runtime, with the commands of runc",
    "snapshotter": "serve containerd as a snapshotter whose snapshots are unions",
    "bench": "measure the cost of copy-up, beside other union filesystems",
    "doctor": "list what this machine lacks, and the commands that install or enable it",
    "completion": "print the completion script of unionfs or layers for bash, zsh or fish",
    "man": "print the manual page of unionfs or layers",
}
"""The verbs, in the order `--help` lists them; each is `unionfs/cli/NAME.py` (`NAME_.py` where NAME is a keyword)."""

PASS_ON_CODES = ("run", "create", "exec", "try", "build", "profile")
"""Verbs that return a command's exit code (and `create`, as with docker): our own failures are 125 and above."""


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    sys.unraisablehook = _end_if_interrupted
    compiled.use_compiled()
    replace_standard_streams()
    return run(arguments)


def run(arguments: list[str]) -> int:
    """Like `main`, for a process that has already set up its streams and imports."""
    verb = arguments[0] if arguments else ""
    if verb == "container" and len(arguments) > 1:
        verb = arguments[1]  # `container VERB`
    debug = _debug_wanted(arguments)
    try:
        status = _dispatch(arguments[0] if arguments else "", arguments)
        if sys.stdout is not None:  # None when the caller closed descriptor 1
            sys.stdout.flush()
        return status
    except FAILURES as error:
        print(format_failure(error), file=sys.stderr)
        _drop_unwritten()
        if debug:
            _print_traceback()
        return status_of(error, passes_on_codes=verb in PASS_ON_CODES)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _drop_unwritten()
        return BROKEN_PIPE
    except (OSError, MemoryError) as error:
        _drop_unwritten()
        failed = error if isinstance(error, OSError) else OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        print(format_failure(CommandError.of(verb or "unionfs", failed)), file=sys.stderr)
        if debug:
            _print_traceback()
        return OWN_FAILURE if verb in PASS_ON_CODES else FAILED
    except Exception as bug:  # noqa: BLE001 - users get one line, no traceback
        if debug:
            _print_traceback()
        print(printable_line(f"unionfs: internal error: {type(bug).__name__}: {bug}"), file=sys.stderr)
        if not debug:
            print("  this is a bug; set UNIONFS_DEBUG=1 to see where", file=sys.stderr)
        return OWN_FAILURE if verb in PASS_ON_CODES else FAILED


def _end_if_interrupted(found: sys.UnraisableHookArgs) -> None:
    """End this process if Python drops a KeyboardInterrupt: in a destructor, or in a callback of an import."""
    if found.exc_type is KeyboardInterrupt:
        os._exit(INTERRUPTED)
    sys.__unraisablehook__(found)


def _drop_unwritten() -> None:
    """Drop buffered output if stdout fails (full disk, no reader), so that Python does not flush it at exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _dispatch(verb: str, arguments: list[str]) -> int:
    if is_mount_helper(sys.argv[0], arguments):
        return _run_module("mount_helper", arguments)
    if verb in VERBS:
        return _run_module(f"{verb}_" if iskeyword(verb) else verb, arguments[1:])
    if any(argument.startswith("-o") for argument in arguments):
        return _run_module("mount_helper", arguments)
    if verb in ("-V", "--version"):
        print(version.text())
        return 0
    if verb in ("", "-h", "--help", "help"):
        print(help_text(), file=sys.stdout if verb else sys.stderr)
        return 0 if verb else USAGE
    raise CommandError(f"there is no command {verb!r}", hint=_suggestion(verb), status=USAGE)


def _run_module(name: str, arguments: list[str]) -> int:
    from importlib import import_module

    status: int = import_module(f"unionfs.cli.{name}").main(arguments)
    return status


def help_text() -> str:
    """The page of `unionfs --help`."""
    verbs = "\n".join(f"  {verb:<11} {summary}" for verb, summary in VERBS.items())
    return f"""\
usage: unionfs VERB [OPTIONS...]
       unionfs -o lowerdir=A:B[,upperdir=U,workdir=W][,OPTION...] MOUNTPOINT

Merge read-only directories and one writable directory into one tree, and run containers on it, without root.

verbs:
{verbs}

`unionfs VERB --help` explains one verb. The second form replaces fuse-overlayfs.
UNIONFS_NAME=VALUE in the environment sets the default of the flag --name of every verb.

{EXIT_CODES}"""


def _suggestion(verb: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(verb, VERBS, n=1)
    return f"did you mean `unionfs {close[0]}`?" if close else "`unionfs --help` lists the commands"


def _debug_wanted(arguments: list[str]) -> bool:
    return "--debug" in arguments or os.environ.get("UNIONFS_DEBUG", "") not in ("", "0")


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()

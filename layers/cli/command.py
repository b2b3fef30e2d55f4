"""`layers VERB`: import the verb's module, run it, and print errors as a line with a hint and an exit code."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Final, NoReturn

from layers.cli.examples import EXAMPLES
from layers.errors import EXIT_CODES, LayerError, Malformed
from layers.manifest import Descriptor
from unionfs import store_files
from unionfs.printable import printable, printable_line
from unionfs.write_all import replace_standard_streams

VERBS: Final = {
    "inspect": "show sizes, hidden files and duplicate files of the layers of an image",
    "explore": "explore the layers of an image, a container or a union on a terminal",
    "why": "show which layer provides a path, and which hide it",
    "diff": "list the differences between two layers, trees or images",
    "check": "find contradictory, orphaned and foreign marks, and malformed owners",
    "convert": "write a layer's marks in another dialect",
    "verify": "list files of unpacked layers that have changed since they were unpacked",
    "squash": "merge several layers into one",
    "pack": "write a directory as a layer's tar",
    "unpack": "unpack a layer's tar into a directory",
    "gc": "remove blobs and layers that no image and no container refers to",
}

_SUBJECTS: Final = """\
A layer is given as a directory, a tar (compressed or not), or IMAGE, the name of an image in the store or its archive
(docker save, OCI); the prefixes `dir:`, `tar:`, `image:` and `archive:` resolve ambiguous names."""


class Parser(argparse.ArgumentParser):
    """The parser of one verb; wrong usage raises Malformed."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(
            prog=f"layers {verb}",
            description=description,
            epilog=f"example:\n  {EXAMPLES[verb]}\n\n{_SUBJECTS}\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--debug", action="store_true", help="show tracebacks")

    def parse_args(self, args: Sequence[str], namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        """The values of all flags. If root uses another user's store, the command is executed again as that user."""
        values = super().parse_args(args, namespace)
        if root := getattr(values, "root", None):
            try:
                store_files.run_as_owner(os.path.abspath(root), store_files.words_of(args, self.prog.split()))
            except store_files.OwnerError as error:
                raise LayerError(self.prog.removeprefix("layers "), "", str(error), hint=error.hint) from error
        return values

    def error(self, message: str) -> NoReturn:
        raise Malformed(self.prog.removeprefix("layers "), "", message, hint=f"see {self.prog} --help")


def main(
    argv: list[str] | None = None,
    in_use: Callable[[str], list[str]] = lambda root: [],
    bases: Callable[[str], list[Descriptor]] = lambda root: [],
    unions: Callable[[str, str], Sequence[str] | None] = lambda text, root: None,
) -> int:
    """Run `layers ARGV`. For gc, `in_use` gives the layer directories, `bases` the images, that containers of a store
    (the argument) need; for explore, `unions` gives the directories of a union or a container of a store, top first."""
    replace_standard_streams()
    arguments = sys.argv[1:] if argv is None else argv
    verb = arguments[0] if arguments else ""
    if verb in ("", "-h", "--help", "help"):
        print(help_text(), file=sys.stdout if verb else sys.stderr)
        return 0 if verb else 2
    if verb not in VERBS:
        print(f"layers: there is no command {printable(verb)!r}\n  `layers --help` lists the commands", file=sys.stderr)
        return 2
    try:
        run: Callable[..., int] = import_module(f"layers.cli.{verb}").main
        more = {"gc": (in_use, bases), "explore": (unions,)}.get(verb, ())
        status = run(arguments[1:], *more)
        sys.stdout.flush()
        return status
    except LayerError as error:
        _print_if_debugging(arguments)
        hint = (f"  {printable_line(line)}" for line in error.hint.splitlines())
        print(f"layers: {error}", *hint, sep="\n", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes stdout once more at exit
        return 141
    except MemoryError:
        print(f"layers: {verb} failed: {os.strerror(errno.ENOMEM)}", file=sys.stderr)
        return 1
    except OSError as error:
        _print_if_debugging(arguments)
        where = f"{printable(error.filename)}: " if error.filename is not None else ""
        print(f"layers: {verb} failed: {where}{printable_line(error.strerror or str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def help_text() -> str:
    """The text of `layers --help`."""
    verbs = "\n".join(f"  {verb:<8} {summary}" for verb, summary in VERBS.items())
    return f"""\
usage: layers VERB [OPTIONS...]

Inspect, compare, check and make the layers of container images.

verbs:
{verbs}

{_SUBJECTS}
`layers VERB --help` explains one verb.

{EXIT_CODES}"""


def _print_if_debugging(arguments: list[str]) -> None:
    if "--debug" in arguments or os.environ.get("UNIONFS_DEBUG", "") not in ("", "0"):
        import traceback

        traceback.print_exc()

"""`unionfs completion`: print a completion script of `unionfs` or `layers`, made from the parsers by shtab."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, Final

from unionfs.cli import parsers
from unionfs.cli.arguments import Parser

_DESCRIPTION: Final = """\
Print a script by which a shell completes the verbs, flags, choices and file names of unionfs or layers."""

_EPILOG: Final = """\
examples:
  source <(unionfs completion bash)                                                 this shell, or in ~/.bashrc
  unionfs completion zsh > ~/.zfunc/_unionfs                                        a directory of $fpath
  unionfs completion fish > ~/.config/fish/completions/unionfs.fish
  unionfs completion --command layers bash > ~/.local/share/bash-completion/completions/layers"""

SHELLS: Final = ("bash", "zsh", "fish")

_DIRECTORIES: Final = frozenset({"DIR", "MOUNTPOINT"})
_FILES: Final = frozenset(
    {"FILE", "FILE|URL", "LAYER|IMAGE", "OUTPUT", "PATH", "PROGRAM", "SOCKET", "TAR", "TAR|IMAGE"}
)
"""Metavars of values that are paths."""


def main(argv: list[str]) -> int:
    """Run `unionfs completion ARGV`."""
    parser = Parser("completion", _DESCRIPTION, _EPILOG)
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash, zsh or fish")
    parser.add_argument("--command", choices=("unionfs", "layers"), default="unionfs", help="default: unionfs")
    arguments = parser.parse(argv)
    command = parsers.of_unionfs() if arguments.command == "unionfs" else parsers.of_layers()
    print(script(command, arguments.shell))
    return 0


def script(command: parsers.Command, shell: str) -> str:
    """The completion script of `command` for one of SHELLS."""
    import shtab

    top = argparse.ArgumentParser(prog=command.name, description=command.summary)
    top.add_argument("--version", action="version", version="", help="show the version and exit")
    _add_verbs(top, command.verbs)
    text: str = shtab.complete(top, shell)
    return text


def _add_verbs(top: argparse.ArgumentParser, verbs: Mapping[str, parsers.Verb]) -> None:
    """Make `verbs` the subcommands of `top`."""
    given: Any = _given
    made = top.add_subparsers(metavar="VERB", parser_class=given)
    for name, verb in verbs.items():
        if verb.parser is None:
            parser = argparse.ArgumentParser(prog=f"{top.prog} {name}", description=verb.summary)
            _add_verbs(parser, verb.verbs)
        else:
            parser = verb.parser
            _mark_paths(parser)
        made.add_parser(name, help=verb.summary, parser=parser)


def _given(*, parser: argparse.ArgumentParser, **_: Any) -> argparse.ArgumentParser:
    """Stand in for the class that add_parser calls: return the existing parser."""
    return parser


def _mark_paths(parser: argparse.ArgumentParser) -> None:
    """Tell shtab which values are files and directories, by their metavars."""
    import shtab

    for action in parser._actions:
        if action.metavar in _DIRECTORIES:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]

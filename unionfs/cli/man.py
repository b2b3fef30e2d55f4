"""`unionfs man`: print the manual page of `unionfs` or `layers`, made from the parsers.

Pages are written in man(7) macros here, since argparse-manpage leaves out the text after a verb's flags: examples, the
form of JSON, exit codes.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final

from unionfs.cli import parsers
from unionfs.cli.arguments import Parser

_DESCRIPTION: Final = "Print the manual page of unionfs or layers, with a section for each verb, for man(1) to show."

_EPILOG: Final = """\
examples:
  unionfs man | man -l -
  unionfs man layers > ~/.local/share/man/man1/layers.1"""

_ESCAPED: Final = str.maketrans({"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", '"': "\\(dq"})

_SEE_ALSO: Final = {"unionfs": "layers", "layers": "unionfs"}


def main(argv: list[str]) -> int:
    """Run `unionfs man ARGV`."""
    parser = Parser("man", _DESCRIPTION, _EPILOG)
    parser.add_argument("command", nargs="?", choices=tuple(_SEE_ALSO), metavar="COMMAND", help="unionfs or layers")
    arguments = parser.parse(argv)
    print(page(parsers.of_layers() if arguments.command == "layers" else parsers.of_unionfs()))
    return 0


def page(command: parsers.Command) -> str:
    """The manual page of `command`, in section 1."""
    return "\n".join(_page(command))


def _page(command: parsers.Command) -> Iterator[str]:
    yield f'.TH {command.name.upper()} 1 "" "{command.name}" "User Commands"'
    yield from (".SH NAME", f"{_text(command.name)} \\- {_text(command.summary)}")
    yield ".SH SYNOPSIS"
    yield from _preformatted(_synopsis(command.help_text))
    yield ".SH DESCRIPTION"
    yield from _prose(command.help_text.partition("\n\n")[2])
    yield ".SH VERBS"
    for name, verb in command.verbs.items():
        yield from _verb(f"{command.name} {name}", verb)
    yield from (".SH SEE ALSO", f".BR {_SEE_ALSO[command.name]} (1)")


def _synopsis(help_text: str) -> str:
    usage = help_text.partition("\n\n")[0].removeprefix("usage: ")
    return "\n".join(line.strip() for line in usage.splitlines())


def _verb(name: str, verb: parsers.Verb) -> Iterator[str]:
    yield f'.SS "{_text(name)}"'
    if verb.parser is None:
        yield from _prose(verb.summary)
        yield from _short_names(name, verb.verbs)
        return
    yield from _preformatted(_usage(verb.parser))
    yield from _prose(verb.parser.description or verb.summary)
    for action in verb.parser._actions:
        if not isinstance(action, argparse._HelpAction) and action.help != argparse.SUPPRESS:
            yield from (".TP", f"{_head(action)}", _text(_help(action, verb.parser)) or "\\&")
    yield from _prose(verb.parser.epilog or "")


def _usage(parser: argparse.ArgumentParser) -> str:
    """The usage in lines of a fixed length, for every terminal, so that builds are reproducible."""
    parser.formatter_class = partial(argparse.HelpFormatter, width=74)
    vars(parser)["color"] = False  # of Python 3.14
    return "\n".join(line.strip() for line in parser.format_usage().removeprefix("usage: ").splitlines())


def _short_names(noun: str, verbs: Mapping[str, parsers.Verb]) -> Iterator[str]:
    for name, verb in verbs.items():
        yield from (".TP", f"\\fB{_text(noun)} {_text(name)}\\fR", _text(verb.summary))
        if name == "prune" and verb.parser is not None:
            for action in verb.parser._actions:
                if not isinstance(action, argparse._HelpAction):
                    yield from (".br", f"{_head(action)}: {_text(_help(action, verb.parser))}")


def _head(action: argparse.Action) -> str:
    """The flags with their metavar, or the name of a positional argument."""
    value = _value(action)
    if not action.option_strings:
        return f"\\fI{_text(value)}\\fR"
    flags = ", ".join(f"\\fB{_text(flag)}\\fR" for flag in action.option_strings)
    return flags if action.nargs == 0 or not value else f"{flags} \\fI{_text(value)}\\fR"


def _value(action: argparse.Action) -> str:
    if action.metavar is not None:
        return action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar)
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper() if action.option_strings else action.dest


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    values = {**vars(action), "prog": parser.prog}
    return (action.help or "") % {name: value for name, value in values.items() if value is not argparse.SUPPRESS}


def _prose(text: str) -> Iterator[str]:
    """Format paragraphs; one with indented lines is an example or a table, and is not filled."""
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        lines = paragraph.splitlines()
        if any(line.startswith(" ") for line in lines):
            yield from _preformatted(paragraph)
        elif lines:
            yield from (".PP", *map(_text, lines))


def _preformatted(text: str) -> Iterator[str]:
    yield from (".PP", ".nf", *map(_text, text.splitlines()), ".fi")


def _text(text: str) -> str:
    """Escape the characters of `text` that have a meaning for troff(1)."""
    escaped = text.translate(_ESCAPED)
    return "\\&" + escaped if escaped.startswith((".", "\\(aq")) else escaped

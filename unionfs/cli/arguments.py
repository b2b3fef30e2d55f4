"""The argparse parser of every verb, with `UNIONFS_*` defaults from the environment and our exit codes.

The environment variable of `--foo-bar` is UNIONFS_FOO_BAR, and that of `--image-store` is UNIONFS_IMAGE_STORES. For a
flag that may be repeated it holds a list separated by colons; a flag without a value is set by 1, yes, true or on, and
not set by 0, no, false, off or an empty value.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from unionfs import store_files
from unionfs.cli.errors import USAGE, CommandError, failed
from unionfs.cli.examples import EXAMPLES

_PLURALS: Final = {"--image-store": "--image-stores"}  # a list, as podman's additionalimagestores
_ON = ("1", "yes", "true", "on")
_OFF = ("", "0", "no", "false", "off")
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_NO_VALUE = (argparse._StoreTrueAction, argparse._StoreFalseAction)


class Parser(argparse.ArgumentParser):
    """The parser of one verb. An invalid command line raises CommandError with exit code 2."""

    acts_as_owner = True  # root acts on the store of another user (--root) as that user
    flags_between = False  # flags may stand between the words of a list: `NAME --into CONTAINER PATH`

    def __init__(self, verb: str, description: str, epilog: str | None = None, *, short_help: bool = True) -> None:
        """`short_help`: -h means --help; False: the verb has a flag -h of its own."""
        super().__init__(
            prog=f"unionfs {verb}",
            description=description,
            epilog=_with_example(verb, epilog),
            formatter_class=_formatter,
            allow_abbrev=False,
            add_help=short_help,
        )
        if not short_help:
            self.add_argument("--help", action="help", help="show this help message and exit")

    def parse(
        self, argv: Sequence[str], environment: Mapping[str, str] = os.environ, *, whole: Sequence[str] = ()
    ) -> argparse.Namespace:
        """The values of all flags; a positional that looks like a flag needs `--` before it. `whole`: the arguments of
        the verb, if `argv` is only a part of them."""
        for action in self._actions:
            for option in action.option_strings:
                variable = variable_of(option)
                if option.startswith("--") and option != "--help" and variable in environment:
                    action.default = self._default_from(action, variable, environment[variable])
                    action.required = False
        values = self.parse_intermixed_args(argv) if self.flags_between else self.parse_args(argv)
        if hasattr(values, "root"):
            self._leave_to_owner(values.root, whole or argv)
        return values

    def _leave_to_owner(self, root: str | None, argv: Sequence[str]) -> None:
        """Execute the command again as the store's owner if root runs it. Other users are refused there."""
        root = os.path.abspath(root) if root else store_files.default_root()
        try:
            if self.acts_as_owner:
                store_files.run_as_owner(root, store_files.words_of(argv, self.prog.split()))
            else:
                store_files.refuse_foreign(root)
        except store_files.OwnerError as error:
            raise CommandError(failed(self.prog.removeprefix("unionfs "), None, str(error)), hint=error.hint) from error

    def _default_from(self, action: argparse.Action, variable: str, text: str) -> Any:
        if isinstance(action, _NO_VALUE):
            word = text.lower()
            if word not in _ON + _OFF:
                self.error(f"{variable}={text}: expected one of {', '.join(_ON + _OFF[1:])}")
            return action.const if word in _ON else not action.const
        words = text.split(":") if isinstance(action, argparse._AppendAction) else [text]
        try:
            values = [self._get_value(action, word) for word in words if word]
            for value in values:
                self._check_value(action, value)
        except argparse.ArgumentError as error:
            self.error(f"{variable}={text}: {error.message}")
        if isinstance(action, argparse._AppendAction):
            return _Overridable(values)
        return values[0] if values else action.default

    def error(self, message: str) -> NoReturn:
        verb = self.prog.removeprefix("unionfs ")
        raise CommandError(f"{verb}: {message}", hint=f"see {self.prog} --help", status=USAGE)


def _with_example(verb: str, epilog: str | None) -> str | None:
    example = EXAMPLES.get(verb)
    if example is None:
        return epilog
    return f"{epilog}\n\nexample:\n  {example}" if epilog else f"example:\n  {example}"


def _formatter(prog: str) -> argparse.HelpFormatter:
    """A formatter with the terminal's width. argparse makes one for each flag, and would import shutil for it."""
    try:
        columns = os.get_terminal_size(1).columns
    except OSError:
        columns = 100
    return argparse.RawDescriptionHelpFormatter(prog, width=min(columns, 120) - 2)


class _Overridable(list[Any]):
    """A default list that the first value from the command line replaces, where argparse would append to it."""

    def __copy__(self) -> list[Any]:
        return []


def variable_of(option: str) -> str:
    """The environment variable that sets the default of `option`."""
    option = _PLURALS.get(option, option)
    return "UNIONFS_" + option.lstrip("-").replace("-", "_").upper()


def size_in_bytes(text: str) -> int:
    """Parse a size such as 10G to bytes."""
    number, unit = text.strip().lower().removesuffix("b"), ""
    if number and number[-1] in _UNITS:
        number, unit = number[:-1], number[-1]
    if not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 500M or 10G")
    return int(number) * _UNITS[unit]

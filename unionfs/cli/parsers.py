"""Collects the argparse parsers of all verbs of `unionfs` and `layers`, for man pages and completion.

A verb's `main` makes its parser and calls its parse. `capture` calls `main` with a parse that never returns, so no verb
runs, and none needs a second entry point.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from keyword import iskeyword
from typing import Any, Final, NoReturn

_GROUPS: Final = ("container", "image")
"""Verbs of `unionfs` that have subordinate verbs and no parser."""


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: its line in the list of verbs, and either a parser or subordinate verbs."""

    summary: str
    parser: argparse.ArgumentParser | None = None
    verbs: dict[str, Verb] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Command:
    """One command with all its verbs, in the order of its `--help`."""

    name: str
    summary: str
    help_text: str
    verbs: dict[str, Verb]


def of_unionfs() -> Command:
    """Collect the verbs of `unionfs`. Imports all of them: takes half a second."""
    from unionfs.cli import entry

    verbs = {}
    for name, summary in entry.VERBS.items():
        module = f"{name}_" if iskeyword(name) else name
        verbs[name] = _group(name, summary) if name in _GROUPS else Verb(summary, _of_module(module))
    summary = "merge directories into one tree, and run containers on it"
    return Command("unionfs", summary, entry.help_text(), verbs)


def of_layers() -> Command:
    """Collect the verbs of `layers`."""
    from layers.cli import command

    verbs = {name: Verb(summary, capture(command.main, [name])) for name, summary in command.VERBS.items()}
    return Command("layers", "look into, compare, check and make layers of images", command.help_text(), verbs)


def _group(noun: str, summary: str) -> Verb:
    modules: dict[str, str] = import_module(f"unionfs.cli.{noun}").MODULES
    parsers = {name: _of_module(module) for name, module in modules.items()}
    short = {name: f"`unionfs {module.rstrip('_')}`" for name, module in modules.items()}
    short["prune"] = str(parsers["prune"].description).partition("\n")[0]
    return Verb(summary, verbs={name: Verb(short[name], parser) for name, parser in parsers.items()})


def _of_module(name: str) -> argparse.ArgumentParser:
    return capture(import_module(f"unionfs.cli.{name}").main, [])


class _CapturedError(BaseException):
    """Carries a parser out of `main`, which catches no BaseException."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def capture(main: Callable[[list[str]], int], argv: list[str]) -> argparse.ArgumentParser:
    """Call `main` up to the point where it parses, and return the parser that it made."""
    with _parsing_ends_the_call():
        try:
            main(argv)
        except _CapturedError as captured:
            return captured.parser
    raise AssertionError(f"{main.__module__}.main({argv}) parses nothing")


@contextmanager
def _parsing_ends_the_call() -> Iterator[None]:
    methods = ("parse_args", "parse_intermixed_args")
    before = [getattr(argparse.ArgumentParser, name) for name in methods]

    def parse(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        raise _CapturedError(parser)

    for name in methods:
        setattr(argparse.ArgumentParser, name, parse)
    try:
        yield
    finally:
        for name, method in zip(methods, before, strict=True):
            setattr(argparse.ArgumentParser, name, method)

"""Instructions with their flags and arguments, checked as far as possible without values of variables. Pure.

Arguments keep their variables: these have values only once the instructions before are known (`settings`,
`copy_arguments`).
Source: Dockerfile reference, one section for each instruction.
"""

from __future__ import annotations

import json
import re
from difflib import get_close_matches
from typing import Final, NamedTuple

from unionfs.build import flags as flag_rules
from unionfs.build.flags import Flags
from unionfs.build.lines import Document, Heredoc, Line
from unionfs.build.source import ContainerfileError, Place
from unionfs.build.words import WordError, split_words

KEYWORDS: Final = (
    *("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER"),
    *("ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
)
_JSON_FORMS: Final = ("ADD", "CMD", "COPY", "ENTRYPOINT", "RUN", "SHELL", "VOLUME")
_ONE_ARGUMENT: Final = {
    "STOPSIGNAL": "a signal, such as SIGTERM or 15",
    "USER": "USER[:GROUP], names or numbers",
    "WORKDIR": "a directory",
    "MAINTAINER": "a name",
}
_NOT_TRIGGERED: Final = ("ONBUILD", "FROM", "MAINTAINER")
_ARGUMENT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Instruction(NamedTuple):
    """One instruction."""

    line: Line
    flags: Flags
    rest: str  # the arguments as they are written
    words: tuple[str, ...] | None  # of the JSON form; None: the other form

    @property
    def keyword(self) -> str:
        return self.line.keyword

    @property
    def place(self) -> Place:
        return self.line.place

    @property
    def heredocs(self) -> tuple[Heredoc, ...]:
        return self.line.heredocs


def parse(document: Document) -> list[Instruction]:
    """The instructions of a Containerfile. Raises: ContainerfileError."""
    return [parse_line(line, document.escape) for line in document.lines]


def parse_line(line: Line, escape: str) -> Instruction:
    """One instruction. Raises: ContainerfileError."""
    keyword = line.keyword
    if keyword not in KEYWORDS:
        close = get_close_matches(keyword, KEYWORDS, 1)
        hint = f"did you mean {close[0]}?" if close else f"expected {', '.join(KEYWORDS)}"
        raise ContainerfileError(line.place, f"there is no instruction {keyword[:40]}", hint=hint)
    flags, rest = flag_rules.take(keyword, line.rest, escape, line.place)
    words = _json_words(rest, line.place) if keyword in _JSON_FORMS else None
    made = Instruction(line, flags, rest, words)
    if not rest and words is None and keyword not in ("CMD", "ENTRYPOINT"):
        raise ContainerfileError(line.place, f"{keyword} has no arguments", hint=_usage(keyword))
    try:
        _check(made, escape)
    except WordError as error:
        raise ContainerfileError(line.place, str(error)) from None
    return made


def _json_words(rest: str, place: Place) -> tuple[str, ...] | None:
    if not rest.startswith("["):
        return None
    try:
        words = json.loads(rest)
    except (ValueError, RecursionError):
        return None  # as docker: then it is a command of the shell, such as [ -e /x ]
    if not isinstance(words, list):
        return None
    if not all(isinstance(word, str) for word in words):
        raise ContainerfileError(place, "the JSON form has an element that is no string", hint='expected ["WORD", ...]')
    return tuple(words)


def _usage(keyword: str) -> str:
    return f"expected {_ONE_ARGUMENT[keyword]}" if keyword in _ONE_ARGUMENT else ""


def _check(made: Instruction, escape: str) -> None:
    place, keyword, rest = made.place, made.keyword, made.rest
    match keyword:
        case "FROM":
            from_words(made)
        case "ENV" | "LABEL":
            pairs(made, escape)
        case "ARG":
            arguments(made, escape)
        case "ADD" | "COPY":
            words = split_words(rest, {}, escape, raw=True, keeps_unset=True) if made.words is None else made.words
            if len(words) < 2:
                raise ContainerfileError(place, f"{keyword} needs a source and a destination")
        case "SHELL":
            if not made.words:
                raise ContainerfileError(
                    place, "SHELL takes the JSON form only", hint='expected SHELL ["PROGRAM", "ARGUMENT"...]'
                )
        case "ONBUILD":
            trigger(made, escape)
        case "HEALTHCHECK":
            word = rest.split(None, 1)
            is_none = word[0].upper() == "NONE" and len(word) == 1 and not made.flags.pairs
            if not is_none and (word[0].upper() != "CMD" or len(word) == 1):
                raise ContainerfileError(
                    place, "HEALTHCHECK has no command", hint="expected HEALTHCHECK [FLAGS] CMD COMMAND, or NONE"
                )
        case "RUN":
            if made.heredocs and made.words is not None:
                raise ContainerfileError(place, "a heredoc cannot follow the JSON form of RUN")


def trigger(made: Instruction, escape: str) -> Instruction:
    """The instruction after ONBUILD, for later builds. Raises: ContainerfileError."""
    keyword, _, rest = made.rest.partition(" ")
    check_trigger(keyword.upper(), made.place)
    return parse_line(made.line._replace(keyword=keyword.upper(), rest=rest.strip()), escape)


def check_trigger(keyword: str, place: Place) -> None:
    """Raises: ContainerfileError if ONBUILD cannot keep this instruction; an untrusted image may contain one
    nevertheless."""
    if keyword in _NOT_TRIGGERED:
        raise ContainerfileError(place, f"ONBUILD cannot be followed by {keyword}")


class From(NamedTuple):
    """The arguments of FROM, variables not replaced."""

    base: str
    name: str  # of the stage, in lower case; empty: none


def from_words(made: Instruction) -> From:
    """Raises: ContainerfileError."""
    words = made.rest.split()
    if len(words) == 1:
        return From(words[0], "")
    if len(words) == 3 and words[1].upper() == "AS":
        if not re.fullmatch(r"[a-z][a-z0-9._-]*", words[2].lower()):
            hint = "expected a letter, then letters, digits, dots, dashes and underscores"
            raise ContainerfileError(made.place, f"{words[2]} cannot be the name of a stage", hint=hint)
        return From(words[0], words[2].lower())
    raise ContainerfileError(made.place, "FROM has other arguments", hint="expected FROM IMAGE [AS NAME]")


def pairs(made: Instruction, escape: str) -> list[tuple[str, str]]:
    """NAME=VALUE... of ENV and LABEL, or the old form NAME VALUE; quotes and variables as they are written.

    Raises: ContainerfileError.
    """
    words = split_words(made.rest, {}, escape, raw=True, keeps_unset=True)
    if words and "=" not in words[0]:
        name, _, value = made.rest.partition(" ") if " " in made.rest else made.rest.partition("\t")
        if not value.strip():
            raise ContainerfileError(
                made.place, f"{made.keyword} {name} has no value", hint=f"expected {made.keyword} NAME=VALUE"
            )
        return [(name, value.strip())]
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ContainerfileError(made.place, f"{word} has no =", hint=f"expected {made.keyword} NAME=VALUE...")
        if not name:
            raise ContainerfileError(made.place, f"a name is empty in {word}")
        found.append((name, value))
    return found


def arguments(made: Instruction, escape: str) -> list[tuple[str, str | None]]:
    """NAME[=VALUE]... of ARG, as they are written. Raises: ContainerfileError."""
    found: list[tuple[str, str | None]] = []
    for word in split_words(made.rest, {}, escape, raw=True, keeps_unset=True):
        name, equals, value = word.partition("=")
        if not _ARGUMENT.fullmatch(name):
            raise ContainerfileError(
                made.place, f"{name!r} cannot be the name of an argument", hint="expected ARG NAME[=VALUE]"
            )
        found.append((name, value if equals else None))
    return found

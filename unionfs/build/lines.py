"""Split the text of a Containerfile into instructions: directives, comments, continued lines, heredocs. Pure.

Source: Dockerfile reference, "Format", "Parser directives" and "Here-Documents". No library does this:
`dockerfile-parse` parses the lines of a heredoc as instructions and knows no escape directive; `dockerfile` is Docker's
own parser, but starts the threads and signal handlers of a Go runtime in this process, which forks containers, and
loses whether a heredoc's tabs are stripped and its variables replaced. The tests compare this module with it.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from unionfs.build.source import ContainerfileError, Place
from unionfs.build.words import WordError, split_words

WITH_HEREDOCS: Final = ("ADD", "COPY", "RUN")
_DIRECTIVE: Final = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*$")
_DIRECTIVES: Final = ("escape", "syntax", "check")
_HEREDOC: Final = re.compile(r"(\d*)<<(-?)([^<]*)$")
_BLANKS: Final = " \t\v\f\r"


class Heredoc(NamedTuple):
    """A text that follows the line of an instruction."""

    name: str  # the word that ends it
    text: str  # with leading tabs removed if the redirection was <<-
    expand: bool  # variables in it are replaced: no part of the name is quoted


class Line(NamedTuple):
    """One instruction: a keyword and its arguments, continued lines joined."""

    place: Place
    keyword: str  # in upper case
    rest: str
    heredocs: tuple[Heredoc, ...] = ()
    last: int = 0  # the number of its last line

    @property
    def text(self) -> str:
        return f"{self.keyword} {self.rest}".rstrip()


class Document(NamedTuple):
    """A Containerfile as lines."""

    lines: tuple[Line, ...]
    escape: str  # the escape character: \\ or `
    warnings: tuple[str, ...] = ()


def split(text: str, file: str) -> Document:
    """The instructions of a Containerfile named `file`. Raises: ContainerfileError."""
    physical = text.removeprefix("\ufeff").split("\n")
    escape, at = _directives(physical, file)
    ending = re.compile(rf"(?<!{re.escape(escape)}){re.escape(escape)}[ \t]*$")
    found: list[Line] = []
    warnings: list[str] = []
    while at < len(physical):
        begin = physical[at].lstrip()
        if not begin.strip() or begin.startswith("#"):
            at += 1
            continue
        place = Place(file, at + 1)
        joined, at = _join(physical, at, ending, place, warnings)
        if not joined.strip():
            continue
        keyword, rest = _keyword(joined)
        heredocs, at = _heredocs(physical, at, keyword, rest, place)
        found.append(Line(place, keyword, rest, heredocs, at))
    if not found:
        raise ContainerfileError(Place(file, 1), "it has no instructions", hint="the first one is FROM IMAGE")
    return Document(tuple(found), escape, tuple(warnings))


def _directives(physical: list[str], file: str) -> tuple[str, int]:
    """The escape character, and the number of lines that are directives. The first other line ends them."""
    escape, seen = "\\", set()
    for number, line in enumerate(physical):
        match = _DIRECTIVE.match(line.strip())
        if match is None or match[1].lower() not in _DIRECTIVES:
            return escape, number
        name = match[1].lower()
        if name in seen:
            raise ContainerfileError(Place(file, number + 1), f"the parser directive {name} is given twice")
        seen.add(name)
        if name == "escape":
            if match[2] not in ("\\", "`"):
                why = f"the escape character is {match[2]!r}"
                raise ContainerfileError(Place(file, number + 1), why, hint=r"expected # escape=\ or # escape=`")
            escape = match[2]
    return escape, len(physical)


def _join(physical: list[str], at: int, ending: re.Pattern[str], place: Place, warnings: list[str]) -> tuple[str, int]:
    """The logical line that begins at line `at`, and where the next one begins. Comments within are left out; so are
    empty lines, for which docker has a warning."""
    text, at = physical[at].lstrip().rstrip("\r"), at + 1
    has_empty = False
    while (match := ending.search(text)) is not None:
        text = text[: match.start()]
        while at < len(physical) and (not physical[at].strip() or physical[at].lstrip().startswith("#")):
            has_empty |= not physical[at].strip() and at < len(physical) - 1
            at += 1
        if at == len(physical):
            break
        text, at = text + physical[at].rstrip("\r"), at + 1
    if has_empty:
        warnings.append(f"{place}: an empty line within a continued instruction")
    return text, at


def _keyword(joined: str) -> tuple[str, str]:
    word = joined.split(None, 1)[0]
    return word.upper(), joined[len(word) :].strip(_BLANKS)


def _heredocs(physical: list[str], at: int, keyword: str, rest: str, place: Place) -> tuple[tuple[Heredoc, ...], int]:
    """The heredocs that a line announces, read from line `at` on, and where the next instruction begins."""
    inner, after = _keyword(rest) if keyword == "ONBUILD" and rest else (keyword, rest)
    if inner not in WITH_HEREDOCS or "<<" not in after:
        return (), at
    found = []
    for word in _raw_words(after):
        announced = announces(word)
        if announced is None:
            continue
        name, strips, expand = announced
        content: list[str] = []
        while True:
            if at == len(physical):
                raise ContainerfileError(
                    place, f"the heredoc {name} has no end", hint=f"expected a line with {name} alone"
                )
            line = physical[at].rstrip("\r")
            line = line.lstrip("\t") if strips else line
            at += 1
            if line == name:
                break
            content.append(line + "\n")
        found.append(Heredoc(name, "".join(content), expand))
    return tuple(found), at


def announces(word: str) -> tuple[str, bool, bool] | None:
    """Of a word such as <<-EOF: the name, whether tabs are stripped, whether variables are replaced; else None."""
    match = _HEREDOC.match(word)
    if match is None or not match[3]:
        return None
    try:
        names = split_words(match[3], {}, keeps_unset=True)
    except WordError:
        return None
    if len(names) != 1:
        return None
    return names[0], match[2] == "-", names[0] == match[3]


def _raw_words(text: str) -> list[str]:
    """The words of a line, quotes and escapes kept; none if a quote is not closed, which another module reports."""
    try:
        return split_words(text, {}, raw=True, keeps_unset=True)
    except WordError:
        return []

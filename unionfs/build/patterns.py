"""Patterns of paths: those of .dockerignore and --exclude, and the globs of COPY and ADD. Pure.

Sources: Go, path/filepath.Match; docker build reference, ".dockerignore files". gitignore's rules differ: there a
pattern without a slash matches at any depth, here at the top only; there a file below an excluded directory cannot be
included again, here it can.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

_GLOB: Final = re.compile(r"[*?[\\]")


class PatternError(ValueError):
    """A pattern that cannot be read."""


class _Rule(NamedTuple):
    regex: re.Pattern[str]
    takes_back: bool  # it begins with !


class Patterns:
    """An ordered list of patterns; the last one that matches a path, or a directory above it, decides."""

    def __init__(self, lines: Iterable[str]) -> None:
        """Raises: PatternError."""
        self._rules: Final = [rule for line in lines if (rule := _rule(line)) is not None]
        self.takes_back: Final = any(rule.takes_back for rule in self._rules)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def fits(self, path: str) -> bool:
        """Whether the relative `path` is excluded."""
        parts = path.split("/")
        above = ["/".join(parts[:end]) for end in range(len(parts), 0, -1)]
        excluded = False
        for rule in self._rules:
            if rule.takes_back == excluded and any(rule.regex.fullmatch(one) for one in above):
                excluded = not rule.takes_back
        return excluded


def _rule(line: str) -> _Rule | None:
    text = line.strip()
    if not text:
        return None
    takes_back = text.startswith("!")
    text = text[1:].strip() if takes_back else text
    if not text:
        raise PatternError("the pattern ! names nothing")
    text = posixpath.normpath(text).lstrip("/")
    if text in ("", "."):
        return None
    return _Rule(_compiled(text, across=True), takes_back)


def is_glob(text: str) -> bool:
    """Whether a name has characters of a pattern."""
    return bool(_GLOB.search(text))


def name_pattern(text: str) -> re.Pattern[str]:
    """A pattern for one name, as filepath.Match reads it. Raises: PatternError."""
    return _compiled(text, across=False)


def _compiled(text: str, *, across: bool) -> re.Pattern[str]:
    """`across`: ** matches any number of directories."""
    result, at = [], 0
    while at < len(text):
        char = text[at]
        if across and text.startswith("**", at):
            at += 2
            if text.startswith("/", at):
                at += 1
                result.append("(?:.*/)?" if at < len(text) else ".*")
            else:
                result.append(".*")
            continue
        at += 1
        if char == "*":
            result.append("[^/]*")
        elif char == "?":
            result.append("[^/]")
        elif char == "[":
            body, at = _class(text, at)
            result.append(body)
        elif char == "\\":
            if at == len(text):
                raise PatternError(f"the pattern {text} ends with a backslash")
            result.append(re.escape(text[at]))
            at += 1
        else:
            result.append(re.escape(char))
    return re.compile("".join(result), re.DOTALL)


def _class(text: str, at: int) -> tuple[str, int]:
    """The characters between brackets, and where they end: [^]a-z\\]."""
    negated = text.startswith("^", at)
    at += negated
    parts: list[str] = []
    while True:
        if at >= len(text):
            raise PatternError(f"a ] is missing in the pattern {text}")
        if text[at] == "]" and parts:
            break
        low, at = _character(text, at)
        high = low
        if text.startswith("-", at):
            high, at = _character(text, at + 1)
        if high < low:
            raise PatternError(f"{low}-{high} is no range in the pattern {text}")
        parts.append(re.escape(low) if high == low else f"{re.escape(low)}-{re.escape(high)}")
    return f"[{'^/' if negated else ''}{''.join(parts)}]", at + 1


def _character(text: str, at: int) -> tuple[str, int]:
    if text.startswith("\\", at):
        at += 1
    if at >= len(text) or (text[at] in "-]" and text[at - 1] != "\\"):
        raise PatternError(f"the pattern {text} has a bad range")
    return text[at], at + 1

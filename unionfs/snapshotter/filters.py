"""Parse containerd's filters, such as `kind==active,labels."my.key"!=x`, into tests of an Info. Pure.

A filter consists of selectors joined by commas, which must all hold; of several filters at least one must. A selector
is a field path, alone (is there such a field?) or with `==`, `!=` or `~=` (a regular expression found anywhere) and a
value. Quotes protect names and values; after `~=` also /.../ and |...| do. (containerd's package `filters` describes
the language.)

Fields: name, parent, kind, labels.KEY. Regular expressions are Python's, which differ from Go's in rare constructs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

from unionfs.snapshotter.values import Info, InvalidArgumentError

Test = Callable[[Info], bool]

_FIELD: Final = re.compile(r"[A-Za-z0-9_]+")
_OPERATOR: Final = re.compile(r"==|!=|~=")
_BARE_VALUE: Final = re.compile(r"[^\s,]+")
_ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", re.DOTALL)
_NAMED_ESCAPES: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def parse(filters: Iterable[str]) -> Test:
    """Return a test that passes if one of `filters` holds. It always passes without filters or with an empty one.

    Raises: InvalidArgumentError.
    """
    tests = [_Parser(text).parse_all() for text in filters]
    return lambda info: not tests or any(test(info) for test in tests)


class _Parser:
    """Parses one filter from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text  # immutable
        self._at = 0  # the position of the next character to parse

    def parse_all(self) -> Test:
        if not self._text:
            return lambda _: True
        selectors = [self._selector()]
        while self._at < len(self._text):
            self._expect(",")
            selectors.append(self._selector())
        return lambda info: all(selector(info) for selector in selectors)

    def _selector(self) -> Test:
        path = [self._field()]
        while self._text.startswith(".", self._at):
            self._at += 1
            path.append(self._field())
        operator = _OPERATOR.match(self._text, self._at)
        if operator is None:
            return lambda info: _field_value(info, path) is not None
        self._at = operator.end()
        if operator[0] == "==":
            wanted = self._value('"')
            return lambda info: _field_value(info, path) == wanted
        if operator[0] == "!=":
            unwanted = self._value('"')
            return lambda info: (_field_value(info, path) or "") != unwanted
        pattern = self._pattern()
        return lambda info: (found := _field_value(info, path)) is not None and pattern.search(found) is not None

    def _field(self) -> str:
        if self._text.startswith('"', self._at):
            return self._quoted()
        name = _FIELD.match(self._text, self._at)
        if name is None:
            raise self._refusal("a field is expected")
        self._at = name.end()
        return name[0]

    def _value(self, quotes: str) -> str:
        if self._at < len(self._text) and self._text[self._at] in quotes:
            return self._quoted()
        bare = _BARE_VALUE.match(self._text, self._at)
        if bare is None:
            raise self._refusal("a value is expected")
        self._at = bare.end()
        return bare[0]

    def _pattern(self) -> re.Pattern[str]:
        start = self._at
        text = self._value('"/|')
        if "[[:" in text:  # Python would match one of these characters instead
            raise self._refusal("character classes such as [[:alpha:]] are not supported", start)
        try:
            return re.compile(text.replace(r"\z", r"\Z"))
        except re.error as why:
            raise self._refusal(f"not a regular expression: {why}", start) from None

    def _quoted(self) -> str:
        start, quote = self._at, self._text[self._at]
        end = start + 1
        while not self._text.startswith(quote, end):
            end += 2 if self._text.startswith("\\", end) else 1
            if end >= len(self._text):
                raise self._refusal("the quote is not closed", start)
        self._at = end + 1
        return _ESCAPE.sub(lambda found: _unescaped(found[1], quote), self._text[start + 1 : end])

    def _expect(self, character: str) -> None:
        if not self._text.startswith(character, self._at):
            raise self._refusal(f"{character!r} is expected")
        self._at += 1

    def _refusal(self, why: str, at: int | None = None) -> InvalidArgumentError:
        position = self._at if at is None else at
        return InvalidArgumentError(f"filter {self._text!r}: at character {position + 1}: {why}")


def _unescaped(code: str, quote: str) -> str:
    if code[0] in "xuU":
        return chr(int(code[1:], 16)) if len(code) > 1 else code
    if code[0].isdigit() and len(code) > 1:
        return chr(int(code, 8))
    if code in ("\\", quote):
        return code
    if quote == '"':
        return _NAMED_ESCAPES.get(code, code)
    return f"\\{code}"  # such as \d in /\d/: left to the regular expression


def _field_value(info: Info, path: list[str]) -> str | None:
    """Return the value of a field, or None if it does not exist."""
    match path[0]:
        case "name":
            return info.name
        case "parent":
            return info.parent
        case "kind":
            return info.kind.word
        case "labels":
            return info.labels.get(".".join(path[1:]))
        case _:
            return None

"""Variables, quotes and escapes in the arguments of instructions, by docker's rules. Pure.

Source: Dockerfile reference, "Environment replacement" and ARG. Unlike a shell: within double quotes a backslash stays
unless it escapes a quote, a dollar or itself; the value of a variable outside of quotes is split into words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_SPECIAL: Final = "@*#?-$!0"  # parameters of a shell, which are never set here
_MODIFIERS: Final = "-+?#%"


class WordError(ValueError):
    """Words that cannot be read; `str()` is a sentence."""


def replace(
    text: str, variables: Mapping[str, str], escape: str = "\\", *, quotes: bool = True, keeps_unset: bool = False
) -> str:
    """`text` with its variables replaced and, with `quotes`, its quotes and escapes processed. Raises: WordError.

    With `keeps_unset`, variables that are not set stay as they are written.
    """
    return _Reader(text, variables, escape, quotes=quotes, keeps_unset=keeps_unset).to_end()[0]


def split_words(
    text: str, variables: Mapping[str, str], escape: str = "\\", *, raw: bool = False, keeps_unset: bool = False
) -> list[str]:
    """The words of `text`, variables replaced first. With `raw`, quotes and escapes stay in them. Raises: WordError."""
    return _Reader(text, variables, escape, raw=raw, keeps_unset=keeps_unset).to_end()[1]


class _Words:
    """Collects words: blanks that are not quoted separate them."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self._word = ""

    def add(self, text: str) -> None:
        for char in text:
            if not char.isspace():
                self._word += char
            elif self._word:
                self.end()

    def add_quoted(self, text: str) -> None:
        self._word += text

    def end(self) -> list[str]:
        if self._word:
            self.done.append(self._word)
            self._word = ""
        return self.done


class _Reader:
    """Reads one text from left to right; each method moves `at` behind the text that it has read."""

    def __init__(
        self,
        text: str,
        variables: Mapping[str, str],
        escape: str,
        *,
        quotes: bool = True,
        raw: bool = False,
        keeps_unset: bool = False,
    ) -> None:
        self.text: Final = text
        self.variables: Final = variables
        self.escape: Final = escape
        self.quotes: Final = quotes
        self.raw: Final = raw  # quotes and escapes stay
        self.keeps_unset: Final = keeps_unset
        self.at = 0

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self) -> str:
        char = self.peek()
        self.at += 1
        return char

    def to_end(self, stop: str = "", *, keeps_escapes: bool = False) -> tuple[str, list[str]]:
        """The text up to `stop` (empty: the end), and its words. `keeps_escapes` is for patterns, which have their own.

        Raises: WordError.
        """
        keeps_escapes |= self.raw
        result: list[str] = []
        words = _Words()
        while char := self.peek():
            if char == stop:
                self.take()
                return "".join(result), words.end()
            if char == "$":
                part = self.variable()
                words.add(part)
            elif char in "'\"" and self.quotes:
                part = self.single_quoted() if char == "'" else self.double_quoted(keeps_escapes=keeps_escapes)
                words.add_quoted(part)
            elif char == self.escape:
                self.take()
                part = (char if keeps_escapes else "") + self.take()
                words.add_quoted(part)
            else:
                part = self.take()
                words.add(part)
            result.append(part)
        if stop:
            raise WordError(f"a {stop} is missing in {self.text!r}")
        return "".join(result), words.end()

    def single_quoted(self) -> str:
        begin = self.at
        end = self.text.find("'", begin + 1)
        if end < 0:
            raise WordError(f"a single quote is not closed in {self.text!r}")
        self.at = end + 1
        return self.text[begin : end + 1] if self.raw else self.text[begin + 1 : end]

    def double_quoted(self, *, keeps_escapes: bool) -> str:
        self.take()
        result = ['"'] if self.raw else []
        while char := self.peek():
            if char == '"':
                self.take()
                return "".join([*result, '"'] if self.raw else result)
            if char == "$":
                result.append(self.variable())
                continue
            self.take()
            following = self.peek()
            if char == self.escape and following and following in ('"', "$", self.escape):
                result.append((char if keeps_escapes else "") + self.take())
            elif char != self.escape or following:
                result.append(char)
        raise WordError(f"a double quote is not closed in {self.text!r}")

    def variable(self) -> str:
        """The value of $NAME, ${NAME} or ${NAME with a modifier}."""
        begin = self.at
        self.take()
        if self.peek() != "{":
            name = self.name()
            return self.value(name, self.text[begin : self.at]) if name else "$"
        self.take()
        if self.peek() in ("", "{", "}", ":"):
            raise WordError(f"${{NAME}} was expected at {self.text[begin:]!r}")
        name = self.name()
        sign = self.take()
        if sign == "}":
            return self.value(name, self.text[begin : self.at])
        if sign == "/":
            return self.replaced(name, begin)
        empty_is_unset = sign == ":"
        if empty_is_unset:
            sign = self.take()
        if not sign or sign not in _MODIFIERS or (empty_is_unset and sign in "#%"):
            raise WordError(
                f"the modifier of ${{{name}...}} was expected to be one of :- :+ :? - + ? # % / in {self.text!r}"
            )
        word = self.to_end("}", keeps_escapes=sign in "#%")[0]
        value = self.variables.get(name)
        if value is None and self.keeps_unset:
            return self.text[begin : self.at]
        if sign in "#%":
            return _trimmed(value or "", word, sign)
        is_set = value is not None and not (empty_is_unset and not value)
        match sign:
            case "-":
                return value if is_set and value is not None else word
            case "+":
                return word if is_set else ""
        if not is_set:
            raise WordError(f"{name}: {word or ('is empty' if value is not None else 'is not set')}")
        return value or ""

    def value(self, name: str, written: str) -> str:
        known = self.variables.get(name)
        return written if known is None and self.keeps_unset else known or ""

    def replaced(self, name: str, begin: int) -> str:
        """${NAME/PATTERN/TEXT} and ${NAME//PATTERN/TEXT}."""
        every = self.peek() == "/"
        if every:
            self.take()
        pattern = self.to_end("/", keeps_escapes=True)[0]
        text = self.to_end("}", keeps_escapes=True)[0]
        value = self.variables.get(name)
        if value is None and self.keeps_unset:
            return self.text[begin : self.at]
        return re.sub(_regex(pattern, greedy=True), lambda _: text, value or "", count=0 if every else 1)

    def name(self) -> str:
        begin = self.at
        if (first := self.peek()).isdigit():
            while self.peek().isdigit():
                self.take()
        elif first and first in _SPECIAL:
            self.take()
        else:
            while (char := self.peek()) and (char.isalnum() or char == "_"):
                self.take()
        return self.text[begin : self.at]


def _trimmed(value: str, word: str, sign: str) -> str:
    """${NAME#PATTERN} and ${NAME%PATTERN}: the shortest match at the beginning or end removed; doubled, the longest."""
    longest = word.startswith(sign)
    pattern = re.compile(_regex(word[1:] if longest else word, greedy=True), re.DOTALL)
    if sign == "#":
        ends = [end for end in range(len(value) + 1) if pattern.fullmatch(value, 0, end)]
        return value[max(ends) if longest else min(ends) :] if ends else value
    begins = [begin for begin in range(len(value) + 1) if pattern.fullmatch(value, begin)]
    return value[: min(begins) if longest else max(begins)] if begins else value


def _regex(pattern: str, *, greedy: bool) -> str:
    """A pattern of a shell without brackets (XCU 2.13) as a regular expression."""
    result, at = [], 0
    while at < len(pattern):
        char = pattern[at]
        if char == "*":
            result.append(".*" if greedy else ".*?")
        elif char == "?":
            result.append(".")
        elif char == "\\" and at + 1 < len(pattern):
            at += 1
            result.append(re.escape(pattern[at]))
        else:
            result.append(re.escape(char))
        at += 1
    return "".join(result)

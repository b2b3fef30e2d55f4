"""The flags of instructions: --NAME or --NAME=VALUE between the keyword and its arguments. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Final, NamedTuple

from unionfs.build.source import ContainerfileError, Place

VALUE: Final = "value"
SWITCH: Final = "switch"  # without a value, or with true or false
MANY: Final = "many"  # may be repeated

KNOWN: Final[Mapping[str, Mapping[str, str]]] = {
    "FROM": {"platform": VALUE},
    "RUN": {"mount": MANY, "network": VALUE},
    "COPY": {"from": VALUE, "chown": VALUE, "chmod": VALUE, "link": SWITCH, "exclude": MANY},
    "ADD": {
        "chown": VALUE,
        "chmod": VALUE,
        "link": SWITCH,
        "exclude": MANY,
        "checksum": VALUE,
        "unpack": SWITCH,
    },
    "HEALTHCHECK": {
        "interval": VALUE,
        "timeout": VALUE,
        "start-period": VALUE,
        "start-interval": VALUE,
        "retries": VALUE,
    },
}


class Flags(NamedTuple):
    """The flags of one instruction, in the order in which they stand."""

    pairs: tuple[tuple[str, str], ...] = ()

    def value(self, name: str, default: str = "") -> str:
        """The value of a flag that may be given once."""
        return dict(self.pairs).get(name, default)

    def all(self, name: str) -> list[str]:
        return [value for known, value in self.pairs if known == name]

    def has(self, name: str) -> bool:
        return any(known == name for known, _ in self.pairs)

    def switch(self, name: str, *, default: bool = False) -> bool:
        value = dict(self.pairs).get(name)
        return default if value is None else value != "false"


def take(keyword: str, rest: str, escape: str, place: Place) -> tuple[Flags, str]:
    """The flags at the beginning of `rest`, and the text after them. Raises: ContainerfileError."""
    known = KNOWN.get(keyword, {})
    pairs: list[tuple[str, str]] = []
    while rest.startswith("--"):
        word, rest = _word(rest, escape, place)
        if word == "--":
            break
        name, equals, value = word[2:].partition("=")
        if name not in known:
            close = get_close_matches(name, known, 1)
            expected = f"did you mean --{close[0]}?" if close else _expected(keyword, known)
            raise ContainerfileError(place, f"{keyword} has no flag --{name}", hint=expected)
        kind = known[name]
        if kind == SWITCH:
            value = value.lower() if equals else "true"
            if value not in ("true", "false"):
                raise ContainerfileError(
                    place, f"--{name}={value}", hint=f"expected --{name}, --{name}=true or --{name}=false"
                )
        elif not equals:
            raise ContainerfileError(place, f"--{name} has no value", hint=f"expected --{name}=VALUE")
        if kind != MANY and any(name == before for before, _ in pairs):
            raise ContainerfileError(place, f"--{name} is given twice")
        pairs.append((name, value))
    return Flags(tuple(pairs)), rest


def _expected(keyword: str, known: Mapping[str, str]) -> str:
    return f"expected {', '.join(f'--{name}' for name in known)}" if known else f"{keyword} takes no flags"


def _word(rest: str, escape: str, place: Place) -> tuple[str, str]:
    """The first word without its quotes and escapes, and the text after it."""
    found, quote, at = [], "", 0
    while at < len(rest):
        char = rest[at]
        at += 1
        if char == escape and quote != "'" and at < len(rest):
            if rest[at] not in "\"'" and rest[at] != escape and not rest[at].isspace():
                found.append(char)  # \$ stays: the replacement of variables handles it
            found.append(rest[at])
            at += 1
        elif quote:
            if char == quote:
                quote = ""
            else:
                found.append(char)
        elif char in "\"'":
            quote = char
        elif char.isspace():
            break
        else:
            found.append(char)
    if quote:
        raise ContainerfileError(place, "a quote in a flag is not closed", hint=f"expected {quote}")
    return "".join(found), rest[at:].lstrip()

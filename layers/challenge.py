"""Parse the WWW-Authenticate header of a 401, which names ways to authenticate. Pure.

RFC 9110, 11.6.1; distribution specification, "Authentication"; Docker's "Token Authentication Specification".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

BASIC: Final = "basic"
BEARER: Final = "bearer"

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SEPARATORS: Final = re.compile(r"[\s,]*")
_PARAMETER: Final = re.compile(rf'({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_SCHEME: Final = re.compile(rf"({_TOKEN})(?=[\s,]|$)")
_TOKEN68: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$))")
_UNREADABLE: Final = re.compile(r"[^\s,]+")


class Challenge(NamedTuple):
    """One way to authenticate; the names of parameters are in lower case."""

    scheme: str
    parameters: dict[str, str]


def parse(headers: Iterable[str]) -> list[Challenge]:
    """The challenges of all WWW-Authenticate headers; malformed parts are skipped."""
    return [challenge for header in headers for challenge in _parse(header)]


def _parse(header: str) -> list[Challenge]:
    found: list[Challenge] = []
    at = _SEPARATORS.match(header).end()  # type: ignore[union-attr]  # it matches anything
    while at < len(header):
        if found and (parameter := _PARAMETER.match(header, at)) is not None:
            quoted = parameter[2]
            value = parameter[3] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            found[-1].parameters.setdefault(parameter[1].lower(), value)
            at = parameter.end()
        elif (scheme := _SCHEME.match(header, at)) is not None:
            found.append(Challenge(scheme[1].lower(), {}))
            at = scheme.end()
            data = re.compile(r"[ \t]+").match(header, at)
            token = None if data is None else _TOKEN68.match(header, data.end())
            if token is not None and token[0].lower() not in (BASIC, BEARER):
                at = token.end()  # `Negotiate TOKEN68`
        else:
            at = _UNREADABLE.match(header, at).end()  # type: ignore[union-attr]  # neither space nor comma is here
        at = _SEPARATORS.match(header, at).end()  # type: ignore[union-attr]
    return found

"""What a registry asks for when it answers 401: the WWW-Authenticate header. Pure.

RFC 9110, 11.6.1; distribution specification, "Authentication"; Docker's "Token Authentication Specification".
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

BASIC: Final = "basic"
BEARER: Final = "bearer"

_SCHEME: Final = re.compile(r"\s*,?\s*([A-Za-z][A-Za-z0-9_-]*)(?:\s+|$)(?!\s*=)")
_PARAMETER: Final = re.compile(r'\s*,?\s*([A-Za-z][A-Za-z0-9_-]*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


class Challenge(NamedTuple):
    """One way to authenticate; the names of parameters are in lower case."""

    scheme: str
    parameters: dict[str, str]


def parse(header: str) -> list[Challenge]:
    """The challenges of a header; what cannot be read is left out."""
    found: list[Challenge] = []
    at = 0
    while at < len(header):
        scheme = _SCHEME.match(header, at)
        if scheme is None:
            break
        at = scheme.end()
        parameters: dict[str, str] = {}
        while (parameter := _PARAMETER.match(header, at)) is not None:
            quoted = parameter[2]
            value = parameter[3] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            parameters[parameter[1].lower()] = value
            at = parameter.end()
        found.append(Challenge(scheme[1].lower(), parameters))
    return found

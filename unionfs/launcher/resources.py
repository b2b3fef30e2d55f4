"""Resource limits (setrlimit(2)): names as docker writes them, parsing, and setting them."""

from __future__ import annotations

import resource
from collections.abc import Iterable
from typing import Final, NamedTuple

from unionfs.launcher.errors import LaunchError

NUMBERS: Final = {
    "core": resource.RLIMIT_CORE,
    "cpu": resource.RLIMIT_CPU,
    "data": resource.RLIMIT_DATA,
    "fsize": resource.RLIMIT_FSIZE,
    "locks": 10,
    "memlock": resource.RLIMIT_MEMLOCK,
    "msgqueue": resource.RLIMIT_MSGQUEUE,
    "nice": resource.RLIMIT_NICE,
    "nofile": resource.RLIMIT_NOFILE,
    "nproc": resource.RLIMIT_NPROC,
    "rss": resource.RLIMIT_RSS,
    "rtprio": resource.RLIMIT_RTPRIO,
    "rttime": resource.RLIMIT_RTTIME,
    "sigpending": resource.RLIMIT_SIGPENDING,
    "stack": resource.RLIMIT_STACK,
}
_UNLIMITED: Final = ("-1", "unlimited")


class Limit(NamedTuple):
    """One resource limit."""

    name: str  # in NUMBERS
    soft: int  # in the unit of getrlimit(2); -1: unlimited
    hard: int  # likewise

    def __str__(self) -> str:
        return f"{self.name}={self.soft}:{self.hard}"


def parse(text: str) -> Limit:
    """Parse NAME=SOFT[:HARD]. Raises: ValueError with the reason."""
    name, equals, values = text.partition("=")
    if not equals or name not in NUMBERS:
        raise ValueError(f"expected NAME=SOFT[:HARD] with one of {', '.join(NUMBERS)}")
    soft, colon, hard = values.partition(":")
    limit = Limit(name, _value(soft), _value(hard if colon else soft))
    if limit.hard != -1 and not 0 <= limit.soft <= limit.hard:
        raise ValueError("the soft limit is above the hard one")
    return limit


def apply(limits: Iterable[Limit]) -> None:
    """Set the limits of this process and its children. Raises: LaunchError."""
    for limit in limits:
        try:
            resource.setrlimit(NUMBERS[limit.name], (limit.soft, limit.hard))
        except (ValueError, OSError):
            _, maximum = resource.getrlimit(NUMBERS[limit.name])
            why = f"the hard limit here is {maximum}, and only this machine's root may raise it"
            raise LaunchError("setting a limit", str(limit), why) from None


def _value(text: str) -> int:
    if text in _UNLIMITED:
        return -1
    if not (text.isascii() and text.isdecimal() and int(text) < 1 << 63):
        raise ValueError(f"{text!r} is neither a number nor unlimited")
    return int(text)

"""Apply Dockerfile instructions to the settings of an image, for `commit --change` and `import --change`.

Pure. Dockerfile reference; instructions that run or copy something are refused.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from layers.config import Settings
from layers.errors import Malformed

_NOT_ON_BUILD: Final = ("ONBUILD", "FROM", "MAINTAINER")


def with_change(settings: Settings, instruction: str) -> Settings:
    """Apply one Dockerfile instruction to `settings`; returns the new ones.

    Takes those that Docker takes: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME,
    WORKDIR. Raises Malformed for any other.
    """
    word, _, rest = instruction.strip().partition(" ")
    rest = rest.strip()
    match word.upper():
        case "CMD":
            return settings._replace(cmd=_command(rest))
        case "ENTRYPOINT":
            return settings._replace(entrypoint=_command(rest))
        case "ENV":
            return settings._replace(env=_with_env(settings.env, _pairs(instruction, rest)))
        case "LABEL":
            return settings._replace(labels=dict(settings.labels) | _pairs(instruction, rest))
        case "EXPOSE":
            ports = [port if "/" in port else f"{port}/tcp" for port in rest.split()]
            return settings._replace(exposed_ports=_union(settings.exposed_ports, ports))
        case "VOLUME":
            paths = _json_words(rest)
            return settings._replace(volumes=_union(settings.volumes, rest.split() if paths is None else paths))
        case "WORKDIR" if rest:
            path = rest if rest.startswith("/") else f"{settings.working_dir.rstrip('/')}/{rest}"
            return settings._replace(working_dir=path)
        case "USER" if rest:
            return settings._replace(user=rest)
        case "STOPSIGNAL" if rest:
            return settings._replace(stop_signal=rest)
        case "HEALTHCHECK" if rest:
            return settings._replace(others={**settings.others, "Healthcheck": _health(instruction, rest)})
        case "ONBUILD" if rest:
            if rest.partition(" ")[0].upper() in _NOT_ON_BUILD:
                raise Malformed("reading a change", instruction[:200], "ONBUILD cannot be followed by this instruction")
            known = settings.others.get("OnBuild")
            triggers = [*(known if isinstance(known, list) else []), rest]
            return settings._replace(others={**settings.others, "OnBuild": triggers})
    raise Malformed(
        "reading a change",
        instruction[:200],
        "the instruction is unknown or cannot be used here",
        hint="CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR",
    )


def _command(rest: str) -> tuple[str, ...] | None:
    """The words of the exec form, or of the shell form with /bin/sh -c; None (no command) for an empty list."""
    words = _json_words(rest)
    if words is not None:
        return tuple(words) or None
    return ("/bin/sh", "-c", rest) if rest else None


def _json_words(rest: str) -> list[str] | None:
    if not rest.startswith("["):
        return None
    try:
        words = json.loads(rest)
    except ValueError:
        return None
    return words if isinstance(words, list) and all(isinstance(word, str) for word in words) else None


def _pairs(instruction: str, rest: str) -> dict[str, str]:
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise Malformed("reading a change", instruction[:200], str(error)) from None
    if words and "=" not in words[0]:
        key, _, value = rest.partition(" ")
        return {key: value.strip()}
    pairs = dict(word.partition("=")[::2] for word in words)
    if not pairs or "" in pairs or not all("=" in word for word in words):
        raise Malformed("reading a change", instruction[:200], "expected NAME=VALUE")
    return pairs


def _with_env(env: Iterable[str], pairs: Mapping[str, str]) -> tuple[str, ...]:
    kept = dict(line.partition("=")[::2] for line in env) | dict(pairs)
    return tuple(f"{name}={value}" for name, value in kept.items())


def _union(known: Sequence[str], more: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*known, *more)))


_TIMES: Final = {
    "interval": "Interval",
    "timeout": "Timeout",
    "start-period": "StartPeriod",
    "start-interval": "StartInterval",
}
_UNITS_NS: Final = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION: Final = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:ns|us|ms|s|m|h))+", re.ASCII)


def _health(instruction: str, rest: str) -> dict[str, Any]:
    """[--interval=30s] [--timeout=30s] [--start-period=0s] [--start-interval=5s] [--retries=3] CMD ..., or NONE."""
    found: dict[str, Any] = {}
    while (match := re.match(r"--([a-z-]+)=(\S+)\s*", rest)) is not None:
        name, text = match[1], match[2]
        if name in _TIMES and _DURATION.fullmatch(text):
            parts = re.findall(r"([0-9.]+)(ns|us|ms|s|m|h)", text)
            found[_TIMES[name]] = round(sum(float(number) * _UNITS_NS[unit] for number, unit in parts))
        elif name == "retries" and text.isdecimal() and text.isascii() and len(text) < 6:
            found["Retries"] = int(text)
        else:
            raise Malformed("reading a change", instruction[:200], f"{match[0].strip()[:100]!r} is not a valid option")
        rest = rest[match.end() :]
    word, _, command = rest.partition(" ")
    command = command.strip()
    if word.upper() == "NONE" and not command and not found:
        return {"Test": ["NONE"]}
    if word.upper() != "CMD" or not command:
        raise Malformed("reading a change", instruction[:200], "a health check is NONE, or CMD with a command")
    words = _json_words(command)
    return {"Test": ["CMD-SHELL", command] if words is None else ["CMD", *words], **found}

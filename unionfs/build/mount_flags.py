"""Parse one flag `RUN --mount=KEY=VALUE,...`. Pure.

Source: Dockerfile reference, "RUN --mount".
"""

from __future__ import annotations

import csv
import posixpath
import re
from typing import Final, NamedTuple

BIND: Final = "bind"
CACHE: Final = "cache"
TMPFS: Final = "tmpfs"
SECRET: Final = "secret"
TYPES: Final = (BIND, CACHE, TMPFS, SECRET)
_KEYS: Final = {
    BIND: ("target", "source", "from", "rw"),
    CACHE: ("target", "id", "ro", "sharing", "from", "source", "mode", "uid", "gid"),
    TMPFS: ("target", "size"),
    SECRET: ("id", "target", "required", "mode", "uid", "gid", "env"),
}
_ALIASES: Final = {"dst": "target", "destination": "target", "src": "source", "readwrite": "rw", "readonly": "ro"}
_SHARING: Final = ("shared", "private", "locked")


class MountFlag(NamedTuple):
    """One mount of a RUN."""

    type: str
    target: str = ""  # in the container; perhaps relative to its working directory
    source: str = ""  # a path in `from_`
    from_: str = ""  # a stage or an image; empty: the context, or for a cache an empty directory
    read_only: bool = False
    id: str = ""
    sharing: str = "shared"
    required: bool = False
    mode: int | None = None
    uid: int = 0
    gid: int = 0
    size: str = ""  # of a tmpfs, as mount(8) takes it
    env: str = ""  # of a secret: a variable that gets it


def parse_mount(text: str) -> MountFlag:
    """Parse the value of a flag. Raises: ValueError that says what was expected."""
    values: dict[str, str] = {}
    for word in next(csv.reader([text]), []):
        key, equals, value = word.strip().partition("=")
        key = _ALIASES.get(key.lower(), key.lower())
        if key in values:
            raise ValueError(f"{key} is given twice")
        values[key] = value if equals else "true"
    kind = values.pop("type", BIND)
    if kind not in TYPES:
        raise ValueError(f"there is no type {kind}; expected {', '.join(TYPES)}")
    for key, other in (("ro", "rw"), ("rw", "ro")):
        if key in values and key not in _KEYS[kind] and other in _KEYS[kind]:
            values[other] = "false" if _truth(key, values.pop(key)) else "true"
    for key in values:
        if key not in _KEYS[kind]:
            raise ValueError(f"type={kind} has no {key}; expected {', '.join(_KEYS[kind])}")
    target = values.get("target", "")
    if not target and kind != SECRET:
        raise ValueError("it has no target")
    if kind == SECRET and not (values.get("id") or target):
        raise ValueError("it has no id")
    sharing = values.get("sharing", "shared")
    if sharing not in _SHARING:
        raise ValueError(f"sharing={sharing}; expected {', '.join(_SHARING)}")
    read_only = not _truth("rw", values.get("rw", "false")) if kind == BIND else _truth("ro", values.get("ro", "false"))
    size = values.get("size", "")
    if size and not re.fullmatch(r"[0-9]{1,15}[kKmMgGtTbB%]?", size):
        raise ValueError(f"size={size}; expected bytes, such as 64m")
    name = values.get("id") or (posixpath.basename(target) if kind == SECRET else target)
    return MountFlag(
        kind,
        target or (f"/run/secrets/{name}" if kind == SECRET and "env" not in values else ""),
        values.get("source", ""),
        values.get("from", ""),
        read_only,
        name,
        sharing,
        _truth("required", values.get("required", "false")),
        _number("mode", values["mode"], 8) if "mode" in values else None,
        _number("uid", values.get("uid", "0"), 10),
        _number("gid", values.get("gid", "0"), 10),
        size.rstrip("bB"),
        values.get("env", ""),
    )


def _truth(key: str, text: str) -> bool:
    if text.lower() in ("true", "1", ""):
        return True
    if text.lower() in ("false", "0"):
        return False
    raise ValueError(f"{key}={text}; expected true or false")


def _number(key: str, text: str, base: int) -> int:
    if not re.fullmatch("[0-7]{1,5}" if base == 8 else "[0-9]{1,10}", text):
        raise ValueError(f"{key}={text}; expected {'an octal mode' if base == 8 else 'a number'}")
    return int(text, base)

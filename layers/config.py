"""The image configuration <-> JSON: what to run, on which layers, and how it came to be. Pure.

OCI image specification, config.md; Docker's image configuration is the same in all that is read here. What is not
known here (health checks, build triggers ...) is kept as it came and written again.
"""

from __future__ import annotations

import datetime as dt
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from layers import digest as digests
from layers.digest import Digest
from layers.errors import Malformed, Refused
from layers.manifest import MAX_LAYERS, Platform, dump_json, load_json


@dataclass(frozen=True, slots=True)
class Settings:
    """How a container of the image is run (config.md, "config")."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    working_dir: str = ""
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    others: Mapping[str, Any] = field(default_factory=dict)  # keys that are not known here


@dataclass(frozen=True, slots=True)
class History:
    """How one layer, or none (`empty_layer`), came to be."""

    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """An image without its files."""

    platform: Platform
    diff_ids: tuple[Digest, ...]  # bottom first
    settings: Settings = field(default_factory=Settings)
    history: tuple[History, ...] = ()
    created: str = ""
    author: str = ""
    others: Mapping[str, Any] = field(default_factory=dict)


def parse(data: bytes) -> ImageConfig:
    """The configuration in `data`. Raises Refused."""
    value = load_json(data, _WHAT)
    rootfs = value.get("rootfs")
    if not isinstance(rootfs, dict) or rootfs.get("type") != "layers":
        raise _refused("rootfs is not of the type 'layers'")
    diff_ids = _list(rootfs, "diff_ids")
    if len(diff_ids) > MAX_LAYERS:
        raise _refused(f"{len(diff_ids)} layers are more than the {MAX_LAYERS} that are taken")
    try:
        known = tuple(digests.parse(diff_id) for diff_id in diff_ids)
    except Malformed as error:
        raise _refused(f"a diff id is no digest: {error.subject}") from None
    platform = Platform(
        _text(value, "os"), _text(value, "architecture"), _text(value, "variant"), _text(value, "os.version")
    )
    settings = value.get("config")
    return ImageConfig(
        platform,
        known,
        _settings(settings if isinstance(settings, dict) else {}),
        tuple(_history(entry) for entry in _list(value, "history")),
        _text(value, "created"),
        _text(value, "author"),
        {key: item for key, item in value.items() if key not in _KNOWN},
    )


def to_json(config: ImageConfig) -> bytes:
    """The bytes of a configuration; the same for equal values."""
    value: dict[str, Any] = {
        "created": config.created,
        "author": config.author,
        "architecture": config.platform.architecture,
        "os": config.platform.os,
        "os.version": config.platform.os_version,
        "variant": config.platform.variant,
    }
    value = {key: text for key, text in value.items() if text or key in ("architecture", "os")}
    value["config"] = _settings_json(config.settings)
    value["rootfs"] = {"type": "layers", "diff_ids": list(config.diff_ids)}
    if config.history:
        value["history"] = [_history_json(entry) for entry in config.history]
    return dump_json(value | dict(config.others))


def with_change(settings: Settings, instruction: str) -> Settings:
    """`settings` after one instruction of a Dockerfile, as `commit --change` and `import --change` take it.

    CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR. Raises Malformed for any other.
    """
    word, _, rest = instruction.strip().partition(" ")
    rest = rest.strip()
    match word.upper():
        case "CMD":
            return replace(settings, cmd=_command(rest))
        case "ENTRYPOINT":
            return replace(settings, entrypoint=_command(rest))
        case "ENV":
            return replace(settings, env=_with_env(settings.env, _pairs(instruction, rest)))
        case "LABEL":
            return replace(settings, labels=dict(settings.labels) | _pairs(instruction, rest))
        case "EXPOSE":
            ports = [port if "/" in port else f"{port}/tcp" for port in rest.split()]
            return replace(settings, exposed_ports=_union(settings.exposed_ports, ports))
        case "VOLUME":
            paths = _json_words(rest)
            return replace(settings, volumes=_union(settings.volumes, rest.split() if paths is None else paths))
        case "WORKDIR" if rest:
            path = rest if rest.startswith("/") else f"{settings.working_dir.rstrip('/')}/{rest}"
            return replace(settings, working_dir=path)
        case "USER" if rest:
            return replace(settings, user=rest)
        case "STOPSIGNAL" if rest:
            return replace(settings, stop_signal=rest)
    raise Malformed(
        "reading a change",
        instruction[:200],
        "not an instruction that is known here",
        hint="CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR, each with a value",
    )


def timestamp(seconds: float) -> str:
    """RFC 3339, as manifests have it."""
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return moment.isoformat(timespec="microseconds" if moment.microsecond else "seconds").replace("+00:00", "Z")


_WHAT: Final = "reading an image configuration"
_KNOWN: Final = frozenset(
    ("architecture", "os", "os.version", "variant", "created", "author", "config", "rootfs", "history")
)
_KNOWN_SETTINGS: Final = frozenset(
    ("User", "Env", "Entrypoint", "Cmd", "WorkingDir", "Volumes", "ExposedPorts", "Labels", "StopSignal")
)


def _settings(value: Mapping[str, Any]) -> Settings:
    labels = value.get("Labels") or {}
    if not isinstance(labels, dict) or not all(isinstance(text, str) for text in labels.values()):
        raise _refused("Labels is not an object of texts")
    return Settings(
        _text(value, "User"),
        _words(value, "Env") or (),
        _words(value, "Entrypoint"),
        _words(value, "Cmd"),
        _text(value, "WorkingDir"),
        _keys(value, "Volumes"),
        _keys(value, "ExposedPorts"),
        dict(labels),
        _text(value, "StopSignal"),
        {key: item for key, item in value.items() if key not in _KNOWN_SETTINGS},
    )


def _settings_json(settings: Settings) -> dict[str, Any]:
    value: dict[str, Any] = {
        "User": settings.user,
        "ExposedPorts": {port: {} for port in settings.exposed_ports},
        "Env": list(settings.env),
        "Entrypoint": None if settings.entrypoint is None else list(settings.entrypoint),
        "Cmd": None if settings.cmd is None else list(settings.cmd),
        "Volumes": {path: {} for path in settings.volumes},
        "WorkingDir": settings.working_dir,
        "Labels": dict(settings.labels),
        "StopSignal": settings.stop_signal,
    }
    return {key: item for key, item in value.items() if item} | dict(settings.others)


def _history(value: object) -> History:
    if not isinstance(value, dict):
        raise _refused("an entry of the history is not an object")
    return History(
        _text(value, "created"),
        _text(value, "created_by"),
        _text(value, "author"),
        _text(value, "comment"),
        value.get("empty_layer") is True,
    )


def _history_json(entry: History) -> dict[str, Any]:
    value: dict[str, Any] = {key: getattr(entry, key) for key in ("created", "created_by", "author", "comment")}
    value = {key: text for key, text in value.items() if text}
    return value | {"empty_layer": True} if entry.empty_layer else value


def _command(rest: str) -> tuple[str, ...] | None:
    """Words of the exec form, or the shell form through /bin/sh; an empty list takes the command away."""
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


def _list(value: Mapping[str, Any], key: str) -> list[Any]:
    items = value.get(key)
    if items is None:
        return []
    if not isinstance(items, list):
        raise _refused(f"{key} is not a list")
    return items


def _words(value: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
    items = value.get(key)
    if items is None:
        return None
    if isinstance(items, str):
        return ("/bin/sh", "-c", items)  # as Docker reads it
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise _refused(f"{key} is not a list of texts")
    return tuple(items)


def _keys(value: Mapping[str, Any], key: str) -> tuple[str, ...]:
    items = value.get(key)
    if items is None:
        return ()
    if not isinstance(items, dict | list):
        raise _refused(f"{key} is not an object")
    return tuple(str(item) for item in items)


def _text(value: Mapping[str, Any], key: str) -> str:
    text = value.get(key)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise _refused(f"{key} is not a text")
    return text


def _refused(why: str) -> Refused:
    return Refused(_WHAT, "", why)

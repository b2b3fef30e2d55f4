"""The image configuration <-> JSON: settings for containers, layers, history. Pure.

OCI image specification, config.md; Docker's image configuration has the same keys. Keys that are not known here (health
checks, build triggers ...) are kept and written again unchanged.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from layers import digest as digests
from layers.digest import Digest
from layers.errors import Malformed, Refused
from layers.manifest import MAX_LAYERS, Platform, dump_json, load_json


class Settings(NamedTuple):
    """The settings of containers of the image (config.md, "config")."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    working_dir: str = ""
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}
    stop_signal: str = ""
    others: Mapping[str, Any] = {}  # keys that are not known here


class History(NamedTuple):
    """One build step, which made a layer or not (`empty_layer`)."""

    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class ImageConfig(NamedTuple):
    """The configuration of an image."""

    platform: Platform
    diff_ids: tuple[Digest, ...]  # bottom first
    settings: Settings = Settings()
    history: tuple[History, ...] = ()
    created: str = ""
    author: str = ""
    others: Mapping[str, Any] = {}


def parse(data: bytes) -> ImageConfig:
    """Parse a configuration. Raises Refused."""
    value = load_json(data, _WHAT)
    rootfs = value.get("rootfs")
    if not isinstance(rootfs, dict) or rootfs.get("type") not in ("layers", "", None):
        raise _refused("rootfs is not of the type 'layers'")
    diff_ids = _list(rootfs, "diff_ids")
    if len(diff_ids) > MAX_LAYERS:
        raise _refused(f"{len(diff_ids)} layers; the limit is {MAX_LAYERS}")
    try:
        known = tuple(digests.parse(diff_id) for diff_id in diff_ids)
    except Malformed as error:
        raise _refused(f"a diff id is not a digest: {error.subject}") from None
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
    """The JSON of a configuration; equal values give equal bytes."""
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


def timestamp(seconds: float) -> str:
    """A time in seconds since 1970 as RFC 3339 text, in UTC."""
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
    if not isinstance(labels, dict) or not all(isinstance(text, str | None) for text in labels.values()):
        raise _refused("Labels is not an object of strings")
    return Settings(
        _text(value, "User"),
        _words(value, "Env") or (),
        _words(value, "Entrypoint"),
        _words(value, "Cmd"),
        _text(value, "WorkingDir"),
        _keys(value, "Volumes"),
        _keys(value, "ExposedPorts"),
        {key: text or "" for key, text in labels.items()},
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
    if value is None:
        return History()  # Go reads null as an empty entry
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
        raise _refused(f"{key} is not a list of strings")
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
        raise _refused(f"{key} is not a string")
    return text


def _refused(why: str) -> Refused:
    return Refused(_WHAT, "", why)

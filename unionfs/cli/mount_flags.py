"""The mounts of a container: the flags -v, --mount and --tmpfs, with docker's syntax."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterable
from typing import Final

from unionfs.cli.errors import OWN_FAILURE, CommandError
from unionfs.containers import names
from unionfs.containers.config import Mounts, Volume
from unionfs.containers.store import ContainerStore
from unionfs.containers.volumes import VolumeStore
from unionfs.launcher.spec import Tmpfs

_VOLUME_WORDS: Final = (
    *("ro", "rw", "O", "z", "Z", "nocopy", "rprivate", "private"),
    *("cached", "delegated", "consistent"),
)
"""z and Z relabel files for SELinux in other tools, and do nothing here. Later mounts of the host show in no container,
so rprivate is accepted and the other propagations are refused. cached, delegated and consistent have a meaning for
Docker Desktop only: a bound file is the host's file, so all of them are fulfilled."""

_TMPFS_VALUES: Final = ("size", "mode", "nr_inodes", "uid", "gid")
_TMPFS_WORDS: Final = ("ro", "rw", "nosuid", "nodev", "exec", "noexec", "suid", "relatime", "noatime", "strictatime")
_MOUNT_KEYS: Final = {
    "source": "source", "src": "source", "target": "target", "destination": "target", "dst": "target",
    "readonly": "readonly", "ro": "readonly", "type": "type", "volume-nocopy": "nocopy",
    "tmpfs-size": "size", "tmpfs-mode": "mode", "bind-propagation": "propagation", "consistency": "consistency",
}  # fmt: skip
_KEYS_OF_KIND: Final = {
    "bind": {"source", "readonly", "propagation"},
    "volume": {"source", "readonly", "nocopy"},
    "tmpfs": {"readonly", "size", "mode"},
}
_TRUTHS: Final = {"true": True, "1": True, "false": False, "0": False}


def mounts_of(arguments: Namespace) -> Mounts:
    """The mounts of -v, --mount and --tmpfs. Raises: CommandError for invalid values."""
    store = VolumeStore(ContainerStore(arguments.root).root)
    volumes: list[Volume] = []
    anonymous: list[str] = []
    tmpfs: dict[str, str] = {}
    for text in arguments.volume or ():
        if text.startswith("/") and ":" not in text:
            anonymous.append(_target("volume", text, text))
        else:
            volumes.append(volume_from(text, store))
    for text in arguments.mount or ():
        _add_mount(text, store, volumes, anonymous, tmpfs)
    for text in arguments.tmpfs or ():
        path, _, options = text.partition(":")
        tmpfs[_target("tmpfs", text, path)] = _tmpfs_options(text, options.split(",") if options else ())
    targets = [*(volume.target for volume in volumes), *anonymous, *tmpfs]
    for path in targets:
        if targets.count(path) > 1:
            raise bad("volume", path, "two of them have this target")
    return Mounts(tuple(volumes), tuple(anonymous), tuple(Tmpfs(path, options) for path, options in tmpfs.items()))


def volume_from(text: str, store: VolumeStore) -> Volume:
    """The mount of a value of -v. Raises: CommandError for an invalid one."""
    source, _, rest = text.partition(":")
    target, _, words = rest.partition(":")
    if not source or not target:
        raise bad("volume", text, "expected SRC:DST or SRC:DST:ro or SRC:DST:O, NAME:DST, or a path of the container")
    chosen = words.split(",") if words else []
    for word in chosen:
        if word not in _VOLUME_WORDS:
            raise bad("volume", text, f"{word!r} is not one of {', '.join(_VOLUME_WORDS)}")
    target = _target("volume", text, target)
    read_only, overlay = "ro" in chosen, "O" in chosen
    if not source.startswith(("/", ".", "~")) and "/" not in source:
        return _named(
            text, source, target, store, read_only=read_only, populate="nocopy" not in chosen, overlay=overlay
        )
    return Volume(os.path.abspath(os.path.expanduser(source)), target, read_only, overlay)


def inside(what: str, path: str) -> str:
    """A path of the container, normalised."""
    if not path.startswith("/"):
        raise bad(what, path, "a path in the container must be absolute")
    return "/" + os.path.normpath(path).lstrip("/")


def bad(what: str, text: str, why: str) -> CommandError:
    """The failure for an invalid value of a flag."""
    return CommandError(f"run: bad {what}: {text}: {why}", status=OWN_FAILURE)


def _target(what: str, text: str, path: str) -> str:
    target = inside(what, path)
    if target == "/":
        raise bad(what, text, "it would cover the whole root filesystem")
    return target


def _named(
    text: str, name: str, target: str, store: VolumeStore, *, read_only: bool, populate: bool, overlay: bool = False
) -> Volume:
    if not names.PATTERN.fullmatch(name):
        raise bad("volume", text, f"{name!r} is not the name of a volume; a directory here is ./{name}")
    if overlay:
        raise bad("volume", text, "only a directory of this machine can be shown with :O")
    return Volume(store.path(name), target, read_only, name=name, populate=populate)


def _add_mount(
    text: str, store: VolumeStore, volumes: list[Volume], anonymous: list[str], tmpfs: dict[str, str]
) -> None:
    """Add the mount of a value of --mount: type=bind|volume|tmpfs,src=...,dst=...,readonly."""
    found: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if key not in _MOUNT_KEYS:
            raise bad("mount", text, f"{key!r} is not one of {', '.join(_MOUNT_KEYS)}")
        found[_MOUNT_KEYS[key]] = value if equals else "true"
    if "target" not in found:
        raise bad("mount", text, "it has no target")
    kind, source, target = found.get("type", "volume"), found.get("source", ""), _target("mount", text, found["target"])
    if kind not in _KEYS_OF_KIND:
        raise bad("mount", text, f"{kind!r} is not a known type")
    for key in found.keys() - _KEYS_OF_KIND[kind] - {"type", "target", "consistency"}:
        raise bad("mount", text, f"{key} is not an option of a {kind}")
    if found.get("propagation", "rprivate") not in ("private", "rprivate"):
        raise bad(
            "mount",
            text,
            "only bind-propagation=rprivate is supported: later mounts of this machine do not show in a container",
        )
    read_only, nocopy = (_truth(text, key, found.get(key, "false")) for key in ("readonly", "nocopy"))
    if kind == "tmpfs":
        words = [f"{key}={found[key]}" for key in ("size", "mode") if key in found]
        tmpfs[target] = _tmpfs_options(text, [*words, *(("ro",) if read_only else ())])
    elif kind == "bind" and source:
        volumes.append(Volume(os.path.abspath(os.path.expanduser(source)), target, read_only))
    elif kind == "volume" and source:
        volumes.append(_named(text, source, target, store, read_only=read_only, populate=not nocopy))
    elif kind == "volume" and not (read_only or nocopy):
        anonymous.append(target)
    else:
        raise bad("mount", text, f"a {kind} needs a source" if kind == "bind" else "readonly and nocopy need a source")


def _truth(text: str, key: str, value: str) -> bool:
    if value not in _TRUTHS:
        raise bad("mount", text, f"{key} must be true or false")
    return _TRUTHS[value]


def _tmpfs_options(text: str, words: Iterable[str]) -> str:
    """The options of a tmpfs, separated by commas. Raises: CommandError for one that is not supported."""
    kept = list(words)
    for word in kept:
        key, equals, _ = word.partition("=")
        if not (equals and key in _TMPFS_VALUES) and word not in _TMPFS_WORDS:
            raise bad("tmpfs", text, f"{word!r} is not one of {', '.join((*_TMPFS_VALUES, *_TMPFS_WORDS))}")
    return ",".join(kept)

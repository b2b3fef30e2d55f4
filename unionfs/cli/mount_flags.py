"""What is mounted in a container, as the flags -v, --mount and --tmpfs ask for it in docker's words."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterable
from typing import Final, NamedTuple

from unionfs.cli.errors import OWN_FAILURE, CommandError
from unionfs.containers import names
from unionfs.containers.job import Volume
from unionfs.containers.store import ContainerStore
from unionfs.containers.volumes import VolumeStore

_VOLUME_WORDS: Final = (
    "ro",
    "rw",
    "O",
    "z",
    "Z",
    "nocopy",
    "rprivate",
    "private",
    "rslave",
    "slave",
    "rshared",
    "shared",
)
"""z and Z relabel for SELinux in other tools: nothing to do here. What the host mounts later shows in no container."""

_TMPFS_VALUES: Final = ("size", "mode", "nr_inodes", "uid", "gid")
_TMPFS_WORDS: Final = ("rw", "nosuid", "nodev", "exec", "noexec", "suid", "dev", "relatime", "noatime", "strictatime")
_MOUNT_KEYS: Final = {
    "source": "source", "src": "source", "target": "target", "destination": "target", "dst": "target",
    "readonly": "readonly", "ro": "readonly", "type": "type", "volume-nocopy": "nocopy",
    "tmpfs-size": "size", "tmpfs-mode": "mode", "bind-propagation": "", "consistency": "",
}  # fmt: skip


class Places(NamedTuple):
    """All of them."""

    volumes: tuple[Volume, ...] = ()
    anonymous: tuple[str, ...] = ()  # paths of volumes without a name
    tmpfs: tuple[str, ...] = ()
    tmpfs_options: tuple[tuple[str, str], ...] = ()  # path, options of tmpfs(5)


def wanted(arguments: Namespace) -> Places:
    """What the command line asks for. Raises: CommandError when it makes no sense."""
    store = VolumeStore(ContainerStore(arguments.root).root)
    volumes: list[Volume] = []
    anonymous: list[str] = []
    tmpfs: dict[str, str] = {}
    for text in arguments.volume or ():
        if text.startswith("/") and ":" not in text:
            anonymous.append(_place("volume", text, text))
        else:
            volumes.append(volume_from(text, store))
    for text in arguments.mount or ():
        _add_mount(text, store, volumes, anonymous, tmpfs)
    for text in arguments.tmpfs or ():
        path, _, options = text.partition(":")
        tmpfs[_place("tmpfs", text, path)] = _tmpfs_options(text, options.split(",") if options else ())
    taken = [*(volume.target for volume in volumes), *anonymous, *tmpfs]
    for path in taken:
        if taken.count(path) > 1:
            raise bad("volume", path, "two of them at one place")
    chosen = tuple((path, options) for path, options in tmpfs.items() if options)
    return Places(tuple(volumes), tuple(anonymous), tuple(tmpfs), chosen)


def volume_from(text: str, store: VolumeStore) -> Volume:
    """What a value of -v asks for. Raises: CommandError when it makes no sense."""
    source, _, rest = text.partition(":")
    target, _, words = rest.partition(":")
    if not source or not target:
        raise bad("volume", text, "expected SRC:DST or SRC:DST:ro or SRC:DST:O, NAME:DST, or a path of the container")
    chosen = words.split(",") if words else []
    for word in chosen:
        if word not in _VOLUME_WORDS:
            raise bad("volume", text, f"{word!r} is none of {', '.join(_VOLUME_WORDS)}")
    place = _place("volume", text, target)
    read_only, aside = "ro" in chosen, "O" in chosen
    if not source.startswith(("/", ".", "~")) and "/" not in source:
        return _named(text, source, place, store, read_only=read_only, filled="nocopy" not in chosen, aside=aside)
    return Volume(os.path.abspath(os.path.expanduser(source)), place, read_only, aside)


def inside(what: str, path: str) -> str:
    """A path of the container, made normal."""
    if not path.startswith("/"):
        raise bad(what, path, "a path in the container must be absolute")
    return "/" + os.path.normpath(path).lstrip("/")


def bad(what: str, text: str, why: str) -> CommandError:
    """What is said of a flag's value that makes no sense."""
    return CommandError(f"run: bad {what}: {text}: {why}", status=OWN_FAILURE)


def _place(what: str, text: str, path: str) -> str:
    place = inside(what, path)
    if place == "/":
        raise bad(what, text, "it would cover the whole root filesystem")
    return place


def _named(
    text: str, name: str, place: str, store: VolumeStore, *, read_only: bool, filled: bool, aside: bool = False
) -> Volume:
    if not names.PATTERN.fullmatch(name):
        raise bad("volume", text, f"{name!r} is no name of a volume; a directory here is ./{name}")
    if aside:
        raise bad("volume", text, "only a directory of this machine can have its changes put aside (:O)")
    return Volume(store.path(name), place, read_only, name=name, filled=filled)


def _add_mount(
    text: str, store: VolumeStore, volumes: list[Volume], anonymous: list[str], tmpfs: dict[str, str]
) -> None:
    """Add what a value of --mount asks for: type=bind|volume|tmpfs,src=...,dst=...,readonly."""
    found: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if key not in _MOUNT_KEYS:
            raise bad("mount", text, f"{key!r} is none of {', '.join(_MOUNT_KEYS)}")
        found[_MOUNT_KEYS[key]] = value if equals else "true"
    if "target" not in found:
        raise bad("mount", text, "it has no target")
    kind, source, place = found.get("type", "volume"), found.get("source", ""), _place("mount", text, found["target"])
    read_only = found.get("readonly", "false") in ("true", "1")
    if kind == "tmpfs":
        tmpfs[place] = _tmpfs_options(text, [f"{key}={found[key]}" for key in ("size", "mode") if key in found])
    elif kind == "bind" and source:
        volumes.append(Volume(os.path.abspath(os.path.expanduser(source)), place, read_only))
    elif kind == "volume" and source:
        filled = found.get("nocopy", "false") not in ("true", "1")
        volumes.append(_named(text, source, place, store, read_only=read_only, filled=filled))
    elif kind == "volume":
        anonymous.append(place)
    else:
        raise bad("mount", text, "a bind needs a source" if kind == "bind" else f"{kind!r} is no type known here")


def _tmpfs_options(text: str, words: Iterable[str]) -> str:
    """The options that the kernel is given; flags that hold anyway are left out."""
    kept = []
    for word in words:
        key, equals, _ = word.partition("=")
        if not (equals and key in _TMPFS_VALUES) and word not in _TMPFS_WORDS:
            raise bad("tmpfs", text, f"{word!r} is none of {', '.join((*_TMPFS_VALUES, *_TMPFS_WORDS))}")
        if equals:
            kept.append(word)
    if kept and not any(word.startswith("mode=") for word in kept):
        kept.append("mode=1777")
    return ",".join(kept)

"""Images that are one file: a squashfs, alone or in a .sif of Apptainer. Recognises them; does not mount them.

`unionfs save --format squashfs` writes the root filesystem at the root of the squashfs, as other tools expect it, or
with --layers a directory for each layer; and beside it

    .unionfs/config.json   {"version": 1, "id": DIGEST, "layers": [DIRECTORY, ...], "config": {...}}

`config` is the image's configuration (OCI), `id` its digest, `layers` are the directories of layers, the lowest first;
none if the root filesystem is at the root. The same content follows the squashfs, at the next multiple of 4096 bytes,
after a mark of eight bytes and its length: so a container starts without mounting the file only to read it.
"""

from __future__ import annotations

import json
import os
import re
import stat
from struct import Struct
from typing import Any, Final, NamedTuple

from layers import config as configs
from layers import sif, squashfs
from layers.config import ImageConfig
from layers.digest import Digest
from layers.errors import Refused
from unionfs.write_all import write_all

DIRECTORY: Final = ".unionfs"
CONFIG: Final = f"{DIRECTORY}/config.json"
CONFIG_MAX: Final = 16 << 20

ENDINGS: Final = (".sqfs", ".squashfs", ".sif")
"""Of names of such files."""

_VERSION: Final = 1
_COPY: Final = Struct("<8sQ")  # before the copy of CONFIG: _MARK, and its length in bytes
_MARK: Final = b"unionfs\n"
_PADDED: Final = 4096  # a squashfs is padded to a multiple of it
_WHAT: Final = "opening an image"
_LAYER: Final = re.compile(r"layers/[0-9]{1,4}")


class Found(NamedTuple):
    """The squashfs in a file."""

    offset: int
    size: int
    identity: str  # of the content: the superblock in hexadecimal digits, with its time, sizes and positions
    is_sif: bool
    end: int  # the offset behind the squashfs and its padding


class Description(NamedTuple):
    """The content of CONFIG."""

    id: str
    layers: tuple[str, ...]  # directories, the lowest first; "": the root itself
    config: ImageConfig


def is_image(path: str) -> bool:
    """Whether there is a regular file that begins as a squashfs or as a .sif."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            start = file.read(sif.MAGIC_AT + len(sif.MAGIC))
    except OSError:
        return False
    return start.startswith(squashfs.MAGIC) or start[sif.MAGIC_AT :] == sif.MAGIC


def examine(fd: int, path: str) -> Found:
    """Find the squashfs in an open file. Raises: Refused if it is damaged, truncated, or not for this machine."""
    st = os.fstat(fd)
    if not stat.S_ISREG(st.st_mode):
        raise Refused(_WHAT, path, "it is not a regular file")
    offset, size, is_sif = 0, st.st_size, False
    if os.pread(fd, len(sif.MAGIC), sif.MAGIC_AT) == sif.MAGIC:
        (offset, size), is_sif = sif.root_partition(fd, path), True
    start = os.pread(fd, squashfs.SIZE, offset)
    used = squashfs.parse(start, size, path).bytes_used
    return Found(offset, size, start.hex(), is_sif, offset + used + -used % _PADDED)


def append_copy(fd: int, path: str, content: bytes) -> None:
    """Write a copy of CONFIG behind a new squashfs. Raises: Refused, OSError."""
    end = examine(fd, path).end
    os.ftruncate(fd, end)
    os.lseek(fd, end, os.SEEK_SET)
    write_all(fd, _COPY.pack(_MARK, len(content)) + content)


def read_copy(fd: int, found: Found) -> bytes | None:
    """The copy of CONFIG; None if there is none, or a part of it. Raises: OSError."""
    start = os.pread(fd, _COPY.size, found.end)
    if len(start) < _COPY.size:
        return None
    mark, length = _COPY.unpack(start)
    if mark != _MARK or length > CONFIG_MAX:
        return None
    content = os.pread(fd, length, found.end + _COPY.size)
    return content if len(content) == length else None


def describe(image_id: Digest, layers: tuple[str, ...], config: bytes) -> bytes:
    """The content of CONFIG. `config` is the image's configuration as it is stored."""
    value = {"version": _VERSION, "id": image_id, "layers": list(layers), "config": json.loads(config)}
    return json.dumps(value, sort_keys=True, indent=1).encode("ascii") + b"\n"


def parse(data: bytes, path: str) -> Description:
    """Read the content of CONFIG. Raises: Refused."""
    try:
        value: Any = json.loads(data)
        version = value["version"]
        if version != _VERSION:
            why = f"its {CONFIG} has version {version!r:.20}; this program reads {_VERSION}"
            raise Refused(_WHAT, path, why, hint="a newer program has written it: upgrade unionfs")
        layers = tuple(value["layers"])
        if not all(isinstance(one, str) and _LAYER.fullmatch(one) for one in layers):
            raise ValueError
        return Description(str(value["id"]), layers or ("",), configs.parse(json.dumps(value["config"]).encode()))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Refused(_WHAT, path, f"its {CONFIG} is damaged") from None

"""Apptainer's image files (.sif): finds the root filesystem in one, and compares signed digests. Reads, never writes.

A file begins with a header of 128 bytes; a table of descriptors of 585 bytes each says where objects are. Source: the
structs of github.com/apptainer/sif, pkg/sif (sif.go, descriptor.go) and pkg/integrity (metadata.go); little endian.

Whether the key of a signature is one to trust is not checked: that needs a keyring (`apptainer verify`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Any, Final, NamedTuple

from layers.errors import Refused
from layers.manifest import own_platform

MAGIC: Final = b"SIF_MAGIC\0"
MAGIC_AT: Final = 32
HEADER: Final = Struct("<32s10s3s3s16sqqqqqqqq")
DESCRIPTOR: Final = Struct("<i?IIIqqqqqqq128s384s")
PARTITION: Final = Struct("<ii3s")

_WHAT: Final = "opening an image"
_VERSION: Final = b"01\0"
_DESCRIPTORS_MAX: Final = 10_000  # 48 is usual
_SIGNATURE_MAX: Final = 16 << 20
_READ: Final = 1 << 20
_CLEARSIGNED: Final = b"-----BEGIN PGP SIGNED MESSAGE-----"
_HASHES: Final = ("sha256", "sha384", "sha512")
_DATA_PARTITION: Final = 0x4004
_DATA_SIGNATURE: Final = 0x4005
_GROUP: Final = 0xF0000000
_PRIMARY: Final = 2
_SQUASHFS, _ENCRYPTED = 1, 5
_FILESYSTEMS: Final = {2: "ext3", 3: "an archive", 4: "raw data"}
_ARCHITECTURES: Final = {
    b"01": "386", b"02": "amd64", b"03": "arm", b"04": "arm64", b"05": "ppc64", b"06": "ppc64le", b"07": "mips",
    b"08": "mipsle", b"09": "mips64", b"10": "mips64le", b"11": "s390x", b"12": "riscv64",
}  # fmt: skip


class Partition(NamedTuple):
    """The root filesystem: a squashfs, in bytes of the file."""

    offset: int
    size: int


class _Object(NamedTuple):
    """One descriptor, in the order of the file."""

    kind: int
    used: bool
    id: int
    group: int
    link: int
    offset: int
    size: int
    padded: int
    ctime: int
    mtime: int
    uid: int
    gid: int
    name: bytes
    extra: bytes


def root_partition(fd: int, path: str) -> Partition:
    """Find the root filesystem of an open file, and check that it can be used here.

    Raises: Refused if it is truncated, damaged, encrypted, of another filesystem or processor, or if the objects are
    not those that were signed.
    """
    size = os.fstat(fd).st_size
    header = os.pread(fd, HEADER.size, 0)
    if len(header) < HEADER.size:
        raise _truncated(path)
    fields = HEADER.unpack(header)
    if fields[2] != _VERSION:
        raise Refused(_WHAT, path, f"it has version {fields[2]!r} of the format; only version 01 is read")
    objects = _objects(fd, path, count=fields[8], offset=fields[9], size=size)
    found = [one for one in objects if one.kind == _DATA_PARTITION and PARTITION.unpack_from(one.extra)[1] == _PRIMARY]
    if len(found) != 1:
        raise Refused(_WHAT, path, f"it has {len(found)} root filesystems (primary partitions) instead of one")
    root = found[0]
    filesystem, _, architecture = PARTITION.unpack_from(root.extra)
    if filesystem == _ENCRYPTED:
        hint = "only apptainer can open it, with its key: apptainer build PLAIN.sif ENCRYPTED.sif"
        raise Refused(_WHAT, path, "its root filesystem is encrypted", hint=hint)
    if filesystem != _SQUASHFS:
        kind = _FILESYSTEMS.get(filesystem, f"of the unknown type {filesystem}")
        raise Refused(_WHAT, path, f"its root filesystem is {kind}; only squashfs is read")
    made_for, here = _ARCHITECTURES.get(architecture.rstrip(b"\0"), "an unknown processor"), own_platform().architecture
    if made_for != here:
        raise Refused(_WHAT, path, f"it is for {made_for}, and this machine is {here}")
    for one in objects:
        if one.kind == _DATA_SIGNATURE:
            _compare_signed(fd, path, header, objects, one)
    return Partition(root.offset, root.size)


def _objects(fd: int, path: str, *, count: int, offset: int, size: int) -> list[_Object]:
    if not 0 <= count <= _DESCRIPTORS_MAX or offset < 0:
        raise Refused(_WHAT, path, "its header is damaged")
    table = os.pread(fd, count * DESCRIPTOR.size, offset)
    if len(table) < count * DESCRIPTOR.size:
        raise _truncated(path)
    objects = [one for fields in DESCRIPTOR.iter_unpack(table) if (one := _Object(*fields)).used]
    for one in objects:
        if one.offset < 0 or one.size < 0:
            raise Refused(_WHAT, path, "a descriptor is damaged")
        if one.offset + one.size > size:
            raise _truncated(path)
    return objects


def _truncated(path: str) -> Refused:
    return Refused(_WHAT, path, "it is truncated", hint="copy or download it again")


def _compare_signed(fd: int, path: str, header: bytes, objects: list[_Object], signature: _Object) -> None:
    """Compare the header and the objects with the digests in a signature. Raises: Refused if one differs."""
    what = f"the signature {signature.id}"
    is_group = signature.link & _GROUP == _GROUP
    signed = [one for one in objects if (one.group if is_group else one.id) == signature.link]
    if not signed or signature.size > _SIGNATURE_MAX:
        raise Refused(_WHAT, path, f"{what} is damaged, or of objects that do not exist")
    # Digests name objects by their distance from the first of the group.
    first = min(one.id for one in objects if one.group == signed[0].group)
    try:
        message = _message(os.pread(fd, signature.size, signature.offset))
        if message is None:
            return
        claimed = {first + one["relativeId"]: one for one in message["objects"]}
        matches = _matches(message["header"]["digest"], [header[:45], header[48:64]])  # without the processor
        for one in signed:
            if one.id not in claimed:
                raise Refused(_WHAT, path, f"{what} does not include the object {one.id}")
            matches = matches and _matches(claimed[one.id]["descriptorDigest"], [_protected(one, first)])
            matches = matches and _matches(claimed[one.id]["objectDigest"], _data(fd, one))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Refused(_WHAT, path, f"{what} is damaged") from None
    if not matches:
        raise Refused(_WHAT, path, f"{what} does not match: the file was changed after it was signed")


def _message(text: bytes) -> Any:
    """The signed JSON; None for signatures of Singularity before 3.6, which sign one digest as text."""
    if text.startswith(_CLEARSIGNED):
        body = text.partition(b"\n\n")[2].partition(b"\n-----BEGIN PGP SIGNATURE-----")[0]
        return json.loads(body) if body.startswith(b"{") else None
    return json.loads(base64.b64decode(json.loads(text)["payload"]))  # a DSSE envelope


def _matches(digest: str, pieces: Iterable[bytes]) -> bool:
    name, _, wanted = digest.partition(":")
    if name not in _HASHES:
        raise ValueError(name)
    hash_ = hashlib.new(name)
    for piece in pieces:
        hash_.update(piece)
    return hash_.hexdigest() == wanted


def _protected(one: _Object, first: int) -> bytes:
    """The signed fields of a descriptor."""
    fields = (one.kind, one.used, one.id - first, one.link, one.size, one.ctime, one.uid, one.gid)
    return Struct("<i?IIqqqq").pack(*fields) + one.name + one.extra


def _data(fd: int, one: _Object) -> Iterator[bytes]:
    """The data of an object, piece by piece."""
    at, end = one.offset, one.offset + one.size
    while at < end and (piece := os.pread(fd, min(_READ, end - at), at)):
        yield piece
        at += len(piece)

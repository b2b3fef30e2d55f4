"""Image files: which squashfs and .sif are taken, and which refused in which words. The .sif are written here."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path
from struct import Struct
from typing import Final

import pytest

from layers import image_file, sif, squashfs
from layers.errors import Refused
from layers.manifest import own_platform

_GROUP: Final = 0xF0000001
_HERE: Final = {"amd64": b"02", "arm64": b"04", "ppc64le": b"06", "s390x": b"11", "riscv64": b"12"}
_LAUNCH: Final = b"#!/usr/bin/env run-singularity\n"


@pytest.fixture(scope="session")
def squash(run_dir: Path) -> bytes:
    """A squashfs with one file, made by mksquashfs."""
    if not shutil.which("mksquashfs"):
        pytest.skip("mksquashfs is missing (Debian package squashfs-tools)")
    (run_dir / "squash").mkdir()
    (run_dir / "squash/file").write_text("content")
    made = run_dir / "squash.sqfs"
    subprocess.run(["mksquashfs", run_dir / "squash", made, "-quiet", "-no-progress", "-comp", "zstd"], check=True)
    return (run_dir / "squash.sqfs").read_bytes()


def write_sif(
    path: Path,
    root: bytes,
    *,
    filesystem: int = 1,
    architecture: bytes | None = None,
    version: bytes = b"01\0",
    signed: bool = False,
    changed: bytes | None = None,
    kind: int = 2,
) -> Path:
    """Write a .sif after the structs of github.com/apptainer/sif: a definition file and a root filesystem, and their
    signature. `changed` takes the place of the root filesystem after it was signed."""
    arch = architecture or _HERE[own_platform().architecture]
    identity = uuid.UUID(int=7).bytes
    partition = Struct("<ii3s").pack(filesystem, kind, arch + b"\0")
    objects = [(0x4001, b"bootstrap: docker\n", b""), (0x4004, root, partition)]
    rows, at, blob = [], 32768, b""

    def row(number: int, type_: int, data: bytes, extra: bytes, group: int, link: int) -> bytes:
        return Struct("<i?IIIqqqqqqq128s384s").pack(
            type_, True, number, group, link, at + len(blob), len(data), len(data), 1, 1, 0, 0, b"name", extra
        )

    claims = []
    for number, (type_, data, extra) in enumerate(objects, 1):
        blob += bytes(-len(blob) % 4096)
        rows.append(row(number, type_, data, extra, _GROUP, 0))
        fields = Struct("<i?IIqqqq").pack(type_, True, number - 1, 0, len(data), 1, 0, 0)
        protected = fields + b"name".ljust(128, b"\0") + extra.ljust(384, b"\0")
        claims.append({"relativeId": number - 1, "descriptorDigest": _sha(protected), "objectDigest": _sha(data)})
        blob += changed if changed is not None and type_ == 0x4004 else data
    if signed:
        header = _LAUNCH.ljust(32, b"\0") + sif.MAGIC + version + identity
        message = json.dumps({"version": 1, "header": {"digest": _sha(header)}, "objects": claims}).encode()
        text = b"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n" + message
        text += b"\n-----BEGIN PGP SIGNATURE-----\n\n...\n-----END PGP SIGNATURE-----\n"
        rows.append(row(3, 0x4005, text, Struct("<i256s").pack(1, b""), 0xF0000000, _GROUP))
        blob += text
    table = b"".join(rows).ljust(48 * 585, b"\0")
    numbers = (1, 1, 48 - len(rows), 48, 4096, len(table), at, len(blob))
    head = Struct("<32s10s3s3s16sqqqqqqqq").pack(_LAUNCH, sif.MAGIC, version, arch + b"\0", identity, *numbers)
    path.write_bytes(head.ljust(4096, b"\0") + table.ljust(at - 4096, b"\0") + blob)
    return path


def _sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _examined(path: Path) -> image_file.Found:
    fd = os.open(path, os.O_RDONLY)
    try:
        return image_file.examine(fd, str(path))
    finally:
        os.close(fd)


def test_the_squashfs_in_each_kind_of_file_is_found(tmp_path: Path, squash: bytes) -> None:
    plain = tmp_path / "plain.sqfs"
    plain.write_bytes(squash)
    found = _examined(plain)
    assert (found.offset, found.size, found.is_sif) == (0, len(squash), False)
    for signed in (False, True):
        file = write_sif(tmp_path / "image.sif", squash, signed=signed)
        found = _examined(file)
        assert (found.offset, found.size, found.is_sif) == (32768 + 4096, len(squash), True)
        assert file.read_bytes()[found.offset :][:4] == b"hsqs"
        assert image_file.is_image(str(file))
    assert not image_file.is_image(str(tmp_path))
    assert not image_file.is_image("/etc/passwd")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"filesystem": 5}, "its root filesystem is encrypted"),
        ({"filesystem": 2}, "its root filesystem is ext3; only squashfs is read"),
        ({"architecture": b"03"}, "it is for arm, and this machine is "),
        ({"architecture": b"99"}, "it is for an unknown processor, and this machine is "),
        ({"version": b"02\0"}, "has version b'02"),
        ({"kind": 3}, "it has 0 root filesystems"),
        ({"signed": True, "changed": True}, "the signature 3 does not match: the file was changed after it was signed"),
    ],
)
def test_what_cannot_be_run_is_refused_in_words(
    tmp_path: Path, squash: bytes, words: dict[str, object], why: str
) -> None:
    if "changed" in words:
        words = {**words, "changed": squash[:-1] + bytes([squash[-1] ^ 1])}
    file = write_sif(tmp_path / "image.sif", squash, **words)  # type: ignore[arg-type]
    with pytest.raises(Refused, match=why):
        _examined(file)


def test_a_file_truncated_to_any_length_is_refused(tmp_path: Path, squash: bytes) -> None:
    whole = write_sif(tmp_path / "image.sif", squash, signed=True).read_bytes()
    file = tmp_path / "short"
    for length in (50, 127, 128, 4097, 4096 + 585, 4096 + 48 * 585, 32768, 36864 + 50, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(Refused, match="truncated"):
            _examined(file)
    for length in (96, 200):
        file.write_bytes(squash[:length])
        with pytest.raises(Refused, match="it is truncated: its squashfs has"):
            _examined(file)


def test_hostile_headers(tmp_path: Path, squash: bytes) -> None:
    whole = bytearray(write_sif(tmp_path / "image.sif", squash).read_bytes())
    file = tmp_path / "bad"
    for at, data in (
        (88, b"\xff" * 8),  # descriptors: -1
        (88, b"\xff\xff\xff\x7f\0\0\0\0"),
        (96, b"\xff" * 8),  # their position
        (4096 + 17, b"\xff" * 8),  # the position of an object
        (4096 + 25, b"\xff" * 8),  # its size
        (4096 + 25, b"\xff" * 7 + b"\x7f"),
    ):
        bad = bytearray(whole)
        bad[at : at + len(data)] = data
        file.write_bytes(bad)
        with pytest.raises(Refused):
            _examined(file)


def test_the_description_is_read_as_it_was_written_and_newer_ones_are_refused() -> None:
    rootfs = '"rootfs": {"type": "layers", "diff_ids": []}'
    config = f'{{"architecture": "amd64", "os": "linux", "config": {{"Cmd": ["a"]}}, {rootfs}}}'.encode()
    data = image_file.describe("sha256:" + "a" * 64, ("layers/000", "layers/001"), config)  # type: ignore[arg-type]
    told = image_file.parse(data, "f")
    assert (told.layers, told.config.settings.cmd) == (("layers/000", "layers/001"), ("a",))
    assert image_file.parse(image_file.describe("sha256:b", (), config), "f").layers == ("",)  # type: ignore[arg-type]
    for change, why in (
        ({"version": 2}, "has version 2; this program reads 1"),
        ({"layers": ["../x"]}, "is damaged"),
        ({"layers": ["layers/1/../../.."]}, "is damaged"),
        ({"config": []}, "damaged|configuration"),
    ):
        with pytest.raises(Refused, match=why):
            image_file.parse(json.dumps(json.loads(data) | change).encode(), "f")


def test_a_copy_of_the_configuration_follows_the_squashfs(tmp_path: Path, squash: bytes) -> None:
    path = tmp_path / "plain.sqfs"
    path.write_bytes(squash)
    content = b'{"version": 1}' * 100
    with path.open("r+b") as file:
        found = image_file.examine(file.fileno(), str(path))
        assert found.end % 4096 == 0
        assert 0 <= found.end - len(squash) < 4096 or found.end == len(squash)
        assert image_file.read_copy(file.fileno(), found) is None
        for _ in range(2):  # another one replaces it
            image_file.append_copy(file.fileno(), str(path), content)
            assert image_file.read_copy(file.fileno(), found) == content
            assert os.fstat(file.fileno()).st_size == found.end + 16 + len(content)
        os.ftruncate(file.fileno(), found.end + 15 + len(content))
        assert image_file.read_copy(file.fileno(), found) is None, "it was cut off"
    assert path.read_bytes().startswith(squash)


def test_whether_a_squashfs_has_extended_attributes(squash: bytes, scratch: Path) -> None:
    (scratch / "tree").mkdir()
    (scratch / "tree/file").write_text("content")
    os.setxattr(scratch / "tree/file", "user.x", b"1")
    for option, expected in (("-xattrs", True), ("-no-xattrs", False)):
        made = scratch / f"{option}.sqfs"
        words: list[str | Path] = ["mksquashfs", scratch / "tree", made, "-quiet", "-no-progress", option]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        assert squashfs.has_xattrs(made.read_bytes()) is expected
    assert squashfs.has_xattrs(squash) is False
    torn = bytearray(squash)
    torn[56] ^= 1  # the start of the table is not quite that of none
    assert squashfs.has_xattrs(bytes(torn)) is True

"""The numbers and layouts against the header itself, as far as the header installed here goes."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tests.support.timing import limit
from unionfs.fuse.kernel import abi

HEADER = Path("/usr/include/linux/fuse.h")

# struct -> size, as the header of protocol 7.45 has them.
SIZES = {
    "in_header": 40, "out_header": 16, "attr": 88, "entry_out": 128, "attr_out": 104, "dirent": 24, "direntplus": 152,
    "forget_in": 8, "forget_one": 16, "batch_forget_in": 8, "getattr_in": 16, "setattr_in": 88, "mknod_in": 16,
    "mkdir_in": 8, "rename_in": 8, "rename2_in": 16, "link_in": 8, "open_in": 8, "create_in": 16, "open_out": 16,
    "read_in": 40, "write_in": 40, "write_out": 8, "statfs_out": 80, "fsync_in": 16, "setxattr_in": 16,
    "getxattr_in": 8, "getxattr_out": 8, "access_in": 8, "init_in": 64, "init_out": 64, "interrupt_in": 8,
    "ioctl_in": 32, "ioctl_out": 16, "fallocate_in": 32, "lseek_in": 24, "lseek_out": 8, "copy_file_range_in": 56,
    "copy_file_range_out": 8, "syncfs_in": 8, "statx_in": 24, "statx_out": 288, "notify_inval_inode_out": 24,
    "notify_inval_entry_out": 16, "notify_delete_out": 24,
    "release_in": 24, "backing_map": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def header() -> str:
    """The text of the installed header."""
    if not HEADER.exists():
        pytest.skip(f"{HEADER} is not installed (Debian package linux-libc-dev)")
    return HEADER.read_text()


@pytest.mark.parametrize("name", SIZES)
def test_layouts_have_the_documented_size(name: str) -> None:
    assert getattr(abi, name.upper()).size == SIZES[name]


def test_every_layout_is_checked() -> None:
    layouts = {name.lower() for name, value in vars(abi).items() if isinstance(value, struct.Struct)}
    made_up = {"entry_reply", "attr_reply", "write_reply", "setxattr_in_compat", "init_in_compat", "backing_id"}
    assert layouts - made_up == SIZES.keys()


def test_a_c_compiler_finds_the_same_sizes(header: str, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler (Debian package gcc)")
    known = [name for name in SIZES if f"struct fuse_{name} {{" in header]
    assert len(known) > 35
    lines = "".join(f'printf("{name} %zu\\n", sizeof(struct fuse_{name}));' for name in known)
    source = tmp_path / "sizes.c"
    source.write_text(f"#include <stdio.h>\n#include <linux/fuse.h>\nint main(void) {{{lines}return 0;}}\n")
    subprocess.run(["gcc", "-o", tmp_path / "sizes", source], check=True, timeout=limit(60))
    out = subprocess.run([tmp_path / "sizes"], check=True, capture_output=True, text=True, timeout=limit(60)).stdout
    assert {name: int(size) for name, size in map(str.split, out.splitlines())} == {name: SIZES[name] for name in known}


def test_opcodes_are_the_headers(header: str) -> None:
    body = re.search(r"enum fuse_opcode \{(.*?)\};", header, re.DOTALL)
    assert body is not None
    theirs = {name: int(value) for name, value in re.findall(r"FUSE_(\w+)\s*=\s*(\d+)", body[1])}
    del theirs["INIT_BSWAP_RESERVED"]
    assert_agree({op.name: op.value for op in abi.Op}, theirs, header, at_least=40)


def test_init_flags_are_the_headers(header: str) -> None:
    block = header[header.index("#define FUSE_ASYNC_READ") : header.index("CUSE INIT request/reply flags")]
    theirs = {name: 1 << int(bit) for name, bit in re.findall(r"#define FUSE_(\w+)\s*\(1(?:ULL)? << (\d+)\)", block)}
    assert_agree({flag.name or "": flag.value for flag in abi.Init}, theirs, header, at_least=30)


def test_notify_codes_are_the_headers(header: str) -> None:
    theirs = {name: int(code) for name, code in re.findall(r"FUSE_NOTIFY_(\w+)\s*=\s*(\d+)", header)}
    del theirs["REPLY"]  # an opcode
    assert_agree({code.name: code.value for code in abi.Notify}, theirs, header, at_least=6)


def assert_agree(ours: dict[str, int], theirs: dict[str, int], header: str, *, at_least: int) -> None:
    """What both know is the same, and we know all that a header of our protocol or an older one has."""
    common = ours.keys() & theirs.keys()
    assert len(common) >= at_least
    assert {name: ours[name] for name in common} == {name: theirs[name] for name in common}
    minor = re.search(r"FUSE_KERNEL_MINOR_VERSION (\d+)", header)
    assert minor is not None
    if int(minor[1]) <= abi.MINOR:
        assert theirs.keys() <= ours.keys()


@pytest.mark.parametrize("prefix", ["FATTR_", "WRITE_", "FSYNC_", "SETXATTR_", "FOPEN_"])
def test_other_flags_are_the_headers(header: str, prefix: str) -> None:
    theirs = {name: 1 << int(bit) for name, bit in re.findall(r"#define (?:FUSE_)?(\w+)\s+\(1 << (\d+)\)", header)}
    ours = {name: value for name, value in vars(abi).items() if name.startswith(prefix) and isinstance(value, int)}
    assert ours
    assert {name: theirs.get(name, value) for name, value in ours.items()} == ours

"""--writeback: set-id bits, capabilities and times of files whose pages are written late, as on a plain directory."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuse.kernel.conftest import MakeMount

_TRY = r"""
import ctypes, errno, json, os, struct, sys

CAPABILITY = struct.pack('<IIIII', 0x02000001, 1 << 10, 0, 0, 0)

def root():
    pass

def root_without_fsetid():
    libc, header, data = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    for at in range(3):
        data[at] &= ~(1 << 4)
    assert libc.capset(header, data) == 0

def owner():
    os.setgroups([]), os.setgid(1000), os.setuid(1000)

def written(fd):
    os.write(fd, b'new')

def lengthened(fd):
    os.posix_fallocate(fd, 0, 20000)

def changed_while_written(fd):
    os.write(fd, b'new')
    os.fchmod(fd, 0o6711)
    os.utime(fd, (5, 5))
    if os.geteuid() == 0:
        os.setxattr(fd, 'security.capability', CAPABILITY)

os.chdir(sys.argv[1])
found = {}
for who in root, root_without_fsetid, owner:
    for mode in 0o777, 0o4777, 0o2777, 0o2767:
        for capability in b'', CAPABILITY:
            for change in written, lengthened, changed_while_written:
                name = f'{who.__name__} {mode:o} {len(capability)} {change.__name__}'
                with open(name, 'wb') as file:
                    file.write(b'content')
                os.chown(name, 1000, 1000)
                os.chmod(name, mode)
                if capability:
                    os.setxattr(name, 'security.capability', capability)
                pid = os.fork()
                if not pid:
                    fd = os.open(name, os.O_RDWR)
                    who()
                    change(fd)
                    os.close(fd)
                    os._exit(0)
                assert os.waitpid(pid, 0)[1] == 0, name
                os.fsync(os.open(name, os.O_RDONLY))
                st = os.stat(name)
                times = st.st_mtime if change is changed_while_written else None
                found[name] = [oct(st.st_mode), 'security.capability' in os.listxattr(name), times]
json.dump(found, sys.stdout)
"""


def _tried(where: Path) -> dict[str, list[object]]:
    done = subprocess.run([sys.executable, "-c", _TRY, where], capture_output=True, text=True, check=True)
    found: dict[str, list[object]] = json.loads(done.stdout)
    return found


def test_set_id_bits_capabilities_and_times(scratch: Path, mount: MakeMount) -> None:
    if os.geteuid() != 0:
        pytest.skip("changes owners and capabilities")
    for name in ("lower", "native"):
        (scratch / name).mkdir()
    union = mount(scratch / "lower", writeback=True)
    native, ours = _tried(scratch / "native"), _tried(union.path)
    assert native["root 4777 20 written"] == ["0o104777", False, None]
    assert native["owner 4777 0 written"] == ["0o100777", False, None]
    assert native["root 777 0 changed_while_written"] == ["0o106711", True, 5.0]
    assert ours == native
    for name, (mode, _, _) in ours.items():
        assert oct((scratch / "upper" / name).stat().st_mode) == mode


@pytest.mark.parametrize("writeback", [False, True])
def test_data_that_are_not_written_yet_are_no_hole(scratch: Path, mount: MakeMount, *, writeback: bool) -> None:
    """Or a program that copies files with holes would leave them out: what a mapping, or with --writeback write(2), has
    put into a hole or behind the end."""
    (scratch / "lower").mkdir()
    with (scratch / "lower/f").open("wb") as file:
        file.truncate(1 << 20)
    union = mount(scratch / "lower", writeback=writeback)
    for name in ("f", "new"):
        with (union.path / name).open("r+b" if name == "f" else "w+b", buffering=0) as file:
            file.truncate(1 << 20)
            with mmap.mmap(file.fileno(), 1 << 20) as mapped:
                mapped[500_000] = mapped[700_000] = 1
                os.pwrite(file.fileno(), b"end", 3 << 20)
                at, found = 0, []
                for whence in (os.SEEK_DATA, os.SEEK_HOLE) * 3:
                    at = os.lseek(file.fileno(), at, whence)
                    found.append(at)
                first, second, last = 499_712, 696_320, 3 << 20
                assert found == [first, first + 4096, second, second + 4096, last, last + 3]
                with pytest.raises(OSError, match="No such device or address"):
                    os.lseek(file.fileno(), at, os.SEEK_DATA)
                mapped[600_000] = 1
                assert os.lseek(file.fileno(), first, os.SEEK_HOLE) == first + 4096
                mapped[first + 4096] = 1
                assert os.lseek(file.fileno(), first, os.SEEK_HOLE) == first + 8192
        assert (union.path / name).read_bytes().count(b"\1") == 4

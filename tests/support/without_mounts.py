"""The tests that need neither mounts nor namespaces (`make test-quick`), and a guard that checks that.

`pytest --without-mounts` runs the files named below and no others. The run and its children cannot mount, nor make or
enter a namespace: a seccomp(2) filter refuses the system calls (EPERM). Opening /dev/fuse in the test process is
refused by an audit hook, too.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from pathlib import Path
from typing import Final

import pytest

_ROOMS: Final = ("tests/changes", "tests/core", "tests/layers", "tests/snapshotter", "tests/syscalls", "tests/trees")
_FILES: Final = ("tests/test_architecture.py",)
_MOUNTING: Final = (
    *("tests/changes/test_apply.py", "tests/changes/test_listing.py", "tests/trees/test_remove.py"),
    *("tests/core/test_against_overlayfs.py", "tests/core/test_full_disk.py", "tests/core/test_options.py"),
    *("tests/core/test_ordinary_user.py", "tests/core/test_trees.py"),
    *("tests/layers/test_archive.py", "tests/layers/test_commands.py", "tests/layers/test_killed.py"),
    *("tests/layers/test_others.py", "tests/layers/test_verbs.py", "tests/snapshotter/test_server.py"),
    "tests/layers/explore/test_terminal.py",
)
"""Files of these directories that mount, or that run commands which do."""
_LONG: Final = (
    *("tests/core/test_against_model.py", "tests/core/test_crash.py"),
    *("tests/core/test_limits.py", "tests/core/test_partial.py", "tests/core/test_takeover.py"),
    "tests/layers/test_faults.py",
    *("tests/changes/test_with_the_core.py", "tests/layers/test_roundtrip.py", "tests/snapshotter/test_store.py"),
)
"""Files of these directories that take too long for this tier."""

_X86_64: Final = 0xC000003E
_REFUSED: Final = {  # <asm/unistd_64.h>
    "mount": 165,
    "umount2": 166,
    "pivot_root": 155,
    "unshare": 272,
    "setns": 308,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsmount": 432,
    "mount_setattr": 442,
}
_CLONE, _CLONE3 = 56, 435
_NEW_NAMESPACE: Final = 0x7E020000  # CLONE_NEW*: cgroup, uts, ipc, user, pid, net, mount; CLONE_NEWTIME is clone3's
_EPERM, _ENOSYS = 1, 38  # without clone3(2), which hides its flags, the C library falls back to clone(2)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without-mounts", action="store_true", help="only tests that need no mounts and namespaces; refuse both"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Install the guard before any of these tests is imported."""
    if config.getoption("without_mounts"):
        refuse_mounts()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collect only the files of this tier."""
    if not config.getoption("without_mounts") or collection_path.is_dir():
        return None
    name = collection_path.relative_to(config.rootpath).as_posix()
    return True if name.startswith("tests/") and not is_without_mounts(name) else None


def is_without_mounts(name: str) -> bool:
    """Whether the test file `name`, relative to the checkout, is of this tier."""
    if name in _FILES:
        return True
    return name.startswith(tuple(f"{room}/" for room in _ROOMS)) and name not in (*_MOUNTING, *_LONG)


def refuse_mounts() -> None:
    """Forbid this process and its descendants, for ever, to mount and to make or enter namespaces."""
    sys.addaudithook(_refuse_fuse)
    libc = ctypes.CDLL(None, use_errno=True)
    if os.uname().machine != "x86_64":
        return  # other architectures have other numbers: there only the hook guards
    program = _filter()
    code = ctypes.create_string_buffer(program)
    wanted = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))  # struct sock_fprog
    set_no_new_privs, set_seccomp, filter_mode = 38, 22, 2
    if os.geteuid() != 0:
        libc.prctl(set_no_new_privs, 1, 0, 0, 0)
    if libc.prctl(set_seccomp, filter_mode, wanted) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def _refuse_fuse(event: str, args: tuple[object, ...]) -> None:
    if event == "open" and args[0] in ("/dev/fuse", b"/dev/fuse"):
        raise PermissionError("a test without mounts opens /dev/fuse")


def _filter() -> bytes:
    """Instructions of the classic BPF (<linux/filter.h>) on struct seccomp_data: nr at 0, arch at 4, args from 16."""
    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO and the errno
    numbers = list(_REFUSED.values())
    # After the list follow: clone's flags, clone3, allow, EPERM, ENOSYS. Jumps are counted from the next instruction.
    tail = [
        (equal, 0, 2, _CLONE),
        (load, 0, 0, 16),
        (any_bit, 2, 1, _NEW_NAMESPACE),
        (equal, 2, 0, _CLONE3),
        (give, 0, 0, allow),
        (give, 0, 0, refuse | _EPERM),
        (give, 0, 0, refuse | _ENOSYS),
    ]
    to_refuse = len(numbers) + 5  # the place of EPERM, counted from after the loading of the number
    program = [(load, 0, 0, 4), (equal, 0, to_refuse + 1, _X86_64), (load, 0, 0, 0)]
    program += [(equal, to_refuse - at - 1, 0, number) for at, number in enumerate(numbers)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program + tail)

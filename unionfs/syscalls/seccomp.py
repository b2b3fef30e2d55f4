"""Intercept system calls of other processes: seccomp(2), "SECCOMP_USER_NOTIF".

A process installs a filter for itself and its descendants and gets a listener. Another process reads the calls from the
listener and answers them; until then the callers wait. Structures and numbers are those of <linux/seccomp.h>,
<linux/filter.h>, <linux/audit.h> and <asm/unistd.h>.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_X86_64: Final = {
    "stat": 4, "fstat": 5, "lstat": 6, "chown": 92, "fchown": 93, "lchown": 94, "getrlimit": 97, "getuid": 102,
    "getgid": 104, "setuid": 105, "setgid": 106, "geteuid": 107, "getegid": 108, "setreuid": 113, "setregid": 114,
    "getgroups": 115, "setgroups": 116, "setresuid": 117, "getresuid": 118, "setresgid": 119, "getresgid": 120,
    "setfsuid": 122, "setfsgid": 123, "mknod": 133, "prctl": 157, "setrlimit": 160, "mknodat": 259, "fchownat": 260,
    "newfstatat": 262, "prlimit64": 302, "statx": 332,
}  # fmt: skip
_GENERIC: Final = {
    "mknodat": 33, "fchownat": 54, "fchown": 55, "newfstatat": 79, "fstat": 80, "setregid": 143, "setgid": 144,
    "setreuid": 145, "setuid": 146, "setresuid": 147, "getresuid": 148, "setresgid": 149, "getresgid": 150,
    "setfsuid": 151, "setfsgid": 152, "getgroups": 158, "setgroups": 159, "getrlimit": 163, "setrlimit": 164,
    "prctl": 167, "prlimit64": 261, "getuid": 174, "geteuid": 175, "getgid": 176, "getegid": 177, "statx": 291,
}  # fmt: skip


class Machine(NamedTuple):
    """Constants that depend on the processor architecture."""

    audit_arch: int
    seccomp: int  # number of seccomp(2)
    numbers: dict[str, int]  # of the system calls that can be intercepted
    stat_size: int  # of struct stat
    stat_ids: int  # offset of st_uid, which st_gid follows


_MACHINES: Final = {
    "x86_64": Machine(0xC000003E, 317, _X86_64, 144, 28),
    "aarch64": Machine(0xC00000B7, 277, _GENERIC, 128, 24),
    "riscv64": Machine(0xC00000F3, 277, _GENERIC, 128, 24),
}

CONTINUE: Final = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE: the kernel executes the call

_SET_MODE_FILTER: Final = 1
_GET_NOTIF_SIZES: Final = 3
_NEW_LISTENER: Final = 1 << 3
_WAIT_KILLABLE: Final = 1 << 5  # a call that was received is interrupted by fatal signals only; since Linux 5.19
_RET_ALLOW: Final = 0x7FFF0000
_RET_NOTIFY: Final = 0x7FC00000
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
_OFFSET_NR, _OFFSET_ARCH, _OFFSET_ARG = 0, 4, 16  # in struct seccomp_data; arguments of 8 bytes, their low half first
_INSTRUCTION: Final = struct.Struct("HBBI")  # struct sock_filter

_NOTIFICATION: Final = struct.Struct("QII iIQ6Q")  # struct seccomp_notif
_RESPONSE: Final = struct.Struct("QqiI")  # struct seccomp_notif_resp
_RECEIVE: Final = 0xC0502100  # SECCOMP_IOCTL_NOTIF_RECV
_SEND: Final = 0xC0182101
_ID_VALID: Final = 0x40082102  # SECCOMP_IOCTL_NOTIF_ID_VALID
_PAGE: Final = 4096


class Call(NamedTuple):
    """A system call that waits for its answer."""

    id: int
    thread: int  # in our pid namespace
    number: int
    args: tuple[int, ...]


def machine() -> Machine | None:
    """Return the constants of this machine's architecture, or None if it is not supported."""
    return _MACHINES.get(os.uname().machine)


def is_available() -> bool:
    """Whether kernel and architecture support interception. Installing a filter may fail all the same."""
    here = machine()
    sizes = ctypes.create_string_buffer(6)
    return here is not None and _libc.syscall(ctypes.c_long(here.seccomp), _GET_NOTIF_SIZES, 0, sizes) == 0


def install_filter(names: Iterable[str], by_argument: Mapping[str, tuple[int, tuple[int, ...]]]) -> int:
    """Intercept these system calls of this process and its descendants, those in `by_argument` (position, values) only
    with one of some values of an argument. Returns the listener.

    Raises: EBUSY below a filter with a listener, EACCES without CAP_SYS_ADMIN or no_new_privs, ENOSYS, EINVAL.
    """
    here = machine()
    if here is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    numbers = [here.numbers[name] for name in names if name in here.numbers and name not in by_argument]
    tail = [(_RETURN, 0, 0, _RET_ALLOW), (_RETURN, 0, 0, _RET_NOTIFY)]
    for name, (position, values) in by_argument.items():
        test = [(_EQUAL, 0, len(values) + 2, here.numbers[name]), (_LOAD, 0, 0, _OFFSET_ARG + 8 * position)]
        to_notify = len(tail)  # behind the last comparison: a return, and the tail without its last instruction
        test += [(_EQUAL, to_notify + len(values) - 1 - at, 0, value) for at, value in enumerate(values)]
        tail = [*test, (_RETURN, 0, 0, _RET_ALLOW), *tail]
    last = len(numbers) + len(tail) - 1  # index after the instruction that loads the number
    program = [(_LOAD, 0, 0, _OFFSET_ARCH), (_EQUAL, 0, last, here.audit_arch), (_LOAD, 0, 0, _OFFSET_NR)]
    program += [(_EQUAL, last - at - 1, 0, number) for at, number in enumerate(numbers)]
    program += tail
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*instruction) for instruction in program))
    wanted = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))  # struct sock_fprog
    for flags in (_NEW_LISTENER | _WAIT_KILLABLE, _NEW_LISTENER):
        fd: int = _libc.syscall(ctypes.c_long(here.seccomp), _SET_MODE_FILTER, flags, wanted)
        if fd >= 0:
            return fd
        if ctypes.get_errno() != errno.EINVAL:
            break
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def receive(fd: int) -> Call:
    """Receive the next intercepted call. Raises: ENOENT if it was interrupted meanwhile."""
    buffer = bytearray(_NOTIFICATION.size)
    fcntl.ioctl(fd, _RECEIVE, buffer)
    identity, thread, _, number, _, _, *args = _NOTIFICATION.unpack(buffer)
    return Call(identity, thread, number, tuple(args))


def is_waiting(fd: int, call: Call) -> bool:
    """Whether `call` still waits for its answer. Only then is `call.thread` certainly the number of its caller."""
    try:
        fcntl.ioctl(fd, _ID_VALID, struct.pack("Q", call.id))
    except FileNotFoundError:
        return False
    return True


def answer(fd: int, call: Call, value: int = 0, code: int = 0, flags: int = 0) -> None:
    """Make a call return `value`, fail with errno `code`, or continue in the kernel (CONTINUE). Raises: ENOENT if it
    was interrupted."""
    fcntl.ioctl(fd, _SEND, bytearray(_RESPONSE.pack(call.id, value, -code, flags)))


def read_memory(thread: int, address: int, size: int) -> bytes:
    """Read `size` bytes of a process's memory (process_vm_readv(2)). Raises: EFAULT, ESRCH, EPERM."""
    buffer = ctypes.create_string_buffer(size)
    _transfer(_libc.process_vm_readv, thread, ctypes.addressof(buffer), address, size)
    return buffer.raw


def read_string(thread: int, address: int, limit: int = _PAGE) -> bytes:
    """Read the NUL-terminated string at `address`. Raises: ENAMETOOLONG beyond `limit` bytes, EFAULT, ESRCH, EPERM."""
    found = b""
    while len(found) < limit:
        part = read_memory(thread, address, min(_PAGE - address % _PAGE, limit - len(found)))
        text, end, _ = part.partition(b"\0")
        found += text
        if end:
            return found
        address += len(part)
    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


def write_memory(thread: int, address: int, data: bytes) -> None:
    """Write `data` to a process's memory (process_vm_writev(2)). Raises: EFAULT, ESRCH, EPERM."""
    buffer = ctypes.create_string_buffer(data, len(data))
    _transfer(_libc.process_vm_writev, thread, ctypes.addressof(buffer), address, len(data))


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


_libc.process_vm_readv.restype = _libc.process_vm_writev.restype = ctypes.c_ssize_t
for _function in (_libc.process_vm_readv, _libc.process_vm_writev):
    _function.argtypes = (
        ctypes.c_int, ctypes.POINTER(_Iovec), ctypes.c_ulong, ctypes.POINTER(_Iovec), ctypes.c_ulong, ctypes.c_ulong,
    )  # fmt: skip


def _transfer(function: ctypes._NamedFuncPointer, thread: int, ours: int, theirs: int, size: int) -> None:
    done = function(thread, _Iovec(ours, size), 1, _Iovec(theirs, size), 1, 0)
    if done != size:
        code = ctypes.get_errno() if done < 0 else errno.EFAULT
        raise OSError(code, os.strerror(code))


def raw_stat(dir_fd: int, path: bytes, flags: int, mask: int | None = None) -> bytearray:
    """Return the struct stat of newfstatat(2), or with a `mask` the struct statx of statx(2). Raises: OSError, as these
    calls."""
    here = machine()
    assert here is not None
    if mask is None:
        buffer = bytearray(here.stat_size)
        number, arguments = here.numbers["newfstatat"], (ctypes.c_int(flags),)
        target = (ctypes.c_char * len(buffer)).from_buffer(buffer)
        result = _libc.syscall(ctypes.c_long(number), ctypes.c_int(dir_fd), ctypes.c_char_p(path), target, *arguments)
    else:
        buffer = bytearray(_STATX_SIZE)
        target = (ctypes.c_char * len(buffer)).from_buffer(buffer)
        result = _libc.syscall(
            ctypes.c_long(here.numbers["statx"]), ctypes.c_int(dir_fd), ctypes.c_char_p(path), ctypes.c_int(flags),
            ctypes.c_uint(mask), target,
        )  # fmt: skip
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return buffer


_STATX_SIZE: Final = 256

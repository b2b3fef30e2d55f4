"""Filters of system calls built by libseccomp, through its C interface (seccomp_rule_add(3), seccomp_load(3)).

The library knows the numbers of system calls on every architecture and makes the BPF program. It is loaded at the first
use; Debian's packages that start containers depend on it.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, NamedTuple

NAME: Final = "libseccomp.so.2"

ATTRIBUTE_NO_NEW_PRIVS: Final = 3  # SCMP_FLTATR_CTL_NNP: the library sets no_new_privs before it loads a filter
ATTRIBUTE_LOG: Final = 6
ATTRIBUTE_NO_SPECULATION: Final = 7  # SCMP_FLTATR_CTL_SSB; set: no mitigation
ATTRIBUTE_WAIT_KILLABLE: Final = 10

_UNKNOWN: Final = -1  # __NR_SCMP_ERROR


class Comparison(NamedTuple):
    """A condition on an argument: enum scmp_compare, and one or two values."""

    argument: int  # 0 to 5
    operator: int
    value: int
    value_two: int = 0


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


class Filter:
    """A filter being built, then loaded. It stays valid in forked children."""

    def __init__(self, default_action: int) -> None:
        """Raises: OSError when the library is not installed, EINVAL for an action that it does not know."""
        self._library: Final = _load_library()
        context = self._library.seccomp_init(ctypes.c_uint32(default_action))
        if not context:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), "seccomp_init(3)")
        self._context: Final = ctypes.c_void_p(context)

    def add_architecture(self, name: str) -> None:
        """Let the filter hold for system calls of the architecture, too. Raises: EINVAL for an unknown one."""
        token = self._library.seccomp_arch_resolve_name(name.encode())
        if token == 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
        if self._library.seccomp_arch_exist(self._context, ctypes.c_uint32(token)):
            _check(self._library.seccomp_arch_add(self._context, ctypes.c_uint32(token)), name)

    def set_attribute(self, attribute: int, value: int) -> None:
        """Set one of ATTRIBUTE_*. Raises: EINVAL, EOPNOTSUPP for one that the library does not have."""
        _check(self._library.seccomp_attr_set(self._context, attribute, ctypes.c_uint32(value)), "seccomp_attr_set(3)")

    def add_rule(self, action: int, name: str, comparisons: Sequence[Comparison] = ()) -> bool:
        """Take `action` for a system call if all comparisons hold. Return False for a call that the library does not
        know. Raises: OSError."""
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number == _UNKNOWN:
            return False
        array = (_Comparison * max(len(comparisons), 1))(*(_Comparison(*one) for one in comparisons))
        _check(
            self._library.seccomp_rule_add_array(
                self._context, ctypes.c_uint32(action), ctypes.c_int(number), ctypes.c_uint(len(comparisons)), array
            ),
            name,
        )
        return True

    def load(self) -> None:
        """Install the filter in this process. Raises: EACCES without CAP_SYS_ADMIN or no_new_privs."""
        _check(self._library.seccomp_load(self._context), "seccomp_load(3)")

    def listener(self) -> int:
        """The descriptor of a loaded filter that has an action to notify. Raises: OSError."""
        return _check(self._library.seccomp_notify_fd(self._context), "seccomp_notify_fd(3)")


def version() -> str:
    """The version of the library; empty when it is not installed."""

    class _Version(ctypes.Structure):
        _fields_ = (("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint))

    try:
        library = _load_library()
    except OSError:
        return ""
    library.seccomp_version.restype = ctypes.POINTER(_Version)
    found = library.seccomp_version().contents
    return f"{found.major}.{found.minor}.{found.micro}"


@cache
def _load_library() -> Any:
    try:
        library = ctypes.CDLL(NAME)
    except OSError:
        raise OSError(errno.ENOENT, "the library is not installed (Debian: libseccomp2)", NAME) from None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    return library


def _check(result: int, name: str) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result), name)
    return result

"""inotify(7): watch directories for changes. One thin wrapper for each call; events are values."""

from __future__ import annotations

import ctypes
import os
from struct import Struct
from typing import Final, NamedTuple

MODIFY: Final = 0x2  # <sys/inotify.h>
ATTRIB: Final = 0x4
MOVED_FROM: Final = 0x40
MOVED_TO: Final = 0x80
CREATE: Final = 0x100
DELETE: Final = 0x200
DELETE_SELF: Final = 0x400
MOVE_SELF: Final = 0x800
UNMOUNT: Final = 0x2000
Q_OVERFLOW: Final = 0x4000
IGNORED: Final = 0x8000

_ONLYDIR: Final = 0x01000000
_EXCL_UNLINK: Final = 0x04000000
_CHANGES: Final = MODIFY | ATTRIB | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF

_EVENT: Final = Struct("=iIII")  # struct inotify_event: wd mask cookie len, then the name with zeros behind it
_ROOM: Final = 64 << 10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.inotify_init1.argtypes = (ctypes.c_int,)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_libc.inotify_rm_watch.argtypes = (ctypes.c_int, ctypes.c_int)


class Event(NamedTuple):
    """A change of the entry `name` in the watched directory `wd`, or, if `name` is empty, of the directory itself."""

    wd: int  # -1 for Q_OVERFLOW
    mask: int
    name: bytes


def _fail(path: str = "") -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), path)


def init() -> int:
    """Return a new non-blocking inotify descriptor. Raises: EMFILE beyond fs.inotify.max_user_instances."""
    fd: int = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        raise _fail()
    return fd


def watch(fd: int, path: str) -> int:
    """Watch the directory at `path`, which may be /proc/self/fd/N. Return its watch descriptor; a directory that is
    watched already keeps its own. Raises: ENOSPC beyond fs.inotify.max_user_watches, EACCES if it is not readable."""
    wd: int = _libc.inotify_add_watch(fd, os.fsencode(path), _CHANGES | _ONLYDIR | _EXCL_UNLINK)
    if wd < 0:
        raise _fail(path)
    return wd


def unwatch(fd: int, wd: int) -> None:
    """Stop watching `wd`. A watch that has ended already is no error."""
    _libc.inotify_rm_watch(fd, wd)


def read(fd: int) -> list[Event]:
    """Return the events that are queued, at most some thousand at a time. Does not block."""
    try:
        raw = os.read(fd, _ROOM)
    except BlockingIOError:
        return []
    events = []
    at = 0
    while at < len(raw):
        wd, mask, _cookie, length = _EVENT.unpack_from(raw, at)
        at += _EVENT.size
        events.append(Event(wd, mask, raw[at : at + length].rstrip(b"\0")))
        at += length
    return events

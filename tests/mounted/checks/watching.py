"""inotify(7): a watch on a file or directory reports every change, from the first one after its start."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from tests.mounted.checking import check, elsewhere, opened, read, same, write

_libc = ctypes.CDLL(None, use_errno=True)
_EVENTS = {
    0x1: "ACCESS", 0x2: "MODIFY", 0x4: "ATTRIB", 0x8: "CLOSE_WRITE", 0x10: "CLOSE_NOWRITE", 0x20: "OPEN",
    0x40: "MOVED_FROM", 0x80: "MOVED_TO", 0x100: "CREATE", 0x200: "DELETE", 0x400: "DELETE_SELF", 0x800: "MOVE_SELF",
}  # fmt: skip
_ALL = sum(_EVENTS)
_IGNORED = 0x8000
_IS_DIR = 0x40000000


class Watch:
    """An inotify descriptor with one watch."""

    def __init__(self, path: str, mask: int) -> None:
        self.fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self.fd >= 0
        assert _libc.inotify_add_watch(self.fd, path.encode(), mask) > 0, os.strerror(ctypes.get_errno())

    def events(self) -> list[str]:
        """What happened since the last time: "EVENT name"."""
        found: list[str] = []
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return found
        while data:
            _wd, mask, _cookie, length = struct.unpack_from("iIII", data)
            name = data[16 : 16 + length].rstrip(b"\0").decode()
            data = data[16 + length :]
            if not mask & _IGNORED:
                found += [f"{event} {name}".strip() for bit, event in _EVENTS.items() if mask & bit]
        return found


@contextmanager
def watching(path: str, mask: int = _ALL & ~0x31) -> Iterator[Watch]:
    """A watch for all but reading, opening and closing without writing."""
    watch = Watch(path, mask)
    try:
        yield watch
    finally:
        os.close(watch.fd)


@check("f=hello")
def a_watched_file_is_changed() -> None:
    """inotify(7): IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE of a file, from its first change on, by any process."""
    with watching("f") as watch:
        elsewhere(write, "f", b"x", 0)
        same(watch.events(), ["MODIFY", "CLOSE_WRITE"])
        os.chmod("f", 0o600)
        same(watch.events(), ["ATTRIB"])
        os.truncate("f", 0)
        same(watch.events(), ["MODIFY"])
        os.setxattr("f", "user.x", b"1")
        os.utime("f", (1, 1))
        same(set(watch.events()), {"ATTRIB"})
        os.link("f", "g")
        os.unlink("g")
        same(set(watch.events()), {"ATTRIB"}, "the link count is an attribute")
        write("f", b"more", os.O_APPEND)
        same(watch.events(), ["MODIFY", "CLOSE_WRITE"])


@check("f=hello g=2")
def a_watched_file_moves_and_goes() -> None:
    """inotify(7): IN_MOVE_SELF; IN_ATTRIB for the link count; IN_DELETE_SELF when nothing holds it."""
    with watching("f") as watch:
        os.rename("f", "h")
        same(watch.events(), ["MOVE_SELF"])
        os.rename("g", "h")
        same(watch.events(), ["ATTRIB", "DELETE_SELF"], "replaced")
    with watching("h") as watch:
        with opened("h"):
            os.unlink("h")
            same(watch.events(), ["ATTRIB"])
        same(watch.events(), ["DELETE_SELF"])


@check("d/a=1 d/b=2 d/e/ out/")
def a_watched_directory() -> None:
    """inotify(7): a directory has an event with the name for each file made, moved, changed or removed in it."""
    with watching("d") as watch:
        write("d/new", b"x")
        same(watch.events(), ["CREATE new", "MODIFY new", "CLOSE_WRITE new"])
        write("d/a", b"x", 0)
        same(watch.events(), ["MODIFY a", "CLOSE_WRITE a"])
        os.chmod("d/b", 0o600)
        os.mkdir("d/sub")
        os.symlink("x", "d/l")
        os.mkfifo("d/p")
        os.link("d/a", "d/c")
        same(watch.events(), ["ATTRIB b", "CREATE sub", "CREATE l", "CREATE p", "CREATE c"])
        os.rename("d/b", "d/b2")
        os.rename("d/b2", "out/b")
        os.rename("out/b", "d/b")
        same(watch.events(), ["MOVED_FROM b", "MOVED_TO b2", "MOVED_FROM b2", "MOVED_TO b"])
        os.unlink("d/a")
        os.rmdir("d/e")
        same(watch.events(), ["DELETE a", "DELETE e"])
        os.chmod("d", 0o700)
        os.rename("d", "moved")
        write("moved/after", b"x")
        same(watch.events()[-3:], ["CREATE after", "MODIFY after", "CLOSE_WRITE after"])


@check("f=hello")
def reading_is_told() -> None:
    """inotify(7): IN_OPEN, IN_ACCESS and IN_CLOSE_NOWRITE by a reader, before and after the first change."""
    with watching("f", 0x31) as watch:
        for _ in range(2):
            same(read("f")[1:], b"ello")
            events = watch.events()
            same((events[0], events[-1]), ("OPEN", "CLOSE_NOWRITE"))
            assert "ACCESS" in events, events
            os.chmod("f", 0o600)
            write("f", b"H", 0)
            watch.events()

"""File handles: name_to_handle_at(2) and open_by_handle_at(2), as file servers and backups use them.

Dropping the caches (proc(5), drop_caches) makes the kernel forget the files, as time does.
"""

from __future__ import annotations

import errno
import os
import time

from tests.mounted.checking import (
    DEVICES,
    STRANGERS,
    UNION,
    check,
    elsewhere,
    fails,
    opened,
    read,
    read_fd,
    same,
    write,
)
from tests.mounted.libc import name_to_handle, open_by_handle
from tests.support import kernel_caches


def _forget() -> None:
    kernel_caches.drop("2")


def _content(handle: bytes) -> bytes:
    with opened(".") as here:
        fd = open_by_handle(here, handle, os.O_RDONLY)
    try:
        return read_fd(fd)
    finally:
        os.close(fd)


def _is_stale(handle: bytes) -> None:
    """At once, or with passthrough when the daemon has been told that the file was closed."""
    with opened(".") as here:
        for _ in range(200):
            try:
                os.close(open_by_handle(here, handle, os.O_RDONLY))
            except OSError:
                break
            time.sleep(0.02)
        fails(errno.ESTALE, open_by_handle, here, handle, os.O_RDONLY)


@check("d/e/f=hello d/l->e", DEVICES)
def handles_lead_to_their_files() -> None:
    """open_by_handle_at(2): opens what the handle was made of: files, directories and, by O_PATH, symbolic links."""
    handles = {name: name_to_handle(name) for name in ("d/e/f", "d/e", "d", "d/l")}
    numbers = {name: os.lstat(name).st_ino for name in handles}
    same(len(set(handles.values())), 4)
    for forget in (False, True, True):
        for name, handle in handles.items():
            if forget:
                _forget()
            with opened(".") as here:
                fd = open_by_handle(here, handle, os.O_PATH if name == "d/l" else os.O_RDONLY)
            same(os.fstat(fd).st_ino, numbers[name], name)
            os.close(fd)
    same(_content(handles["d/e/f"]), b"hello")
    with opened(".") as here:
        directory = open_by_handle(here, handles["d/e"], os.O_RDONLY)
    same(os.listdir(directory), ["f"])
    same(os.stat("..", dir_fd=directory).st_ino, numbers["d"])


@check("d/e/f=hello other/ g=2", DEVICES)
def handles_stay_with_their_files() -> None:
    """name_to_handle_at(2): the handle is the file's, whatever is written to it and whatever it is called."""
    handle, directory = name_to_handle("d/e/f"), name_to_handle("d/e")
    write("d/e/f", b" world", os.O_APPEND)
    _forget()
    same(_content(handle), b"hello world")
    for rename in (("d/e/f", "d/f"), ("d/f", "other/f"), ("other", "moved"), ("moved", "d/e/x")):
        os.rename(*rename)
        _forget()
        same(_content(handle), b"hello world", rename)
        with opened(".") as here:
            os.close(open_by_handle(here, directory, os.O_RDONLY | os.O_DIRECTORY))
    with opened(".") as here:
        fd = open_by_handle(here, handle, os.O_WRONLY)
    os.pwrite(fd, b"H", 0)
    os.close(fd)
    with opened("d/e/x/f") as fd:
        same(read_fd(fd), b"Hello world")


@check("f=1 g=2 d/", DEVICES)
def handles_of_what_is_gone() -> None:
    """open_by_handle_at(2): ESTALE once the file is removed or replaced, though something of its name may be there."""
    for name in ("f", "g", "d"):
        handle = name_to_handle(name)
        if name == "f":
            with opened(name):
                os.unlink(name)
                same(_content(handle), b"1", "still open")
        elif name == "g":
            write("new", b"3")
            os.rename("new", name)
        else:
            os.rmdir(name)
        _forget()
        _is_stale(handle)
        if name == "d":
            os.mkdir(name)
        else:
            write(name, b"another")
        _forget()
        _is_stale(handle)


@check("a=1 b==a d/c==a u/", DEVICES)
def handles_of_files_of_several_names() -> None:
    """open_by_handle_at(2): the handle is the file's, as long as it has a name, whichever the handle was made by."""
    write("u/a", b"1")
    os.link("u/a", "u/b")
    os.link("u/a", "d/c2")
    for names in (("a", "b", "d/c"), ("u/a", "u/b", "d/c2")):
        handle, number = name_to_handle(names[0]), os.stat(names[0]).st_ino
        for name in names[:2]:
            os.unlink(name)
            for _ in range(2):
                _forget()
                same(_content(handle), b"1", name)
        with opened(".") as here:
            fd = open_by_handle(here, handle, os.O_WRONLY)
        same((os.fstat(fd).st_ino, os.fstat(fd).st_nlink), (number, 1))
        os.write(fd, b"2")
        os.close(fd)
        same(read(names[2]), b"2", "written by the handle")
        _forget()
        same(read(names[2]), b"2")
        same(name_to_handle(names[2]), handle)
        os.unlink(names[2])
        _is_stale(handle)
        _forget()
        _is_stale(handle)


@check("f=1 g=2 d/", DEVICES, UNION)
def handles_of_an_earlier_mount() -> tuple[str, bytes]:
    """ARCHITECTURE.md: none but the root's survives; an old one never leads to another file."""
    for name in ("g", "d"):
        os.stat(name)
    return "f", name_to_handle("f")


@handles_of_an_earlier_mount.then
def _another_mount(before: tuple[str, bytes]) -> None:
    for name in ("g", "d", "f"):
        os.stat(name)
    _is_stale(before[1])
    write("new", b"x")
    _is_stale(before[1])
    _is_stale(before[1][:8] + (2).to_bytes(8, "little") + before[1][16:])


@check("f=1", DEVICES, STRANGERS)
def handles_are_for_the_privileged() -> None:
    """open_by_handle_at(2): EPERM without CAP_DAC_READ_SEARCH; ESTALE for a handle that is made up."""
    handle = name_to_handle("f")
    with opened(".") as here:
        fails(errno.EPERM, elsewhere, open_by_handle, here, handle, os.O_RDONLY, uid=1000)
        wrong = handle[:8] + bytes(byte ^ 0x5A for byte in handle[8:])
        fails((errno.ESTALE, errno.EINVAL), open_by_handle, here, wrong, os.O_RDONLY)

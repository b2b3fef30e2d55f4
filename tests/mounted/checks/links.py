"""Symbolic links, hard links, fifos, sockets and devices: symlink(7), link(2), mknod(2), fifo(7), unix(7)."""

from __future__ import annotations

import errno
import os
import socket
import stat

from tests.mounted.checking import (
    CHOWN,
    DEVICES,
    check,
    elsewhere,
    exists,
    fails,
    longest_target,
    names,
    opened,
    read,
    read_fd,
    same,
    write,
)


def _long_links() -> None:
    os.symlink("x" * longest_target(), "longest")
    os.symlink("y" * 255, "long")
    os.symlink(b"\xff\xfe/\x80", b"bytes")


@check("f=hello l->f d/g=1 ld->d up->../nowhere abs->/etc/hostname", prepare=_long_links)
def symbolic_links_are_read_and_followed() -> None:
    """readlink(2), symlink(7): the target is kept byte for byte and interpreted only when followed."""
    same(os.readlink("l"), "f")
    same(os.readlink("abs"), "/etc/hostname")
    longest = longest_target()
    same(os.readlink("longest"), "x" * longest)
    same(os.lstat("longest").st_size, longest)
    same(os.readlink("long"), "y" * 255)
    same(os.readlink(b"bytes"), b"\xff\xfe/\x80")
    same(os.lstat("l").st_size, 1)
    assert stat.S_ISLNK(os.lstat("l").st_mode)
    with opened("l") as fd:
        same(read_fd(fd), b"hello")
    with opened("ld/g") as fd:
        same(read_fd(fd), b"1")
    fails(errno.ENOENT, os.stat, "up")
    fails(errno.EINVAL, os.readlink, "f")
    fails(errno.EINVAL, os.readlink, "d")
    fails(errno.ENOENT, os.readlink, "nothing")


@check("f=hello d/")
def symbolic_links_are_made() -> None:
    """symlink(2): 1 to 4095 bytes (xfs: 1023), ENAMETOOLONG above, ENOENT if empty; EEXIST if the name is taken."""
    os.symlink("f", "l")
    longest = longest_target()
    os.symlink("t" * longest, "longest")
    same(os.readlink("longest"), "t" * longest)
    os.symlink("../x", "d/l")
    same(os.readlink("d/l"), "../x")
    fails(errno.ENAMETOOLONG, os.symlink, "t" * (longest + 1), "toolong")
    fails(errno.ENOENT, os.symlink, "", "empty")
    for name in ("f", "d", "l"):
        fails(errno.EEXIST, os.symlink, "x", name)
    fails(errno.ENOENT, os.symlink, "x", "nothing/l")
    write("f", b"changed")
    with opened("l") as fd:
        same(read_fd(fd), b"changed")


@check("loop->loop a->b b->a d/ self->./self/x")
def loops_of_symbolic_links() -> None:
    """path_resolution(7): ELOOP for a link that leads to itself and for more than 40 links."""
    fails(errno.ELOOP, os.stat, "loop")
    fails(errno.ELOOP, os.open, "a", os.O_RDONLY)
    fails(errno.ELOOP, os.open, "b", os.O_WRONLY | os.O_CREAT)
    fails(errno.ELOOP, os.stat, "self")
    os.symlink("d", "link0")
    for number in range(1, 41):
        os.symlink(f"link{number - 1}", f"link{number}")
    os.stat("link39")
    fails(errno.ELOOP, os.stat, "link40")
    fails(errno.ELOOP, os.setxattr, "loop", "user.x", b"1")
    os.unlink("loop")


@check("f=hello d/ e/g==f")
def hard_links() -> None:
    """link(2): a new name for the same file: same number, same content, one more link, ctime moved."""
    os.link("f", "d/h")
    same(os.stat("f").st_nlink, 3)
    for name in ("f", "d/h", "e/g"):
        same(os.stat(name).st_ino, os.stat("f").st_ino)
        same(os.stat(name).st_nlink, 3)
    write("d/h", b"changed")
    same(read("e/g"), b"changed")
    os.unlink("f")
    same(os.stat("d/h").st_nlink, 2)
    os.unlink("e/g")
    same(os.stat("d/h").st_nlink, 1)
    same(read("d/h"), b"changed")


@check("f=hello d/ l->f p|")
def link_refusals() -> None:
    """link(2): EEXIST if the new name is taken, EPERM for directories, ENOENT for nothing, ENOTDIR below a file."""
    fails(errno.EEXIST, os.link, "f", "l")
    fails(errno.EEXIST, os.link, "f", "d")
    fails(errno.EEXIST, os.link, "f", "f")
    fails(errno.EPERM, os.link, "d", "e")
    fails(errno.ENOENT, os.link, "nothing", "new")
    fails(errno.ENOENT, os.link, "f", "nothing/new")
    fails(errno.ENOTDIR, os.link, "f", "p/new")
    os.link("l", "m", follow_symlinks=False)
    same(os.readlink("m"), "f")
    same(os.lstat("m").st_nlink, 2)
    os.link("p", "q")
    same(os.stat("q").st_ino, os.stat("p").st_ino)


@check("f=hello")
def links_to_new_files() -> dict[str, int]:
    """link(2): works for files made a moment ago as for old ones, and is there after a remount."""
    write("new", b"new")
    os.link("new", "new2")
    os.link("f", "f2")
    os.unlink("f")
    same(os.stat("new").st_nlink, 2)
    same(os.stat("f2").st_nlink, 1)
    return {name: os.stat(name).st_ino for name in ("new", "f2")}


@links_to_new_files.then
def links_to_new_files_after_a_remount(numbers: dict[str, int]) -> None:
    same(os.stat("new2").st_ino, numbers["new"])
    same(os.stat("new2").st_nlink, 2)
    same(os.stat("f2").st_ino, numbers["f2"])
    same(os.stat("f2").st_nlink, 1)
    same(read("f2"), b"hello")


@check("f=hello")
def many_links() -> None:
    """link(2): a hundred names of one file, then one again."""
    for number in range(100):
        os.link("f", f"link{number}")
    same(os.stat("f").st_nlink, 101)
    same(len({os.stat(name).st_ino for name in names()}), 1)
    for number in range(100):
        os.unlink(f"link{number}")
    same(os.stat("f").st_nlink, 1)


@check("p| d/")
def fifos_carry_data() -> None:
    """fifo(7): a named pipe connects two processes, whether it was there before or is new; ENXIO without a reader."""
    os.mkfifo("d/new", 0o600)
    for name in ("p", "d/new"):
        assert stat.S_ISFIFO(os.stat(name).st_mode)
        fails(errno.ENXIO, os.open, name, os.O_WRONLY | os.O_NONBLOCK)
        pid = os.fork()
        if pid == 0:
            write(name, b"through " + name.encode(), 0)
            os._exit(0)
        with opened(name) as reader:
            same(read_fd(reader), b"through " + name.encode())
        same(os.waitpid(pid, 0)[1], 0)
        same(os.stat(name).st_size, 0)
    os.chmod("p", 0o640)
    os.rename("p", "q")
    same(stat.S_IMODE(os.stat("q").st_mode), 0o640)


@check()
def sockets_connect() -> None:
    """unix(7): bind makes a socket file, connect finds it; EADDRINUSE if taken, ECONNREFUSED when nobody listens."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        server.listen()
        assert stat.S_ISSOCK(os.lstat("s").st_mode)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("s")
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"hello")
                same(client.recv(10), b"hello")
        with socket.socket(socket.AF_UNIX) as second:
            fails(errno.EADDRINUSE, second.bind, "s")
        os.rename("s", "s2")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("s2")
    with socket.socket(socket.AF_UNIX) as client:
        fails(errno.ECONNREFUSED, client.connect, "s2")
        fails(errno.ENXIO, os.open, "s2", os.O_RDONLY)
    os.unlink("s2")


def _socket_file() -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")


@check(prepare=_socket_file)
def old_sockets_are_shown() -> None:
    """unix(7): a socket file without a process behind it refuses connections and can be changed and removed."""
    assert stat.S_ISSOCK(os.lstat("s").st_mode)
    os.chmod("s", 0o600)
    same(stat.S_IMODE(os.lstat("s").st_mode), 0o600)
    with socket.socket(socket.AF_UNIX) as client:
        fails(errno.ECONNREFUSED, client.connect, "s")
    os.unlink("s")
    assert not exists("s")


@check("f=hello")
def regular_files_by_mknod() -> None:
    """mknod(2): makes regular files too; EEXIST for a taken name."""
    os.mknod("n", stat.S_IFREG | 0o640)
    same(stat.S_IMODE(os.stat("n").st_mode), 0o640)
    same(read("n"), b"")
    fails(errno.EEXIST, os.mknod, "f", stat.S_IFREG | 0o640)


@check("f=hello")
def devices_need_privilege() -> None:
    """mknod(2): EPERM for devices without CAP_MKNOD in the first user namespace."""
    if os.getuid() == 0:
        return
    fails(errno.EPERM, os.mknod, "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    fails(errno.EPERM, os.mknod, "disk", stat.S_IFBLK | 0o600, os.makedev(7, 0))
    same(names(), ["f"])


def _null_device() -> None:
    os.mknod("old", stat.S_IFCHR | 0o666, os.makedev(1, 3))


@check("", DEVICES, prepare=_null_device)
def devices_keep_their_numbers() -> None:
    """mknod(2): type and numbers are kept, over rename and chmod too, up to large minor numbers."""
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod("block", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
    os.chmod("old", 0o600)
    os.rename("old", "older")
    same(os.stat("null").st_rdev, os.makedev(1, 3))
    same(os.stat("older").st_rdev, os.makedev(1, 3))
    assert stat.S_ISCHR(os.stat("older").st_mode)
    same(os.stat("block").st_rdev, os.makedev(259, 70_000))
    assert stat.S_ISBLK(os.stat("block").st_mode)


@check("l->x", CHOWN)
def symbolic_links_have_owners() -> None:
    """lchown(2), symlink(7): a link has an owner of its own."""
    os.lchown("l", 1000, 1001)
    same((os.lstat("l").st_uid, os.lstat("l").st_gid), (1000, 1001))
    same(os.readlink("l"), "x")


@check("d/:777", CHOWN)
def fifos_of_another_user() -> None:
    """mkfifo(3) by an unprivileged process, and removal by the same."""
    os.chmod("d", 0o777)
    os.chmod(".", 0o755)
    try:
        elsewhere(os.mkfifo, "d/p", uid=1000)
    except PermissionError:
        raise AssertionError("mkfifo was refused") from None
    same(os.stat("d/p").st_uid, 1000)
    elsewhere(os.unlink, "d/p", uid=1000)

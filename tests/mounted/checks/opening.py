"""open(2), read(2), write(2), close(2): what each open flag promises."""

from __future__ import annotations

import errno
import os
import stat

from tests.mounted.checking import check, elsewhere, exists, fails, names, opened, read, read_fd, same, write
from tests.mounted.libc import link_fd
from tests.mounted.trees import pattern


@check("f=hello d/g~300000")
def reads_what_is_there() -> None:
    """read(2): returns the bytes of the file, 0 at its end; pread(2) does not move the offset."""
    same(read("f"), b"hello")
    with opened("d/g") as fd:
        same(os.pread(fd, 10, 250_000), pattern("d/g", 300_000)[250_000:250_010])
        same(os.pread(fd, 10, 299_995), pattern("d/g", 300_000)[-5:], "a short read at the end")
        same(os.pread(fd, 10, 300_000), b"", "at the end")
        same(os.pread(fd, 10, 10**12), b"", "far behind the end")
        same(read_fd(fd), pattern("d/g", 300_000))


@check("d/")
def missing_names() -> None:
    """open(2): ENOENT for a missing name or parent, ENOTDIR below a file; the answer changes once the name exists."""
    for _ in range(2):
        fails(errno.ENOENT, os.open, "nothing", os.O_RDONLY)
        fails(errno.ENOENT, os.open, "nothing/below", os.O_RDONLY | os.O_CREAT)
        fails(errno.ENOENT, os.stat, "d/nothing")
    write("nothing", b"something")
    same(read("nothing"), b"something")
    fails(errno.ENOTDIR, os.open, "nothing/below", os.O_RDONLY)


@check("f=hello")
def overwriting_in_the_middle() -> None:
    """pwrite(2): changes the bytes it names and no others."""
    with opened("f", os.O_RDWR) as fd:
        same(os.pwrite(fd, b"EL", 1), 2)
        same(os.pread(fd, 100, 0), b"hELlo")
    same(read("f"), b"hELlo")
    same(os.stat("f").st_size, 5)


@check("f~200000")
def overwriting_the_middle_of_a_large_file() -> None:
    """pwrite(2): a small change leaves the rest of the file, also across pages."""
    want = bytearray(pattern("f", 200_000))
    want[100_000:100_010] = b"0123456789"
    with opened("f", os.O_WRONLY) as fd:
        os.pwrite(fd, b"0123456789", 100_000)
    same(read("f"), bytes(want))


@check("f=start.")
def o_append_by_two_writers() -> None:
    """open(2), O_APPEND: the offset is moved to the end before each write, so two writers lose nothing."""
    with opened("f", os.O_WRONLY | os.O_APPEND) as one, opened("f", os.O_WRONLY | os.O_APPEND) as two:
        for number in range(50):
            os.write(one, b"1%02d," % number)
            os.write(two, b"2%02d," % number)
    want = b"start." + b"".join(b"1%02d,2%02d," % (number, number) for number in range(50))
    same(read("f"), want)


@check("f")
def o_append_by_two_processes() -> None:
    """open(2), O_APPEND: holds between processes; every record arrives whole and in its writer's order."""

    def append(letter: bytes) -> None:
        with opened("f", os.O_WRONLY | os.O_APPEND) as fd:
            for number in range(200):
                os.write(fd, b"%s%03d;" % (letter, number))

    elsewhere(_both, append, (b"a", b"b"))
    records = read("f").split(b";")[:-1]
    same(len(records), 400)
    for letter in (b"a", b"b"):
        same([r for r in records if r.startswith(letter)], [b"%s%03d" % (letter, n) for n in range(200)])


def _both(function: object, args: tuple[bytes, ...]) -> None:
    assert callable(function)
    pids = []
    for arg in args:
        pid = os.fork()
        if pid == 0:
            try:
                function(arg)
            finally:
                os._exit(0)
        pids.append(pid)
    for pid in pids:
        same(os.waitpid(pid, 0)[1], 0, "exit status")


@check("f=hello")
def o_append_ignores_the_offset() -> None:
    """pwrite(2), BUGS: on Linux a pwrite to a descriptor with O_APPEND appends."""
    with opened("f", os.O_RDWR | os.O_APPEND) as fd:
        os.pwrite(fd, b"!", 0)
        same(os.pread(fd, 100, 0), b"hello!")


@check("f=hello g~100000")
def o_trunc_empties() -> None:
    """open(2), O_TRUNC: a regular file opened for writing has length 0 afterwards."""
    for name in ("f", "g"):
        with opened(name, os.O_WRONLY | os.O_TRUNC) as fd:
            same(os.fstat(fd).st_size, 0)
            os.write(fd, b"new")
        same(read(name), b"new")


@check("f=hello")
def o_trunc_seen_by_others() -> None:
    """open(2), O_TRUNC: a descriptor opened before sees the file empty."""
    with opened("f") as before:
        os.close(os.open("f", os.O_WRONLY | os.O_TRUNC))
        same(read_fd(before), b"")
        same(os.fstat(before).st_size, 0)


@check("f=hello d/ l->f dangling->nowhere")
def o_excl_refuses_what_exists() -> None:
    """open(2), O_CREAT|O_EXCL: EEXIST for whatever has the name, symbolic links included, dangling ones too."""
    for name in ("f", "d", "l", "dangling"):
        fails(errno.EEXIST, os.open, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    same(read("f"), b"hello")
    assert not exists("nowhere")
    os.close(os.open("new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640))
    same(stat.S_IMODE(os.stat("new").st_mode), 0o640)
    fails(errno.EEXIST, os.open, "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL)


@check()
def o_excl_by_eight_processes() -> None:
    """open(2), O_EXCL: of many who create a name exactly one succeeds."""

    def create() -> bool:
        try:
            os.close(os.open("lock", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    won = 0
    for _ in range(20):
        pids = []
        for _ in range(8):
            pid = os.fork()
            if pid == 0:
                os._exit(0 if create() else 1)
            pids.append(pid)
        won += [os.waitpid(pid, 0)[1] for pid in pids].count(0)
        os.unlink("lock")
    same(won, 20)


@check("dangling->made")
def o_creat_through_a_dangling_link() -> None:
    """open(2), O_CREAT: a dangling symbolic link is followed, and its target is made."""
    os.close(os.open("dangling", os.O_WRONLY | os.O_CREAT))
    same(names(), ["dangling", "made"])


@check("f~100000")
def o_direct_reads_and_writes() -> None:
    """open(2), O_DIRECT: either EINVAL at open, or aligned transfers that agree with the page cache."""
    import mmap

    try:
        fd = os.open("f", os.O_RDWR | os.O_DIRECT)
    except OSError as failure:
        same(failure.errno, errno.EINVAL)
        return
    page = mmap.mmap(-1, 4096)
    same(os.preadv(fd, [page], 4096), 4096)
    same(page[:], pattern("f", 100_000)[4096:8192])
    page[:] = b"D" * 4096
    same(os.pwritev(fd, [page], 8192), 4096)
    with opened("f") as buffered:
        same(os.pread(buffered, 4096, 8192), b"D" * 4096, "seen through the page cache")
    with opened("f", os.O_WRONLY) as buffered:
        os.pwrite(buffered, b"B" * 4096, 4096)
        same(os.preadv(fd, [page], 4096), 4096)
        same(page[:], b"B" * 4096, "a buffered write seen by a direct read")
    os.close(fd)


@check("f=hello l->f d/ ld->d")
def o_nofollow_refuses_links() -> None:
    """open(2), O_NOFOLLOW: ELOOP if the last component is a symbolic link; with O_PATH the link itself is opened."""
    fails(errno.ELOOP, os.open, "l", os.O_RDONLY | os.O_NOFOLLOW)
    fails(errno.ELOOP, os.open, "ld", os.O_RDONLY | os.O_NOFOLLOW)
    fails((errno.ENOTDIR, errno.ELOOP), os.open, "ld", os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    with opened("l", os.O_PATH | os.O_NOFOLLOW) as fd:
        assert stat.S_ISLNK(os.fstat(fd).st_mode)
        same(os.readlink("", dir_fd=fd), "f", "readlinkat of an empty path")
    same(read("f"), b"hello")


@check("f=hello d/ l->d p|")
def o_directory_wants_one() -> None:
    """open(2), O_DIRECTORY: ENOTDIR for anything but a directory."""
    for name in ("f", "p"):
        fails(errno.ENOTDIR, os.open, name, os.O_RDONLY | os.O_DIRECTORY)
    for name in ("d", "l"):
        os.close(os.open(name, os.O_RDONLY | os.O_DIRECTORY))


@check("d/")
def directories_are_not_written() -> None:
    """open(2): EISDIR when a directory is opened for writing or O_CREAT names one; read(2): EISDIR."""
    fails(errno.EISDIR, os.open, "d", os.O_WRONLY)
    fails(errno.EISDIR, os.open, "d", os.O_RDWR)
    fails(errno.EISDIR, os.open, "d", os.O_RDONLY | os.O_CREAT)
    with opened("d") as fd:
        fails(errno.EISDIR, os.read, fd, 1)


@check("f=hello")
def descriptors_do_one_thing() -> None:
    """read(2), write(2): EBADF on a descriptor not open for it."""
    with opened("f", os.O_WRONLY) as fd:
        fails(errno.EBADF, os.read, fd, 1)
    with opened("f", os.O_RDONLY) as fd:
        fails(errno.EBADF, os.write, fd, b"x")
        fails((errno.EBADF, errno.EINVAL), os.ftruncate, fd, 0)


@check("d/")
def o_tmpfile_has_no_name() -> None:
    """open(2), O_TMPFILE: an unnamed file in the directory's filesystem, link count 0, gone when closed."""
    with opened("d", os.O_RDWR | os.O_TMPFILE, 0o600) as fd:
        os.write(fd, b"nameless")
        same(os.pread(fd, 100, 0), b"nameless")
        same(os.fstat(fd).st_nlink, 0)
        same(stat.S_IMODE(os.fstat(fd).st_mode), 0o600)
        same(names("d"), [])
    same(names("d"), [])


@check("d/")
def o_tmpfile_gets_a_name() -> None:
    """open(2), O_TMPFILE: linkat(2) of its /proc/self/fd link gives it a name, unless it was opened O_EXCL."""
    with opened("d", os.O_WRONLY | os.O_TMPFILE, 0o640) as fd:
        os.write(fd, b"named later")
        link_fd(fd, "d/f")
        same(os.fstat(fd).st_nlink, 1)
    same(read("d/f"), b"named later")
    same(stat.S_IMODE(os.stat("d/f").st_mode), 0o640)
    with opened("d", os.O_WRONLY | os.O_TMPFILE | os.O_EXCL) as fd:
        fails(errno.ENOENT, link_fd, fd, "d/g")


@check("f=hello")
def o_path_is_not_open() -> None:
    """open(2), O_PATH: fstat works, reading does not, and reopening through /proc/self/fd does."""
    with opened("f", os.O_PATH) as fd:
        same(os.fstat(fd).st_size, 5)
        fails(errno.EBADF, os.read, fd, 1)
        same(read_fd(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)), b"hello")
        with opened(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND) as writer:
            os.write(writer, b"!")
    same(read("f"), b"hello!")


@check()
def creates_with_umask() -> None:
    """umask(2): the mode of a new object is mode & ~umask, for files, directories and fifos."""
    for mask in (0o022, 0o077, 0o002, 0):
        os.umask(mask)
        os.close(os.open(f"f{mask}", os.O_WRONLY | os.O_CREAT, 0o666))
        os.mkdir(f"d{mask}", 0o777)
        os.mkfifo(f"p{mask}", 0o666)
        same(stat.S_IMODE(os.stat(f"f{mask}").st_mode), 0o666 & ~mask)
        same(stat.S_IMODE(os.stat(f"d{mask}").st_mode), 0o777 & ~mask)
        same(stat.S_IMODE(os.stat(f"p{mask}").st_mode), 0o666 & ~mask)


@check()
def a_read_only_mode_does_not_bind_its_creator() -> None:
    """open(2), mode: applies to future accesses; the creating open returns a writable descriptor even for mode 0."""
    with opened("f", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0) as fd:
        os.write(fd, b"written")
        same(os.pread(fd, 100, 0), b"written")
        same(stat.S_IMODE(os.fstat(fd).st_mode), 0)
    same(os.stat("f").st_size, 7)


@check("f~1500000")
def large_transfers() -> None:
    """read(2), write(2): transfers larger than any request of the transport arrive whole."""
    with opened("f") as fd:
        same(os.read(fd, 2_000_000), pattern("f", 1_500_000))
    data = pattern("new", 3_000_001)
    with opened("g", os.O_RDWR | os.O_CREAT) as fd:
        same(os.write(fd, data), len(data))
        same(os.pread(fd, len(data) + 1, 0), data)


@check("f=hello")
def vectors() -> None:
    """readv(2), writev(2): gather and scatter in order."""
    with opened("f", os.O_RDWR) as fd:
        same(os.writev(fd, [b"ab", b"", b"cde", b"fgh"]), 8)
        parts = [bytearray(3), bytearray(4), bytearray(9)]
        same(os.preadv(fd, parts, 0), 8)
        same(bytes(b"".join(parts))[:8], b"abcdefgh")


@check("f=hello")
def synced_opens() -> None:
    """open(2), O_SYNC and O_DSYNC; fsync(2), fdatasync(2) of files and fsync of directories succeed."""
    with opened("f", os.O_WRONLY | os.O_SYNC) as fd:
        os.write(fd, b"H")
    with opened("f", os.O_WRONLY | os.O_DSYNC) as fd:
        os.pwrite(fd, b"E", 1)
        os.fsync(fd)
        os.fdatasync(fd)
    with opened(".") as fd:
        os.fsync(fd)
    with opened("f") as fd:
        os.fsync(fd)
    same(read("f"), b"HEllo")


@check("f=hello")
def a_tty_is_asked_for() -> None:
    """isatty(3): a regular file answers ENOTTY, as every buffered open asks."""
    with opened("f") as fd:
        assert not os.isatty(fd)
    with open("f", encoding="ascii") as text:
        same(text.read(), "hello")

"""chmod(2), chown(2), utimensat(2), the set-id bits, and what new objects inherit (inode(7))."""

from __future__ import annotations

import errno
import os
import stat
import time

from tests.mounted.checking import CHOWN, STRANGERS, check, clock_moves, elsewhere, fails, opened, read, same, write
from tests.mounted.libc import AT_SYMLINK_NOFOLLOW, UTIME_NOW, UTIME_OMIT, utimensat
from tests.mounted.trees import STAMP, is_real_root


def _mode(name: str) -> int:
    return stat.S_IMODE(os.lstat(name).st_mode)


@check("f=hello d/ p| g=hello")
def chmod_changes_the_mode() -> None:
    """chmod(2): the twelve mode bits are set as given, ctime changes, mtime does not."""
    for name in ("f", "d", "p"):
        before = os.stat(name)
        clock_moves()
        for mode in (0o1, 0o600, 0o755, 0o1777, 0o2711, 0o4700, 0o644):
            os.chmod(name, mode)
            same(_mode(name), mode, name)
        same(os.stat(name).st_mtime_ns, before.st_mtime_ns)
        assert os.stat(name).st_ctime_ns > before.st_ctime_ns, name
    with opened("g") as fd:
        os.fchmod(fd, 0o640)
        same(stat.S_IMODE(os.fstat(fd).st_mode), 0o640)
    same(_mode("g"), 0o640)
    fails(errno.ENOENT, os.chmod, "nothing", 0o600)


@check("f:600=hello l->f")
def chmod_follows_links() -> None:
    """chmod(2): follows symbolic links, whose own mode is 0777 for ever (symlink(7))."""
    os.chmod("l", 0o640)
    same(_mode("f"), 0o640)
    same(_mode("l"), 0o777)


@check("f=hello d/ l->f", CHOWN)
def chown_changes_the_owner() -> None:
    """chown(2): -1 leaves an id; lchown does not follow links; ctime changes."""
    for name in ("f", "d"):
        before = os.stat(name).st_ctime_ns
        clock_moves()
        os.chown(name, 1000, -1)
        same((os.stat(name).st_uid, os.stat(name).st_gid), (1000, 0))
        os.chown(name, -1, 2000)
        same((os.stat(name).st_uid, os.stat(name).st_gid), (1000, 2000))
        assert os.stat(name).st_ctime_ns > before
    os.lchown("l", 3000, 4000)
    same((os.lstat("l").st_uid, os.lstat("l").st_gid), (3000, 4000))
    same(os.stat("l").st_uid, 1000)
    with opened("f") as fd:
        os.fchown(fd, 5, 6)
        same((os.fstat(fd).st_uid, os.fstat(fd).st_gid), (5, 6))


@check("f=hello")
def chown_to_oneself() -> None:
    """chown(2): the owner may set what is already so, and may not give the file away."""
    os.chown("f", os.getuid(), os.getgid())
    os.chown("f", -1, -1)
    same(os.stat("f").st_uid, os.getuid())
    if os.getuid() != 0:
        fails(errno.EPERM, os.chown, "f", 0, -1)
        fails(errno.EPERM, os.chown, "f", -1, 0)


@check("f=hello d/ l->f p|")
def utimensat_to_the_nanosecond() -> None:
    """utimensat(2): times are kept to the nanosecond, for every kind of file and for links themselves."""
    for name in ("f", "d", "l", "p"):
        os.utime(name, ns=(1_234_567_890_123_456_789, 1_987_654_321_987_654_321), follow_symlinks=False)
        status = os.lstat(name)
        same((status.st_atime_ns, status.st_mtime_ns), (1_234_567_890_123_456_789, 1_987_654_321_987_654_321), name)
    same(os.stat("f").st_mtime_ns, 1_987_654_321_987_654_321)


@check("f=hello g=hello h=hello")
def utimensat_now_and_omit() -> None:
    """utimensat(2): UTIME_NOW is the current time, UTIME_OMIT leaves a time; both omitted changes nothing."""
    start = time.time_ns() - 10**9
    utimensat("f", (0, UTIME_OMIT), (77, 88))
    same(os.stat("f").st_mtime_ns, 77_000_000_088)
    same(os.stat("f").st_atime_ns, STAMP)
    utimensat("f", (55, 66), (0, UTIME_OMIT))
    same((os.stat("f").st_atime_ns, os.stat("f").st_mtime_ns), (55_000_000_066, 77_000_000_088))
    utimensat("g", (0, UTIME_OMIT), (0, UTIME_NOW))
    same(os.stat("g").st_atime_ns, STAMP)
    assert start <= os.stat("g").st_mtime_ns <= time.time_ns()
    utimensat("g", (0, UTIME_NOW), (1, 2))
    assert start <= os.stat("g").st_atime_ns <= time.time_ns()
    same(os.stat("g").st_mtime_ns, 1_000_000_002)
    before = os.stat("h")
    utimensat("h", (0, UTIME_OMIT), (0, UTIME_OMIT))
    same((os.stat("h").st_mtime_ns, os.stat("h").st_atime_ns), (before.st_mtime_ns, before.st_atime_ns))
    fails(errno.EINVAL, utimensat, "h", (0, 10**9), (0, 0))


@check("f=hello d/ l->f")
def times_before_1970() -> None:
    """utimensat(2): time_t is signed; times before the epoch are kept with their nanoseconds."""
    for name in ("f", "d"):
        utimensat(name, (-1, 500_000_000), (-86_400 * 365, 1))
        status = os.stat(name)
        same(status.st_atime_ns, -500_000_000, name)
        same(status.st_mtime_ns, -86_400 * 365 * 10**9 + 1, name)
    utimensat("l", (-5, 5), (-7, 7), AT_SYMLINK_NOFOLLOW)
    same(os.lstat("l").st_mtime_ns, -7 * 10**9 + 7)


@check("f=hello")
def times_after_2038() -> None:
    """utimensat(2): times behind the end of a 32-bit time_t are kept."""
    utimensat("f", (1 << 31, 1), (1 << 33, 2))
    same(os.stat("f").st_atime_ns, (1 << 31) * 10**9 + 1)
    same(os.stat("f").st_mtime_ns, (1 << 33) * 10**9 + 2)


@check("d/ f=hello", STRANGERS, CHOWN)
def times_by_others() -> None:
    """utimensat(2): setting times needs the owner (EPERM); setting both to now needs write permission only (EACCES)."""
    os.chmod("f", 0o666)
    elsewhere(os.utime, "f", uid=1000)
    fails(errno.EPERM, elsewhere, utimensat, "f", (1, 1), (1, 1), uid=1000)
    os.chmod("f", 0o644)
    fails(errno.EACCES, elsewhere, os.utime, "f", uid=1000)


def _set_id_file(name: str, mode: int = 0o6777) -> None:
    write(name, b"content")
    os.chown(name, 1000, 1000)
    os.chmod(name, mode)


@check("d/", CHOWN, STRANGERS)
def set_id_bits_fall_on_write() -> None:
    """inode(7), chown(2): an unprivileged write or truncate clears set-user-ID, and set-group-ID if executable."""
    os.chmod(".", 0o777)
    changes = {
        "write": lambda name: write(name, b"x", 0),
        "append": lambda name: write(name, b"x", os.O_APPEND),
        "truncate": lambda name: os.truncate(name, 2),
        "extend": lambda name: os.truncate(name, 200),
        "o_trunc": lambda name: os.close(os.open(name, os.O_WRONLY | os.O_TRUNC)),
    }
    for name, change in changes.items():
        _set_id_file(name)
        elsewhere(change, name, uid=2000)
        same(_mode(name), 0o777, name)
        _set_id_file(name, 0o6767)
        elsewhere(change, name, uid=2000)
        same(_mode(name) & 0o4777, 0o767, f"{name}, not executable by the group")


def _set_id_below() -> None:
    with open("f", "wb") as file:
        file.write(b"content")
    os.chmod("f", 0o6777)


@check("", CHOWN, STRANGERS, prepare=_set_id_below)
def set_id_bits_fall_on_the_first_write() -> None:
    """As above when the write is the first change of the file ever made."""
    elsewhere(write, "f", b"x", 0, uid=2000)
    same(_mode("f"), 0o777)
    same(read("f"), b"xontent")


@check("d/", CHOWN)
def set_id_bits_fall_on_chown() -> None:
    """chown(2): clears set-user-ID and, if the group may execute, set-group-ID of a file; directories keep them."""
    _set_id_file("f")
    elsewhere(os.chown, "f", 1000, 1000, uid=1000)
    same(_mode("f"), 0o777)
    _set_id_file("g")
    os.chown("g", 1001, 1001)
    same(_mode("g"), 0o777, "Linux clears them for root too")
    os.chmod("d", 0o6777)
    os.chown("d", 1001, 1001)
    same(_mode("d"), 0o6777)


@check("f=hello")
def set_id_bits_fall_on_own_write() -> None:
    """inode(7): an unprivileged owner's own write clears them too; real root's (CAP_FSETID) does not."""
    os.chmod("f", 0o6755)
    write("f", b"x", 0)
    same(_mode("f"), 0o6755 if is_real_root() else 0o755)


@check("d/:2775", CHOWN)
def set_group_id_directories_inherit() -> None:
    """inode(7): below a set-group-ID directory new objects get its group, and new directories the bit."""
    os.chown("d", 1000, 4321)
    os.chmod("d", 0o2775)
    write("d/f", b"x")
    os.mkdir("d/e")
    os.symlink("x", "d/l")
    os.mkfifo("d/p")
    os.mknod("d/n", stat.S_IFREG | 0o644)
    for name in ("f", "e", "l", "p", "n"):
        same(os.lstat(f"d/{name}").st_gid, 4321, name)
    assert _mode("d/e") & stat.S_ISGID
    assert not _mode("d/f") & stat.S_ISGID
    os.mkdir("d/e/g")
    same(os.lstat("d/e/g").st_gid, 4321)


@check("d/:2775")
def set_group_id_directories_pass_the_bit_on() -> None:
    """mkdir(2): a directory made in a set-group-ID directory is one itself."""
    os.mkdir("d/e", 0o700)
    same(_mode("d/e"), 0o2700)
    os.mkdir("d/e/f", 0o700)
    same(_mode("d/e/f"), 0o2700)


@check("d/:777", CHOWN, STRANGERS)
def new_objects_belong_to_their_maker() -> None:
    """open(2), mkdir(2) ...: the owner is the caller's filesystem uid, the group its gid."""
    os.chmod("d", 0o777)

    def make() -> None:
        write("d/f", b"x")
        os.mkdir("d/e")
        os.symlink("x", "d/l")
        os.mkfifo("d/p")

    elsewhere(make, uid=1234)
    for name in ("f", "e", "l", "p"):
        status = os.lstat(f"d/{name}")
        same((status.st_uid, status.st_gid), (1234, 1234), name)


@check("d/:1777", CHOWN, STRANGERS)
def sticky_directories() -> None:
    """unlink(2), rename(2): in a sticky directory only the owner of the file or of the directory removes it (EPERM)."""
    os.chmod("d", 0o1777)
    elsewhere(write, "d/f", b"x", uid=1000)
    elsewhere(os.mkdir, "d/e", uid=1000)
    fails((errno.EPERM, errno.EACCES), elsewhere, os.unlink, "d/f", uid=2000)
    fails((errno.EPERM, errno.EACCES), elsewhere, os.rmdir, "d/e", uid=2000)
    fails((errno.EPERM, errno.EACCES), elsewhere, os.rename, "d/f", "d/g", uid=2000)
    elsewhere(os.rename, "d/f", "d/g", uid=1000)
    elsewhere(os.unlink, "d/g", uid=1000)
    os.rmdir("d/e")


@check("f~10000 d/")
def stat_tells_sizes() -> None:
    """stat(2): st_size is exact, st_blocks counts 512-byte units, st_blksize is positive, one st_dev for all."""
    status = os.stat("f")
    same(status.st_size, 10_000)
    assert 0 < status.st_blocks * 512 <= 65_536, status.st_blocks
    assert status.st_blksize > 0
    write("g", b"x" * 123)
    os.symlink("f" * 40, "l")
    same(os.lstat("l").st_size, 40)
    same({os.lstat(name).st_dev for name in ("f", "d", "g", "l", ".")}, {status.st_dev})


@check("d/a/ d/b/ d/f")
def directories_count_links_or_do_not() -> None:
    """stat(2), find(1) -noleaf: st_nlink of a directory is 2 + its subdirectories, or 1 where nobody counts."""
    for extra in range(3):
        count = os.stat("d").st_nlink
        assert count in (1, 4 + extra), count
        os.mkdir(f"d/new{extra}")


@check("f=hello d/")
def statvfs_and_access() -> None:
    """statvfs(3): names of 255 bytes, sizes that make sense; access(2) agrees with the mode."""
    stats = os.statvfs("f")
    same(stats.f_namemax, 255)
    assert stats.f_bsize > 0
    assert stats.f_frsize > 0
    assert 0 < stats.f_bfree <= stats.f_blocks
    assert os.access("f", os.R_OK | os.W_OK)
    assert not os.access("f", os.X_OK)
    assert os.access("d", os.R_OK | os.W_OK | os.X_OK)
    fails(errno.ENOENT, os.stat, "nothing")


@check("f=hello")
def ctime_cannot_be_set() -> None:
    """utimensat(2): ctime becomes the current time whatever times are set."""
    start = time.time_ns() - 10**9
    os.utime("f", ns=(1, 1))
    assert start <= os.stat("f").st_ctime_ns <= time.time_ns() + 10**9

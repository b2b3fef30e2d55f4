"""The numbers and layouts of <linux/fuse.h>, protocol 7.45; pure.

Names are the header's without FUSE_, layouts are `struct.Struct` objects named as the header's structs in capitals, in
host byte order (both ends run on one machine) with the header's explicit padding. Contains no logic.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final

VERSION: Final = 7
MINOR: Final = 45
"""The newest protocol this file describes."""

MIN_MINOR: Final = 31
"""The oldest protocol served (Linux 5.4): opens and opendirs without messages need 7.29, explicit invalidation 7.30."""

EPOCHS_SINCE: Final = 44
"""NOTIFY_INC_EPOCH exists from this minor version on (Linux 6.16)."""

ROOT_ID: Final = 1
MIN_READ_BUFFER: Final = 8192
NAME_MAX: Final = 255
"""limits.h. Linux 6.18 sends names of up to 1023 bytes to the daemon; the branches' files cannot have them."""

UNIQUE_RESEND: Final = 1 << 63
"""Set in the `unique` of a request that is sent again after FUSE_NOTIFY_RESEND."""


class Op(IntEnum):
    """enum fuse_opcode."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53
    CUSE_INIT = 4096


class Init(IntFlag):
    """The capability bits of INIT; bits 32 and above travel in flags2 when INIT_EXT is set."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    FILE_OPS = 1 << 2
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    FLOCK_LOCKS = 1 << 10
    HAS_IOCTL_DIR = 1 << 11
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    MAP_ALIGNMENT = 1 << 26
    SUBMOUNTS = 1 << 27
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    INIT_RESERVED = 1 << 31
    SECURITY_CTX = 1 << 32
    HAS_INODE_DAX = 1 << 33
    CREATE_SUPP_GROUP = 1 << 34
    HAS_EXPIRE_ONLY = 1 << 35
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    NO_EXPORT_SUPPORT = 1 << 38
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40
    OVER_IO_URING = 1 << 41
    REQUEST_TIMEOUT = 1 << 42


class Notify(IntEnum):
    """enum fuse_notify_code: notification codes, in the `error` field of a reply whose unique is 0."""

    POLL = 1
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    RETRIEVE = 5
    DELETE = 6
    RESEND = 7
    INC_EPOCH = 8
    PRUNE = 9


# fuse_setattr_in.valid
FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_LOCKOWNER: Final = 1 << 9
FATTR_CTIME: Final = 1 << 10
FATTR_KILL_SUIDGID: Final = 1 << 11

WRITE_CACHE: Final = 1 << 0
WRITE_LOCKOWNER: Final = 1 << 1
WRITE_KILL_SUIDGID: Final = 1 << 2

OPEN_KILL_SUIDGID: Final = 1 << 0

FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_CACHE_DIR: Final = 1 << 3
"""The kernel sets these two by itself when opens send no message."""
FOPEN_PASSTHROUGH: Final = 1 << 7

FSYNC_FDATASYNC: Final = 1 << 0

SETXATTR_ACL_KILL_SGID: Final = 1 << 0

# Layouts. `=`: host order, no padding but the header's own.
IN_HEADER: Final[Struct] = Struct("=IIQQIIIHH")  # len opcode unique nodeid uid gid pid total_extlen padding
OUT_HEADER: Final[Struct] = Struct("=IiQ")  # len error unique

_ATTR = "QQQqqqIIIIIIIIII"  # ino size blocks atime mtime ctime their nsecs mode nlink uid gid rdev blksize flags
_ENTRY = "QQQQII"  # nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec
ATTR: Final[Struct] = Struct("=" + _ATTR)
ENTRY_OUT: Final[Struct] = Struct("=" + _ENTRY + _ATTR)
ATTR_OUT: Final[Struct] = Struct("=QII" + _ATTR)  # attr_valid attr_valid_nsec dummy attr
DIRENT: Final[Struct] = Struct("=QQII")  # ino off namelen type, then the name
DIRENTPLUS: Final[Struct] = Struct("=" + _ENTRY + _ATTR + "QQII")
DIRENT_NAMED: Final = tuple(Struct(f"=QQII{words * 8}s") for words in range(33))
"""DIRENT with a name of up to so many 8-byte words behind it, zeros filling the rest, as FUSE_DIRENT_ALIGN asks."""
_Q, _q = ("L", "l") if Struct("L").size == 8 else ("Q", "q")  # CPython converts a long faster than a long long
_FILLED = f"3{_Q}3{_q}9I4x"  # _ATTR without its flags, which are always 0
DIRENTPLUS_NAMED: Final = tuple(Struct(f"{_Q}32s{_FILLED}2{_Q}2I{words * 8}s") for words in range(33))
"""DIRENTPLUS with its name, likewise. Here and in the two below, parts that are constant in every reply are one value,
which packs faster: _ENTRY without the node id (32s), and the length and error of OUT_HEADER (8s)."""

ENTRY_REPLY: Final[Struct] = Struct(f"8s2{_Q}32s" + _FILLED)
ATTR_REPLY: Final[Struct] = Struct(f"8s{_Q}16s" + _FILLED)
WRITE_REPLY: Final[Struct] = Struct("=IiQII")
"""The busiest replies with their OUT_HEADER, so that each is packed in one call."""

FORGET_IN: Final[Struct] = Struct("=Q")  # nlookup
FORGET_ONE: Final[Struct] = Struct("=QQ")  # nodeid nlookup
BATCH_FORGET_IN: Final[Struct] = Struct("=II")  # count dummy
GETATTR_IN: Final[Struct] = Struct("=IIQ")  # getattr_flags dummy fh
SETATTR_IN: Final[Struct] = Struct("=IIQQQqqqIIIIIIII")
# valid padding fh size lock_owner atime mtime ctime atimensec mtimensec ctimensec mode unused4 uid gid unused5
MKNOD_IN: Final[Struct] = Struct("=IIII")  # mode rdev umask padding
MKDIR_IN: Final[Struct] = Struct("=II")  # mode umask
RENAME_IN: Final[Struct] = Struct("=Q")  # newdir
RENAME2_IN: Final = Struct("=QII")  # newdir flags padding
LINK_IN: Final[Struct] = Struct("=Q")  # oldnodeid
OPEN_IN: Final[Struct] = Struct("=II")  # flags open_flags
CREATE_IN: Final[Struct] = Struct("=IIII")  # flags mode umask open_flags
OPEN_OUT: Final[Struct] = Struct("=QIi")  # fh open_flags backing_id
RELEASE_IN: Final[Struct] = Struct("=QIIQ")  # fh flags release_flags lock_owner
READ_IN: Final[Struct] = Struct("=QQIIQII")  # fh offset size read_flags lock_owner flags padding
WRITE_IN: Final[Struct] = Struct("=QQIIQII")  # fh offset size write_flags lock_owner flags padding
WRITE_OUT: Final[Struct] = Struct("=II")  # size padding
# blocks bfree bavail files ffree bsize namelen frsize padding spare[6]
STATFS_OUT: Final[Struct] = Struct("=QQQQQIIII24x")
FSYNC_IN: Final[Struct] = Struct("=QII")  # fh fsync_flags padding
SETXATTR_IN: Final[Struct] = Struct("=IIII")  # size flags setxattr_flags padding
SETXATTR_IN_COMPAT: Final[Struct] = Struct("=II")  # size flags; sent without SETXATTR_EXT
GETXATTR_IN: Final[Struct] = Struct("=II")  # size padding
GETXATTR_OUT: Final[Struct] = Struct("=II")  # size padding
ACCESS_IN: Final[Struct] = Struct("=II")  # mask padding
INIT_IN: Final[Struct] = Struct("=IIIII44x")  # major minor max_readahead flags flags2 unused[11]
INIT_IN_COMPAT: Final[Struct] = Struct("=IIII")  # major minor max_readahead flags; before 7.36
INIT_OUT: Final[Struct] = Struct("=IIIIHHIIHHIIH22x")
# major minor max_readahead flags max_background congestion_threshold max_write time_gran max_pages map_alignment
# flags2 max_stack_depth request_timeout unused[11]
INTERRUPT_IN: Final[Struct] = Struct("=Q")  # unique
IOCTL_IN: Final[Struct] = Struct("=QIIQII")  # fh flags cmd arg in_size out_size
IOCTL_OUT: Final[Struct] = Struct("=iIII")  # result flags in_iovs out_iovs
FALLOCATE_IN: Final[Struct] = Struct("=QQQII")  # fh offset length mode padding
LSEEK_IN: Final[Struct] = Struct("=QqII")  # fh offset whence padding
LSEEK_OUT: Final[Struct] = Struct("=Q")  # offset
COPY_FILE_RANGE_IN: Final[Struct] = Struct("=QQQQQQQ")  # fh_in off_in nodeid_out fh_out off_out len flags
COPY_FILE_RANGE_OUT: Final[Struct] = Struct("=Q")  # bytes_copied; answers COPY_FILE_RANGE_64
SYNCFS_IN: Final[Struct] = Struct("=Q")  # padding
STATX_IN: Final[Struct] = Struct("=IIQII")  # getattr_flags reserved fh sx_flags sx_mask
STATX_OUT: Final[Struct] = Struct("=QII16xIIQIIIHHQQQQqIiqIiqIiqIiIIII112x")
# attr_valid attr_valid_nsec flags spare[2], then struct fuse_statx: mask blksize attributes nlink uid gid mode spare0
# ino size blocks attributes_mask, {tv_sec tv_nsec reserved} of atime btime ctime mtime, rdev and dev (major, minor),
# spare2[14]

DEV_IOC_BACKING_OPEN: Final = 0x4010E501
DEV_IOC_BACKING_CLOSE: Final = 0x4004E502
BACKING_MAP: Final[Struct] = Struct("=iIQ")  # fd flags padding
BACKING_ID: Final[Struct] = Struct("=I")
"""ioctl(2) on the device: a file that the kernel may read and write by itself, known by a number of the connection."""

NOTIFY_INVAL_INODE_OUT: Final[Struct] = Struct("=Qqq")  # ino off len
NOTIFY_INVAL_ENTRY_OUT: Final[Struct] = Struct("=QII")  # parent namelen flags
NOTIFY_DELETE_OUT: Final[Struct] = Struct("=QQII")  # parent child namelen padding

STATX_BASIC_STATS: Final = 0x7FF
"""<linux/stat.h>: the stat(2) attributes."""
STATX_BTIME: Final = 0x800


def rec_align(size: int) -> int:
    """Return the next multiple of eight (FUSE_REC_ALIGN)."""
    return (size + 7) & ~7

"""The values of the core's interface: attributes, entries, changes. No transport's types.

Times are nanoseconds since the epoch, negative before 1970; sizes are bytes; `blocks` counts 512-byte units (stat(2)).
"""

from __future__ import annotations

from typing import Final, NamedTuple

ROOT: Final = 1
"""Node id of the union's root directory, as FUSE_ROOT_ID in <linux/fuse.h>. Never forgotten."""

VIEW: Final = 1 << 60
"""The bit of the node ids of a view (core.view). A union's own ids count from 1 and do not reach it."""

VIEW_MARK: Final = 1 << 55
"""The bit of inode numbers that is flipped in a view: filesystems do not count that far."""

NOW: Final = -1 << 63
"""In a time field of AttrChange: the current time, taken by the filesystem (UTIME_NOW in utimensat(2))."""

ATTRIBUTES: Final = 0
DATA: Final = 1
WHOLE: Final = 2
"""Degrees to which a change needs a file's copy in the upper: only its attributes and names; its data writable or
truncatable; all of its data."""

IFMT: Final = 0o170000
IFCHR: Final = 0o020000
IFDIR: Final = 0o040000
IFREG: Final = 0o100000
IFLNK: Final = 0o120000
"""The types within a mode (inode(7)), as `stat` has them: numbers that compiled code has no need to look up."""

make: Final = tuple.__new__
"""make(Entry, (nodeid, attrs)) equals Entry(nodeid, attrs) and takes a fifth of the time; for values that each request
makes."""


class Attrs(NamedTuple):
    """The stat(2) attributes of a node. `ino` is the stable number shown to users, never the node id."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    blksize: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


class Entry(NamedTuple):
    """The answer to a lookup or a creation. The caller owes one `forget` for each Entry it was given."""

    nodeid: int
    attrs: Attrs


class AttrChange(NamedTuple):
    """The changes of a setattr; None leaves a field as it is.

    `kill_priv` asks that a file's set-id bits and capabilities are dropped along with the change, as truncate(2) does
    for a caller without CAP_FSETID, and chown(2) for everybody.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    kill_priv: bool = False


class DirEntry(NamedTuple):
    """One line of a merged listing. `cookie` resumes the listing after this entry; `kind` holds the S_IFMT bits."""

    name: bytes
    cookie: int
    ino: int
    kind: int


class Invalidation(NamedTuple):
    """A cached name or node that the kernel must drop, because the branches have changed."""

    nodeid: int  # the directory that `name` is in, or with an empty name the node itself; 0: any name anywhere
    name: bytes
    child: int = 0  # the node that `name` led to before; 0: not said, the kernel looks the name up again
    data: bool = False  # of a node: not only its attributes but its content


ANY_NAME: Final = Invalidation(0, b"")
"""Events were lost: all cached names are invalid, present and missing."""


class FsStats(NamedTuple):
    """The statvfs(3) values of the filesystem of new files."""

    bsize: int
    frsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    namemax: int


class Caller(NamedTuple):
    """The calling process. `umask` is applied by the core when the parent has no default ACL (umask(2), acl(5))."""

    uid: int
    gid: int
    pid: int = 0
    umask: int = 0

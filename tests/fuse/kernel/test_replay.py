"""A session as Linux 6.18 held it (protocol 7.45), replayed without /dev/fuse.

`session.capture.gz` holds the requests and replies of a shell script that listed, read, wrote, made, renamed, linked
and removed things on a mount, in the order in which they crossed /dev/fuse: each as its length (u32) and its bytes, and
an empty reply where there was none. Node ids are mapped as the kernel would learn them, so another order of handing
them out is no failure; times, inode numbers and the like are not compared.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path

from tests.core.trees import tree
from tests.fuse.kernel import wire
from tests.fuse.kernel.dispatched_union import done
from unionfs.core.options import Options
from unionfs.core.union import Union
from unionfs.fuse.kernel.abi import Op
from unionfs.fuse.kernel.dispatch import Dispatcher
from unionfs.fuse.kernel.session import Session, Tuning
from unionfs.fuse.options import ServeOptions

CAPTURE = Path(__file__).parent / "session.capture.gz"
LOWER = "f=hello d/a=1 d/b=22 d/sub/deep=3 l->f gone=x"
TOP = "d/c=333 d/.wh.b"

ENTRIES = (wire.LOOKUP, wire.MKNOD, wire.MKDIR, wire.SYMLINK, wire.LINK, wire.TMPFILE)
VERBATIM = (wire.READ, wire.READLINK, wire.WRITE, wire.GETXATTR, wire.LSEEK, wire.LISTXATTR)


def exchanges() -> Iterator[tuple[bytes, bytes]]:
    """(request, reply) in their order."""
    data = gzip.decompress(CAPTURE.read_bytes())
    at = 0
    while at < len(data):
        pair = []
        for _ in range(2):
            (length,) = struct.unpack_from("=I", data, at)
            pair.append(data[at + 4 : at + 4 + length])
            at += 4 + length
        yield pair[0], pair[1]


class Kernel:
    """The kernel's memory of node ids: then -> now."""

    def __init__(self) -> None:
        self.nodes = {0: 0, wire.ROOT: wire.ROOT}

    def translated(self, request: bytes) -> bytes:
        """The request with the node ids, and the user, that are true now."""
        opcode, nodeid = struct.unpack_from("=4xI8xQ", request)
        out = bytearray(request)
        struct.pack_into("=QII", out, 16, self.nodes[nodeid], wire.ME["uid"], wire.ME["gid"])
        if opcode in (wire.RENAME, wire.RENAME2, wire.LINK):
            struct.pack_into("=Q", out, 40, self.nodes[struct.unpack_from("=Q", request, 40)[0]])
        if opcode in (Op.COPY_FILE_RANGE, Op.COPY_FILE_RANGE_64):
            struct.pack_into("=Q", out, 56, self.nodes[struct.unpack_from("=Q", request, 56)[0]])
        if opcode == wire.BATCH_FORGET:
            for at in range(48, len(request), 16):
                struct.pack_into("=Q", out, at, self.nodes[struct.unpack_from("=Q", request, at)[0]])
        return bytes(out)

    def compare_entries(self, then: wire.EntryOut, now: wire.EntryOut) -> None:
        assert bool(then.nodeid) == bool(now.nodeid)
        assert self.nodes.setdefault(then.nodeid, now.nodeid) == now.nodeid
        assert now.attr.mode == then.attr.mode
        assert now.attr.nlink == then.attr.nlink
        assert now.attr.size == then.attr.size or now.attr.mode >> 12 == 4

    def compare(self, opcode: int, then: wire.Reply, now: wire.Reply) -> None:
        """The reply means what it meant, and its node ids are learnt."""
        assert (now.unique, now.error) == (then.unique, then.error)
        assert len(now.body) == len(then.body)
        if opcode in ENTRIES and then.body:
            self.compare_entries(wire.entry_out(then.body), wire.entry_out(now.body))
        elif opcode == wire.READDIRPLUS:
            for old, new in zip(wire.dirents(then.body, plus=True), wire.dirents(now.body, plus=True), strict=True):
                assert (old.name, old.off, old.kind) == (new.name, new.off, new.kind)
                assert old.entry is not None
                assert new.entry is not None
                self.compare_entries(old.entry, new.entry)
        elif opcode in VERBATIM:
            assert now.body == then.body


def test_answers_equal_the_recorded_ones(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    union = Union(Options(
        lowers=(str(tree(tmp_path / "top", TOP)), str(tree(tmp_path / "lower", LOWER))),
        upper=str(tree(tmp_path / "upper", "up=here")),
        work=str(tmp_path / "work"),
        durability="volatile",
    ))  # fmt: skip
    session, kernel = Session(ServeOptions(), Tuning()), Kernel()
    dispatcher = Dispatcher(union, session)
    for number, (request, then) in enumerate(exchanges()):
        opcode = struct.unpack_from("=4xI", request)[0]
        sent = kernel.translated(request)
        now = dispatcher.handle(memoryview(sent), len(sent))
        while dispatcher.slow:
            now = done(dispatcher, dispatcher.slow.pop(0)) or now
        try:
            assert (now is None) == (not then) or opcode == wire.FSYNC
            if then and now is not None:
                kernel.compare(opcode, wire.reply(then), wire.reply(now))
        except AssertionError as failure:
            failure.add_note(f"message {number}: {Op(opcode).name}")
            raise
    assert session.minor == 45
    assert session.messages.keys() >= {
        "LOOKUP", "GETATTR", "SETATTR", "READ", "WRITE", "READDIRPLUS", "RENAME2", "UNLINK", "RMDIR", "MKNOD", "MKDIR",
        "SYMLINK", "LINK", "READLINK", "STATX", "FALLOCATE", "LSEEK", "TMPFILE", "SETXATTR", "GETXATTR", "LISTXATTR",
        "FORGET", "STATFS",
    }  # fmt: skip
    assert session.messages["OPEN"] == session.messages["OPENDIR"] == session.messages["CREATE"] == 1
    assert "RELEASE" not in session.messages or session.messages["RELEASE"] == 1
    union.close()

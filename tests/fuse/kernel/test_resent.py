"""A daemon dies before its answer has reached the kernel, which sends the request again: it is done once, and the
program gets the answer of the first time."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.core.children import KILLED, in_child
from tests.fuse.kernel import wire
from tests.fuse.kernel.dispatched_union import Served
from tests.fuse.kernel.wire import ROOT
from unionfs.core import takeover
from unionfs.core.node_record import NodeRecord
from unionfs.fuse.kernel import abi
from unionfs.fuse.kernel.dispatch import Dispatcher
from unionfs.fuse.kernel.session import Kept

ExpectLog = Callable[[str], AbstractContextManager[list[str]]]

_UNIQUE = 42
_F = 2
"""The id of f: the first after the root's, when it is looked up first."""
_RESENT = _UNIQUE | abi.UNIQUE_RESEND
_MADE = {
    "mknod": (wire.MKNOD, struct.pack("=IIII", 0o100640, 0, 0, 0) + b"new\0"),
    "mkdir": (wire.MKDIR, struct.pack("=II", 0o750, 0) + b"new\0"),
    "symlink": (wire.SYMLINK, b"new\0" + b"target\0"),  # the name first
    "link": (wire.LINK, struct.pack("=Q", _F) + b"new\0"),
}
_REMOVED = {
    "unlink": (wire.UNLINK, b"up\0"),
    "rmdir": (wire.RMDIR, b"empty\0"),
    "rename": (wire.RENAME, struct.pack("=Q", ROOT) + b"up\0moved\0"),
}


class _Lives:
    """A union with a record, of which a child process may live the first life; this process then takes over."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.kept = Kept(NodeRecord(), None)
        takeover.keep_record(served.union, self.kept.record)
        served.session.keep(self.kept)
        served.dispatcher = Dispatcher(served.union, served.session)

    def first(self, *requests: bytes, until_done: bool) -> None:
        """Serve the requests in a process that dies with the last one done. Not `until_done`: it is not known to be."""
        outcome = in_child(lambda: self._live(requests, until_done))
        assert outcome.error is None, outcome.error
        assert outcome.status == KILLED

    def _live(self, requests: tuple[bytes, ...], until_done: bool) -> None:
        if not until_done:
            self.kept.record.finish = lambda is_done: None  # type: ignore[method-assign]
        for request in requests:
            assert self.served.ask(request).error == 0
        os._exit(KILLED)

    def take_over(self) -> None:
        self.kept.record.no_longer_served()  # as the keeper does
        self.kept.changes = takeover.take_over(self.served.union)
        self.kept.unanswered = takeover.unanswered(self.served.union)
        self.kept.continues = True
        self.served.dispatcher = Dispatcher(self.served.union, self.served.session)


def _lookup(name: bytes, unique: int = 2) -> bytes:
    return wire.request(wire.LOOKUP, ROOT, name + b"\0", unique=unique)


@pytest.mark.parametrize("until_done", [True, False])
@pytest.mark.parametrize("what", _MADE)
def test_a_repeated_creation_of_a_made_object_succeeds(served: Served, what: str, until_done: bool) -> None:
    lives = _Lives(served)
    opcode, body = _MADE[what]
    lives.first(_lookup(b"f"), wire.request(opcode, ROOT, body, unique=_UNIQUE), until_done=until_done)
    st = os.lstat(served.upper / "new")
    lives.take_over()
    answer = served.ask(wire.request(opcode, ROOT, body, unique=_RESENT))
    assert (answer.error, answer.unique) == (0, _RESENT)
    entry = wire.entry_out(answer.body)
    assert (entry.attr.mode, entry.attr.nlink) == (st.st_mode, st.st_nlink)
    assert os.lstat(served.upper / "new").st_ino == st.st_ino
    if what == "symlink":
        assert served.ask(wire.request(wire.READLINK, entry.nodeid)).body == b"target"
    if what == "link":
        assert entry.nodeid == _F
    assert served.ask(wire.request(opcode, ROOT, body, unique=_UNIQUE + 2)).error == errno.EEXIST


@pytest.mark.parametrize("until_done", [True, False])
@pytest.mark.parametrize("what", _REMOVED)
def test_a_repeated_removal_of_a_removed_object_succeeds(served: Served, what: str, until_done: bool) -> None:
    (served.upper / "empty").mkdir()
    lives = _Lives(served)
    opcode, body = _REMOVED[what]
    lives.first(_lookup(b"up"), wire.request(opcode, ROOT, body, unique=_UNIQUE), until_done=until_done)
    lives.take_over()
    assert served.ask(wire.request(opcode, ROOT, body, unique=_RESENT)).error == 0
    assert served.ask(wire.request(opcode, ROOT, body, unique=_UNIQUE + 2)).error == errno.ENOENT


def test_the_first_sending_of_a_request_is_not_answered_as_done(served: Served) -> None:
    """EEXIST of a request that no daemon has begun is the truth."""
    lives = _Lives(served)
    lives.first(_lookup(b"f"), until_done=True)
    lives.take_over()
    request = wire.request(wire.SYMLINK, ROOT, b"f\0target\0", unique=_RESENT)
    assert served.ask(request).error == errno.EEXIST


@pytest.mark.parametrize("until_done", [True, False])
def test_attributes_are_set_and_removed_once(served: Served, until_done: bool) -> None:
    lives = _Lives(served)
    layout = abi.SETXATTR_IN.pack(1, 1, 0, 0)  # XATTR_CREATE
    put = wire.request(wire.SETXATTR, 2, layout + b"user.k\0v", unique=_UNIQUE)
    lives.first(_lookup(b"up"), put, until_done=until_done)
    assert os.getxattr(served.upper / "up", "user.k") == b"v"
    lives.take_over()
    again = wire.request(wire.SETXATTR, 2, layout + b"user.k\0v", unique=_RESENT)
    assert served.ask(again).error == 0
    assert served.ask(wire.request(wire.SETXATTR, 2, layout + b"user.k\0v", unique=60)).error == errno.EEXIST
    assert served.ask(wire.request(wire.REMOVEXATTR, 2, b"user.k\0", unique=62)).error == 0
    assert served.ask(wire.request(wire.REMOVEXATTR, 2, b"user.k\0", unique=64)).error == errno.ENODATA


def test_what_was_counted_for_an_answer_that_was_never_given_is_taken_back(served: Served) -> None:
    lives = _Lives(served)
    lines_from_0 = wire.read(ROOT, 0, 4096)[40:]
    list_root = wire.request(wire.READDIRPLUS, ROOT, lines_from_0, unique=_UNIQUE)
    lives.first(_lookup(b"f"), list_root, until_done=True)
    lives.take_over()
    union = served.union
    answer = served.ask(wire.request(wire.READDIRPLUS, ROOT, lines_from_0, unique=_RESENT))
    lines = wire.dirents(answer.body, plus=True)
    told = [line.entry.nodeid for line in lines if line.entry is not None and line.entry.nodeid]
    assert len(set(told)) == len(told) == 6
    assert union.node_count == 1 + len(told)
    served.raw(wire.request(wire.FORGET, _F, struct.pack("=Q", 1)))  # of its lookup
    for nodeid in told:
        served.raw(wire.request(wire.FORGET, nodeid, struct.pack("=Q", 1)))
    assert union.node_count == 1
    assert union._nodes.record is not None
    assert union._nodes.record.load()[1] == []


@pytest.mark.parametrize("is_replaced", [False, True])
def test_what_was_counted_is_taken_back_once_if_two_daemons_die(served: Served, *, is_replaced: bool) -> None:
    """The name has changed meanwhile: the second daemon counts another node for it, or none, and dies as the first."""
    lives = _Lives(served)
    lives.first(_lookup(b"up"), _lookup(b"up", _UNIQUE), until_done=True)
    os.rename(served.upper / "up", served.upper / "away")
    if is_replaced:
        (served.upper / "up").touch()

    def second() -> None:
        lives.take_over()
        served.ask(_lookup(b"up", _RESENT))
        os._exit(KILLED)

    assert in_child(second).status == KILLED
    lives.take_over()
    found = wire.entry_out(served.ask(_lookup(b"up", _RESENT)).body).nodeid  # 0: there is no such name
    assert (found > 2) == is_replaced
    counts = {there.nodeid: there.nlookup for there in lives.kept.record.load()[1]}
    assert counts == ({2: 1, found: 1} if is_replaced else {2: 1})


def test_what_was_counted_for_an_answer_that_was_given_stays(served: Served) -> None:
    lives = _Lives(served)
    lives.first(_lookup(b"f", _UNIQUE), until_done=True)
    lives.take_over()
    assert served.ask(_lookup(b"f", _UNIQUE + 2)).error == 0
    served.raw(wire.request(wire.FORGET, _F, struct.pack("=Q", 1)))
    assert served.ask(wire.request(wire.GETATTR, _F, bytes(16))).error == 0
    served.raw(wire.request(wire.FORGET, _F, struct.pack("=Q", 1)))
    assert served.ask(wire.request(wire.GETATTR, _F, bytes(16))).error == errno.ESTALE


def test_forgets_that_a_death_has_interrupted_are_done_once(served: Served) -> None:
    """The message is gone from the kernel: what is left of it is in the buffer of requests."""
    for name in (b"one", b"two", b"three"):
        (served.upper / name.decode()).touch()
    lives = _Lives(served)
    record = lives.kept.record
    nodes = [_F, _F + 1, _F + 2]
    lines = b"".join(struct.pack("=QQ", node, 1) for node in nodes)
    message = wire.request(wire.BATCH_FORGET, 0, struct.pack("=II", 3, 0) + lines, unique=_UNIQUE)
    looked_up = [_lookup(name, 2 * number + 2) for number, name in enumerate((b"one", b"two", b"three"))]

    def live() -> None:
        for request in (*looked_up, *looked_up):
            assert served.ask(request).error == 0
        record.request[: len(message)] = message
        forget = served.union.forget

        def dies_in_the_second(nodeid: int, count: int = 1) -> bool:
            if nodeid == nodes[1]:
                os._exit(KILLED)
            return forget(nodeid, count)

        served.union.forget = dies_in_the_second  # type: ignore[method-assign]
        served.raw(message)

    assert in_child(live).status == KILLED
    lives.take_over()
    for _ in range(2):  # the second time nothing is left to do
        served.dispatcher.continue_serving(record.request)
    known = {there.nodeid: there.nlookup for there in served.union._nodes.recorded.values()}
    assert known == {nodes[0]: 1, nodes[1]: 2, nodes[2]: 1}  # of the one in hand it is not known


@pytest.mark.parametrize("what", ["missing", "there"])
def test_attributes_that_need_no_change_are_not_taken_for_changed(served: Served, what: str) -> None:
    """The kernel does not know attributes: what the daemon answered, or was about to, stays the answer."""
    os.setxattr(served.upper / "up", "user.k", b"old")
    lives = _Lives(served)
    layout = abi.SETXATTR_IN.pack(1, 1, 0, 0)  # XATTR_CREATE
    if what == "there":
        opcode, body, code = wire.SETXATTR, layout + b"user.k\0v", errno.EEXIST
    else:
        opcode, body, code = wire.REMOVEXATTR, b"user.missing\0", errno.ENODATA

    def live() -> None:
        assert served.ask(_lookup(b"up")).error == 0
        served.union.setxattr = served.union.removexattr = lambda *_: os._exit(KILLED)  # type: ignore[method-assign, assignment]
        served.ask(wire.request(opcode, 2, body, unique=_UNIQUE))

    assert in_child(live).status == KILLED
    lives.take_over()
    assert served.ask(wire.request(opcode, 2, body, unique=_RESENT)).error == code
    assert os.getxattr(served.upper / "up", "user.k") == b"old"


def test_a_request_of_which_daemons_die_is_refused(served: Served, expect_log: ExpectLog) -> None:
    lives = _Lives(served)
    lives.first(_lookup(b"f"), until_done=True)
    lives.kept.refused = _UNIQUE
    lives.take_over()
    with expect_log("GETATTR is answered EIO"):
        assert served.ask(wire.request(wire.GETATTR, ROOT, bytes(16), unique=_RESENT)).error == errno.EIO
    assert served.ask(wire.request(wire.GETATTR, ROOT, bytes(16), unique=_UNIQUE + 2)).error == 0

"""Completing partial files without a request for it: from an eighth of their blocks on, and while no request comes."""

from __future__ import annotations

import errno
import os

import pytest

from tests.core.conftest import MakeStack
from tests.core.stack import Stack
from tests.core.test_partial import BLOCK, SIZE, ExpectLog, bytes_in, content, marks_of, prepared
from unionfs.core import fill, partial, sparse_copyup
from unionfs.core.attrs import DATA
from unionfs.core.complete import complete_upper
from unionfs.core.copydata import Copy


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and files as in test_partial."""
    monkeypatch.setattr(partial, "SHIFT", 12)
    monkeypatch.setattr(sparse_copyup, "SPARSE_FROM", BLOCK)


def test_from_an_eighth_on_a_change_waits_for_more(make: MakeStack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_AT_ONCE", "_AT_ONCE_MOST"):
        monkeypatch.setattr(fill, name, 10 * BLOCK)
    stack = prepared(make)
    for block in range(6):
        stack.u.write("d/big", block * BLOCK, b"w" * BLOCK)
    assert _filled(stack) == [], "six of 49 blocks are no eighth"
    stack.u.write("d/big", 6 * BLOCK, b"w" * BLOCK)
    assert _filled(stack) == [10 * BLOCK] * 4 + [SIZE - 47 * BLOCK]
    assert stack.upper is not None
    assert marks_of(stack.upper / "d/big") == {}
    assert (stack.upper / "d/big").read_bytes() == b"w" * 7 * BLOCK + content()[7 * BLOCK :]


def _filled(stack: Stack) -> list[int]:
    """Do what changes would wait for. Returns the bytes of each part."""
    found = []
    handle = stack.u.open("d/big")
    while (job := stack.union.copyup_begin(stack.u.node("d/big"), None, DATA)) is not None:
        job.copy()
        stack.union.copyup_commit(job)
        found.append(job.copied)
        assert stack.union.copyup_begin(stack.u.node("d/big"), None, DATA) is None, "a change waits once"
    stack.u.close(handle)
    return found


def test_filling_that_fails_fails_no_change(
    make: MakeStack, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    """A quota, say. It takes no space, and is not tried again until it is asked for."""
    stack = prepared(make)
    for block in range(0, 20, 2):
        stack.u.write("d/big", block * BLOCK, b"w" * BLOCK)
    copy_data = Copy.copy_data

    def limited(self: Copy, start: int, end: int) -> int:
        if start > 4 * BLOCK:
            copy_data(self, start, start + 100)
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return copy_data(self, start, end)

    monkeypatch.setattr(Copy, "copy_data", limited)
    handle = stack.u.open("d/big")
    job = stack.union.copyup_begin(stack.u.node("d/big"), None, DATA)
    assert job is not None
    job.copy()
    with expect_log("b'd/big' is not completed: Disk quota exceeded"):
        stack.union.copyup_commit(job)
    assert stack.upper is not None
    assert bytes_in(stack.upper / "d/big") == 12 * BLOCK
    for _ in range(2):
        assert stack.union.copyup_begin(stack.u.node("d/big"), None, DATA) is None
    assert stack.union.fill_begin() is None
    stack.u.close(handle)
    stack.u.write("d/big", 5 * BLOCK + 1, b"w")
    want = bytearray(content())
    for block in range(0, 20, 2):
        want[block * BLOCK : (block + 1) * BLOCK] = b"w" * BLOCK
    want[5 * BLOCK + 1 : 5 * BLOCK + 2] = b"w"
    for _ in range(2):
        assert stack.u.read("d/big", 0, SIZE) == want
        stack.remount()
    monkeypatch.setattr(Copy, "copy_data", copy_data)
    stack.close()
    assert complete_upper(stack.options)
    assert (stack.upper / "d/big").read_bytes() == want


def test_more_comes_while_nothing_else_is_to_do(make: MakeStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill, "_AT_ONCE", 20 * BLOCK)
    stack = prepared(make)
    told: list[bool] = []
    stack.union.when_growing(lambda: told.append(True))
    stack.u.chmod("d/big", 0o600)
    assert stack.union.fill_begin() is None, "only its attributes were changed"
    handle = stack.u.open("d/big")
    stack.u.write("d/big", 9, b"own")
    monkeypatch.setattr(fill, "_ROOM", 1 << 60)
    assert stack.union.fill_begin() is None, "there is no room"
    monkeypatch.setattr(fill, "_ROOM", 1)
    stack.u.write("d/big", 5 * BLOCK, b"own")
    copied = []
    while (job := stack.union.fill_begin()) is not None:
        job.copy()
        stack.union.copyup_commit(job)
        copied.append(job.copied)
    assert copied == [20 * BLOCK, 20 * BLOCK, SIZE - 42 * BLOCK]
    assert told == [True, True]
    assert stack.upper is not None
    want = content()[:9] + b"own" + content()[12 : 5 * BLOCK] + b"own" + content()[5 * BLOCK + 3 :]
    assert (stack.upper / "d/big").read_bytes() == want
    assert marks_of(stack.upper / "d/big") == {}
    stack.u.close(handle)

"""stat(2) of a directory stays the same until a user changes something in it: a copy-up changes only the disk."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.core.conftest import MakeStack
from tests.core.union_driver import UnionDriver
from unionfs.core.attrs import Attrs

COPY_UPS: dict[str, Callable[[UnionDriver], object]] = {
    "a new file below": lambda u: u.create("d/e/s/new"),
    "a file below changed": lambda u: u.chmod("d/e/s/f", 0o600),
    "a file in it changed": lambda u: u.chmod("d/g", 0o600),
    "a directory in it changed": lambda u: u.chmod("d/e", 0o700),
    "a file in it written": lambda u: u.write("d/g", 0, b"X"),
}
CHANGES: dict[str, Callable[[UnionDriver], object]] = {
    "a new name": lambda u: u.mkdir("d/new"),
    "a name removed": lambda u: u.unlink("d/g"),
    "its mode": lambda u: u.chmod("d", 0o700),
    "its attributes": lambda u: u.setxattr("d", b"user.k", b"v"),
    "its name": lambda u: [u.rename(*names) for names in (("d", "moved"), ("moved", "d"))],  # type: ignore[func-returns-value]
}


def told(union: UnionDriver, path: str) -> Attrs:
    return union.stat(path)._replace(atime_ns=0)


@pytest.mark.parametrize("copy_up", COPY_UPS)
def test_a_copy_up_changes_no_parent_directory(copy_up: str, make: MakeStack) -> None:
    stack = make("d/e/s/f d/g=content")
    stack.u.caching = True
    before = told(stack.u, "d")
    time.sleep(0.02)  # longer than a tick of the clock that the kernel takes ctimes from
    COPY_UPS[copy_up](stack.u)
    assert told(stack.u, "d") == before


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_shows(change: str, make: MakeStack) -> None:
    stack = make("d/e/s/f d/g=content")
    stack.u.caching = True
    before = told(stack.u, "d")
    time.sleep(0.02)
    stack.u.chmod("d/e/s/f", 0o600)
    CHANGES[change](stack.u)
    assert told(stack.u, "d").ctime_ns > before.ctime_ns

"""An exception becomes an errno in one place."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from unionfs.fuse.errors import errno_of


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENOSPC, errno.EROFS])
def test_what_the_core_raises_passes_through(code: int) -> None:
    assert errno_of(OSError(code, "text", "name")) == code


@pytest.mark.parametrize("bug", [KeyError("x"), AssertionError(), OSError("without an errno")])
def test_a_bug_is_eio_with_a_traceback_in_the_log(
    bug: Exception, expect_log: Callable[..., AbstractContextManager[list[str]]]
) -> None:
    with expect_log("bug while serving a request"):
        assert errno_of(bug) == errno.EIO

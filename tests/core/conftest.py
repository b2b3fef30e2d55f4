"""Fixtures: `make` builds stacks and checks them at the end, once for each whiteout format."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.core.stack import Stack, Whiteout
from tests.support import scratch

_MEMORY: Final = "/dev/shm"

MakeStack = Callable[..., Stack]


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    """Modes in texts are meant literally."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def ram_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, for tests that make thousands of trees; tmp_path where tmpfs has no attributes for users
    (before Linux 6.6)."""
    try:
        made = Path(tempfile.mkdtemp(dir=_MEMORY))
    except OSError:
        yield tmp_path
        return
    try:
        os.setxattr(made, "user.unionfs.test", b"1")
        os.removexattr(made, "user.unionfs.test")
    except OSError:
        made.rmdir()
        yield tmp_path
        return
    yield made
    scratch.remove(made)


@pytest.fixture(params=["aufs", "overlay"])
def whiteout(request: pytest.FixtureRequest) -> Whiteout:
    """Each test that writes runs with both formats of marks."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def make(tmp_path: Path, whiteout: Whiteout, request: pytest.FixtureRequest) -> Iterator[MakeStack]:
    """`make("a=1", "b=2", upper="c=3")`: lowers top first. Finished, with its checks, after a test that passed."""
    made: list[Stack] = []

    def build(*lowers: str, **options: object) -> Stack:
        options = {"whiteout": whiteout, **options}
        stack = Stack(tmp_path / str(len(made)), *lowers, **options)  # type: ignore[arg-type]
        made.append(stack)
        return stack

    failed_before = request.session.testsfailed
    yield build
    for stack in made:
        if request.session.testsfailed == failed_before:
            stack.finish()
        else:
            stack.abandon()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: trusted xattrs, device nodes, chown")

"""Fixtures: `make` builds stacks and checks them at the end, once for each whiteout format."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.core.stack import Stack, Whiteout

MakeStack = Callable[..., Stack]


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    """Modes in texts are meant literally."""
    before = os.umask(0)
    yield
    os.umask(before)


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

"""Fixtures: `served` is a union with a dispatcher in this process, `mount` serves one from a child process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fuse.kernel.dispatched_union import Served
from tests.fuse.kernel.engine_process import Mount, Plan, serving

MakeMount = Callable[..., Mount]


@pytest.fixture
def mount(scratch: Path, fuse_device: Path) -> Iterator[MakeMount]:
    """`mount(lower, ..., writeback=True)`: the lowers, top first, with a new upper; unmounted after the test."""
    del fuse_device
    with ExitStack() as stack:

        def make(*lowers: Path, **named: object) -> Mount:
            for name in ("upper", "work", "mnt"):
                (scratch / name).mkdir()
            plan = Plan(
                mountpoint=str(scratch / "mnt"),
                lowers=[str(lower) for lower in lowers],
                upper=str(scratch / "upper"),
                work=str(scratch / "work"),
                **named,  # type: ignore[arg-type]
            )
            return stack.enter_context(serving(plan))

        yield make


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A union with a dispatcher; at the end it must still work."""
    fixture = Served(tmp_path)
    yield fixture
    assert fixture.content(fixture.node(b"f")) is not None
    assert not fixture.dispatcher.slow
    fixture.union.close()

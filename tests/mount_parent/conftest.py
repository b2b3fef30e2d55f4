"""Callers that are root or an ordinary user."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount_parent.callers import Caller, caller_of
from tests.support.users import User


@pytest.fixture
def root(scratch: Path, root_user: User, fuse_device: Path) -> Iterator[Caller]:
    with caller_of(root_user, scratch) as made:
        yield made


@pytest.fixture
def ordinary(scratch: Path, ordinary_user: User, fuse_device: Path) -> Iterator[Caller]:
    with caller_of(ordinary_user, scratch) as made:
        yield made

"""Mounts for test modules that make the lowers of their union themselves: as root and as an ordinary user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.mounted.mounted_subject import MountedSubject
from tests.mounted.subjects import Subject, unavailable
from tests.support.users import User


def kernel_subjects(layout: str) -> list[ParameterSet]:
    """Parameters of a fixture: our own transport as root and as an ordinary user; `layout` as in Subject."""
    subjects = (Subject("kernel", who, layout) for who in ("root", "user"))
    return [
        pytest.param(one, id=str(one), marks=[pytest.mark.transport(one.transport), pytest.mark.runs_as(one.runs_as)])
        for one in subjects
    ]


@contextmanager
def unmounted(
    request: pytest.FixtureRequest,
    scratch: Path,
    subject: Subject,
    *,
    lowers: int,
    env: Mapping[str, str] | None = None,
) -> Iterator[MountedSubject]:
    """A union that is not mounted yet, with empty lowers. Skips where the subject is not available."""
    if reason := unavailable(subject):
        pytest.skip(reason)
    request.getfixturevalue("fuse_device")
    user: User = request.getfixturevalue("root_user" if subject.who == "root" else "ordinary_user")
    with MountedSubject(subject, user, scratch / "stand", lowers=lowers, mounted=False, env=env) as built:
        yield built

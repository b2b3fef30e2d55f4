"""Directories of many names, listed while they are emptied: once with 10,000 names on everything, once with
30,000. One of 100,000 is listed without a mount (tests.core.test_listing)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.mounted.mounted_subject import MountedSubject
from tests.mounted.subjects import NATIVE, Subject, unavailable
from tests.support.users import User


def _fill(directory: Path, count: int) -> None:
    directory.mkdir()
    for number in range(count):
        os.close(os.open(directory / f"file-{number:06}", os.O_WRONLY | os.O_CREAT))


def _empty(count: int) -> None:
    """Remove every entry as soon as it is listed, as rm -rf does (readdir(3), POSIX)."""
    seen: Counter[str] = Counter()
    with os.scandir("many") as entries:
        for entry in entries:
            seen[entry.name] += 1
            os.unlink(entry.path)
            if len(seen) == count // 2:
                os.close(os.open("many/added", os.O_WRONLY | os.O_CREAT))
    seen.pop("added", None)
    assert len(seen) == count
    assert max(seen.values()) == 1
    assert set(os.listdir("many")) <= {"added"}
    for left in os.listdir("many"):
        os.unlink(f"many/{left}")
    os.rmdir("many")


def _cases() -> Sequence[object]:
    kernel = Subject("kernel", "root", "plain")
    largest = kernel if unavailable(kernel) is None else Subject("pyfuse3", "root", "plain")
    cases = [(Subject(transport, "root", "plain"), 10_000) for transport in (NATIVE, "pyfuse3", "kernel")]
    return [
        pytest.param(subject, count, id=f"{subject}-{count}", marks=[pytest.mark.transport(subject.transport)])
        for subject, count in [*cases, (largest, 30_000)]
    ]


@pytest.mark.parametrize(("subject", "count"), _cases())
def test_a_directory_is_emptied_while_it_is_listed(
    subject: Subject, count: int, root_user: User, scratch: Path
) -> None:
    if reason := unavailable(subject):
        pytest.skip(reason)
    with MountedSubject(subject, root_user, scratch / "stand", mounted=False) as stand:
        _fill((stand.merged if subject.is_native else stand.lowers[0]) / "many", count)
        stand.mount()
        stand.run(_empty, count, timeout_s=250)
        stand.remount()
        assert stand.run(os.listdir) == []

"""Copies between directories given by descriptors."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from unionfs.containers.copy import Copy


def test_a_device_that_may_not_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "mknod", refuse)
    from_fd, to_fd = (os.open(path, os.O_PATH | os.O_DIRECTORY) for path in ("/dev", tmp_path))
    try:
        with pytest.raises(PermissionError) as refused:
            Copy().run(from_fd, "null", to_fd, "new")
    finally:
        os.close(from_fd)
        os.close(to_fd)
    assert (refused.value.errno, refused.value.filename) == (errno.EPERM, str(tmp_path / "new"))

"""Random reading, writing and mapping of a file on the mount and of a plain one beside it: always the same outcome."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.kernel import random_io
from tests.fuse.kernel.engine_process import Mount

STEPS = 1200 * int(os.environ.get("UNIONFS_TEST_STRESS", "1"))


@pytest.mark.parametrize("writeback", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_file_is_a_file(scratch: Path, mount: Callable[..., Mount], seed: int, *, writeback: bool) -> None:
    """Begins with a file of a lower layer, so that the first change copies it up."""
    layer = scratch / "lower"
    layer.mkdir()
    content = os.urandom(100_000)
    for name, model in (("file", "model"), ("file.other", "model.other")):
        (layer / name).write_bytes(content)
        (scratch / model).write_bytes(content)
    union = mount(layer, writeback=writeback)
    program = str(Path(random_io.__file__))
    union.run(sys.executable, "-I", program, "file", str(scratch / "model"), str(seed), str(STEPS))
    union.run("sync", "file", "file.other")
    for name, model in (("file", "model"), ("file.other", "model.other")):
        assert (layer / name).read_bytes() == content
        assert (scratch / "upper" / name).read_bytes() == (scratch / model).read_bytes()

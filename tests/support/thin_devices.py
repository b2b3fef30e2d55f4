"""List the devices of the driver devicemapper in the kernel, to check that none is left."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.support.timing import limit

KERNEL_HAS: Final = Path("/sys/module/dm_thin_pool").is_dir()
"""Whether this kernel has thin pools; the guest of tests/guests does."""

_FAMILY: Final = "unionfs-"


def found() -> list[str]:
    """The names of our devices of device mapper, and the files of our pools that loop devices have."""
    names, files = _texts("dm-*/dm/name"), _texts("loop*/loop/backing_file")
    return [name for name in names if name.startswith(_FAMILY)] + [name for name in files if "/devicemapper/" in name]


def _texts(pattern: str) -> list[str]:
    found = []
    for path in Path("/sys/block").glob(pattern):
        with suppress(OSError):  # the device is just being removed
            found.append(path.read_text().strip())
    return found


def left(within_s: float = 10) -> list[str]:
    """The result of `found` after the kernel has had time to remove unused devices."""
    deadline = time.monotonic() + limit(within_s)
    while (names := found()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return names


def numbers(metadata: Path) -> set[int]:
    """The numbers of the devices in a pool that is not active, by its metadata, which must be sound."""
    subprocess.run(["thin_check", "-q", metadata], check=True, timeout=limit(60))
    told = subprocess.run(["thin_dump", metadata], check=True, capture_output=True, text=True, timeout=limit(60)).stdout
    return {int(line.split('dev_id="')[1].split('"')[0]) for line in told.splitlines() if "<device " in line}

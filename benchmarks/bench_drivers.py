"""What does a container cost by each storage driver: until its first command has run, at the first write to files of a
layer, on the disk, and when it is removed? Does a second container find in the page cache what a first one has read?

A store with one image, a minimal Debian with files of 1 kB to 100 MB on top; Btrfs on a file of its own if root can
mount it. `first` is the first container of the image on this store, which has to copy or convert the layers for later
ones; `next` is each later one, the median of the rounds. `write` is the time in the container for opening a file and
writing one byte, and `small` the same for 500 files. `remove` is `unionfs rm` of a container after these changes.
`disk` is the space of one more container without changes, and `changed` the space of these changes. Not part of the
suite: containers are compared, not mounts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from tests.support import btrfs, rootfs, scratch
from unionfs.syscalls.btrfs import is_on_btrfs

DRIVERS: Final = ("fuse", "overlay", "vfs", "btrfs")
_ROUNDS: Final = 5
_LARGE: Final = 100
_MEDIUM: Final = 10
_SMALL: Final = 500
_MAKE: Final = """
dd if=/dev/urandom of=/large bs=1M count={large} 2>/dev/null
dd if=/dev/urandom of=/medium bs=1M count={medium} 2>/dev/null
mkdir /small; i=0; while [ $i -lt {small} ]; do head -c 1000 /dev/urandom > /small/$i; i=$((i+1)); done
rm /etc/issue
"""  # the last is a whiteout
_WRITE: Final = """
import time, os
def write(*paths):
    began = time.perf_counter()
    for path in paths:
        fd = os.open(path, os.O_WRONLY); os.pwrite(fd, b"x", 0); os.close(fd)
    print(time.perf_counter() - began)
write("/small/0")  # the directories
write("/medium")
write("/large")
write(*(f"/small/{number}" for number in range(1, 500)))
"""

_COOL: Final = """
import os
fd = os.open("/large", os.O_RDONLY); os.fsync(fd); os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
"""


def _unionfs(root: Path, *words: str, stdin: Any = None) -> str:
    environment = {
        **os.environ,
        "UNIONFS_ROOT": os.fspath(root),
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "unionfs", *words], stdin=stdin or subprocess.DEVNULL, env=environment, check=True,
        stdout=subprocess.PIPE, timeout=900,
    )  # fmt: skip
    return done.stdout.decode()


def _fill(root: Path, megabytes: int) -> None:
    with rootfs.debian_tar().open("rb") as tar:
        _unionfs(root, "import", "--compression", "none", "-", "base:1", stdin=tar)
    script = _MAKE.format(large=megabytes, medium=_MEDIUM, small=_SMALL)
    _unionfs(root, "run", "--name", "make", "base:1", "sh", "-c", script)
    _unionfs(root, "commit", "--compression", "none", "-q", "make", "bench:1")
    _unionfs(root, "rm", "make")
    _unionfs(root, "run", "--rm", "bench:1", "true")  # unpacks the layer


def _started(root: Path, driver: str, name: str) -> float:
    began = time.perf_counter()
    _unionfs(root, "run", "--name", name, "--driver", driver, "bench:1", "true")
    return time.perf_counter() - began


def _used(root: Path) -> int:
    """Return the bytes taken: on Btrfs those of the filesystem, where files may share data; else of the containers."""
    os.sync()
    if is_on_btrfs(os.fspath(root)):
        st = os.statvfs(root)
        return (st.f_blocks - st.f_bfree) * st.f_frsize
    found = subprocess.run(["du", "-sk", root / "containers"], capture_output=True, text=True, check=True, timeout=600)
    return int(found.stdout.split()[0]) * 1024


def measured(root: Path, driver: str, rounds: int) -> dict[str, Any]:
    """Return the costs of a driver on the filesystem of `root`."""
    first = _started(root, driver, f"{driver}-first")
    before = _used(root)
    later = [_started(root, driver, f"{driver}-{number}") for number in range(rounds)]
    disk = (_used(root) - before) / rounds
    writes, removals, changed = [], [], 0.0
    for _ in range(rounds):
        before = _used(root)
        command = ("run", "--name", "changed", "--driver", driver, "bench:1", "python3", "-c", _WRITE)
        writes.append([float(line) * 1000 for line in _unionfs(root, *command).split()])
        changed += (_used(root) - before) / rounds
        began = time.perf_counter()
        _unionfs(root, "rm", "changed")
        removals.append(time.perf_counter() - began)
    names = [f"{driver}-first", *(f"{driver}-{number}" for number in range(rounds))]
    _unionfs(root, "rm", *names)
    _, medium, large, small = (statistics.median(times) for times in zip(*writes, strict=True))
    return {
        "driver": driver,
        "first_s": round(first, 3),
        "next_s": round(statistics.median(later), 3),
        "medium_ms": round(medium, 2),
        "write_ms": round(large, 2),
        "small_ms": round(small, 1),
        "remove_s": round(statistics.median(removals), 3),
        "disk_mb": round(disk / 1e6, 2),
        "changed_mb": round(changed / 1e6, 2),
        "cached": _share_cached(root, driver),
    }


def _share_cached(root: Path, driver: str) -> float:
    """Return which share of the large file one container finds in the page cache after another one has read it."""
    names = ("reader", "finder")
    for name in names:
        _unionfs(root, "run", "-d", "--name", name, "--driver", driver, "bench:1", "sleep", "600")
    try:
        _unionfs(root, "exec", "finder", "python3", "-c", _COOL)  # making a copy has left its pages
        _unionfs(root, "exec", "reader", "sh", "-c", "cat /large > /dev/null")
        found = _unionfs(root, "exec", "finder", "fincore", "-b", "-n", "-r", "-o", "RES,SIZE", "/large")
    finally:
        _unionfs(root, "rm", "-f", *names)
    resident, size = found.split()
    return int(resident) / int(size)


@contextmanager
def _btrfs(directory: Path) -> Iterator[Path | None]:
    with ExitStack() as stack:
        try:
            yield stack.enter_context(btrfs.mounted(directory / "btrfs", gigabytes=2))
        except btrfs.NoBtrfsError as why:
            print(f"left out: btrfs: {why}", file=sys.stderr)
            yield None


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--megabytes", type=int, default=_LARGE, help="of the large file")
    parser.add_argument("--driver", action="append", choices=DRIVERS)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    chosen = arguments.driver or list(DRIVERS)
    found = []
    with scratch.run_dir() as directory:
        plain = directory / "store"
        if set(chosen) - {"btrfs"}:
            _fill(plain, arguments.megabytes)
            found += [measured(plain, driver, arguments.rounds) for driver in chosen if driver != "btrfs"]
        if "btrfs" in chosen:
            with _btrfs(directory) as place:
                if place is not None:
                    _fill(place / "store", arguments.megabytes)
                    found.append(measured(place / "store", "btrfs", arguments.rounds))
                    if "vfs" in chosen:
                        found.append(measured(place / "store", "vfs", arguments.rounds) | {"driver": "vfs on Btrfs"})
    if arguments.json:
        print(json.dumps(found))
        return 0
    print(
        "| driver | first container | next ones | write to 10 MB | to 100 MB | to 500 of 1 kB | remove | disk "
        "| with these changes | page cache shared |"
    )
    print("|---" * 10 + "|")
    for one in found:
        print(
            f"| {one['driver']} | {one['first_s']:.2f} s | {one['next_s']:.2f} s | {one['medium_ms']:.1f} ms "
            f"| {one['write_ms']:.1f} ms | {one['small_ms']:.0f} ms | {one['remove_s']:.2f} s "
            f"| {one['disk_mb']:.1f} MB | {one['changed_mb']:.1f} MB | {one['cached'] * 100:.0f} % |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

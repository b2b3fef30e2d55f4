"""What does a container cost by each storage driver: until its first command has run, at the first write to a large
file of a layer, and on the disk?

A store with one image, a minimal Debian with a file of 100 MB on top; Btrfs on a file of its own if root can mount it.
`first` is the first container of the image on this store, which has to copy or convert what later ones find; `next` is
each later one, the median of the rounds. `write` opens the large file and writes one byte, as the container sees it.
`disk` is what one more container takes, changes aside. Not part of the suite: containers are compared, not mounts.
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
_WRITE: Final = """
import time, os
began = time.perf_counter()
fd = os.open("/large", os.O_WRONLY); os.pwrite(fd, b"x", 0); os.close(fd)
print(time.perf_counter() - began)
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
    script = f"dd if=/dev/urandom of=/large bs=1M count={megabytes} 2>/dev/null; rm /etc/issue"  # a whiteout as well
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
    writes = []
    for _ in range(rounds):
        command = ("run", "--rm", "--driver", driver, "bench:1", "python3", "-c", _WRITE)
        writes.append(float(_unionfs(root, *command)))
    names = [f"{driver}-first", *(f"{driver}-{number}" for number in range(rounds))]
    _unionfs(root, "rm", *names)
    return {
        "driver": driver,
        "first_s": round(first, 3),
        "next_s": round(statistics.median(later), 3),
        "write_ms": round(statistics.median(writes) * 1000, 2),
        "disk_mb": round(disk / 1e6, 2),
    }


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
    print("| driver | first container | next ones | first write, 100 MB file | disk for one more |")
    print("|---|---|---|---|---|")
    for one in found:
        print(
            f"| {one['driver']} | {one['first_s']:.2f} s | {one['next_s']:.2f} s | {one['write_ms']:.2f} ms "
            f"| {one['disk_mb']:.1f} MB |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

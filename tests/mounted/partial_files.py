"""Files that are copied up in part, exercised for hours: to be started by hand.

    python -m tests.mounted.partial_files [--minutes N] [--seed N] [--directory DIR]

Round after round, lower files of 70 KiB to 3 MiB are changed on a mount with --partial-from 64K as random_io says, each
beside a plain copy: read, written, mapped, cut, punched, copied. In every second round the daemon is killed again and
again. At the end of a round the files are completed; the upper's must equal the copies, and the lower be unchanged.

It ends at the first difference, and leaves the round's directory then.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.fuse.kernel import random_io
from tests.support import chaos
from tests.support.timing import limit

_FILES: Final = 6
_STEPS: Final = 400
_UNIONFS: Final = (sys.executable, "-m", "unionfs")
_SIZES: Final = (70_000, 3_000_000)


def _round(base: Path, seed: int, *, with_kills: bool) -> int:
    """Returns how often the daemon was killed. Raises: AssertionError, CalledProcessError."""
    dice = random.Random(seed)
    for name in ("lower", "upper", "work", "merged", "plain"):
        (base / name).mkdir()
    names = [name for number in range(_FILES) for name in (str(number), f"{number}.other")]
    for name in names:
        content = dice.randbytes(dice.randrange(*_SIZES))
        for place in ("lower", "plain"):
            (base / place / name).write_bytes(content)
    shutil.copytree(base / "lower", base / "before")
    branches = [f"--{name}={base / name}" for name in ("lower", "upper", "work")]
    merged = os.fspath(base / "merged")
    subprocess.run(
        [*_UNIONFS, "mount", *branches, "--partial-from=64K", f"--log={base / 'log'}", merged],
        check=True,
        timeout=limit(60),
    )
    killer = chaos.Killer(chaos.mount(f"{base}/"), "50-500", seed).start() if with_kills else None
    try:
        numbers = [str(number) for number in (seed, _STEPS, _SIZES[1])]
        working = [
            subprocess.Popen(
                [sys.executable, random_io.__file__, base / "merged" / name, base / "plain" / name, *numbers]
            )
            for name in names[::2]
        ]
        codes = [one.wait() for one in working]
    finally:
        kills = killer.stop() if killer is not None else 0
        subprocess.run([*_UNIONFS, "umount", "--complete", merged], check=True, timeout=limit(120))
    assert not any(codes), codes
    for name in names:
        assert (base / "lower" / name).read_bytes() == (base / "before" / name).read_bytes(), f"the lower's {name}"
        upper = base / "upper" / name
        if upper.exists():
            assert upper.read_bytes() == (base / "plain" / name).read_bytes(), f"the upper's {name}"
    assert " ERROR " not in (base / "log").read_text()
    return kills


def main() -> int:
    """Run the program. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mounted.partial_files")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", help="where to mount (default: a new one below /var/tmp)")
    arguments = parser.parse_args()
    until, seed, kills = time.monotonic() + arguments.minutes * 60, arguments.seed, 0
    base = Path(tempfile.mkdtemp(dir=arguments.directory or "/var/tmp", prefix="partial-"))
    while time.monotonic() < until:
        place = base / str(seed)
        place.mkdir()
        kills += _round(place, seed, with_kills=seed % 2 == 0)
        shutil.rmtree(place)
        seed += 1
    base.rmdir()
    rounds = seed - arguments.seed
    print(f"{rounds} rounds, {rounds * _FILES * _STEPS} steps, {kills} kills: all is right")
    return 0


if __name__ == "__main__":
    sys.exit(main())

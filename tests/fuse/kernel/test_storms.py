"""Whole trees changed on a mount, where each file may be copied up before it is asked for (see core.deferred)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.core.native import Native
from tests.core.snapshots import Snapshot, differences, snapshot
from tests.core.stack import staged
from tests.core.trees import tree
from tests.fuse.kernel.engine_process import Mount
from tests.support import process

FILES = 300
SIZES = (0, 1, 7, 4096, 5000, 20_000, 64 << 10, 100_000)

# What is done to each file, in the order of the union's listing, as find(1) and chmod -R go.
CHANGES: dict[str, str] = {
    "chmod": "os.chmod(path, 0o600)",
    "append": "fd = os.open(path, os.O_WRONLY | os.O_APPEND); os.write(fd, b'appended'); os.close(fd)",
    "sed -i": "open('t', 'wb').write(open(path, 'rb').read()[::-1]); os.chmod('t', 0o640); os.rename('t', path)",
    "every second": "number % 2 or os.chmod(path, 0o600)",
    "chmod, append and rename by turns": (
        "os.chmod(path, 0o600) if number % 8 < 5 else open(path, 'ab').write(b'!') if number % 8 < 7 "
        "else os.rename(path, path + '~')"
    ),
    "two directories by turns": "os.chmod(path, 0o600); os.chmod(path.replace('d/', 'e/'), 0o640)",
}
WALK = """import os, sys
assert set(os.listdir('d')) == set(sys.argv[1:])
for number, name in enumerate(sys.argv[1:]):
    path = 'd/' + name
    if os.path.isfile(path):
        {change}
"""


@pytest.fixture
def lower(scratch: Path) -> Path:
    """Directories with files of mixed sizes, some of several names, set-user-id, with attributes."""
    layer = tree(scratch / "lower", "d/@77.000000007 d/sub/f=1 d/link->sub e/@88.000000008")
    for directory in ("d", "e"):
        for number in range(FILES):
            path = layer / directory / f"file{number}"
            path.write_bytes(bytes([number % 251]) * SIZES[number % len(SIZES)])
            if number % 10 == 9:
                os.setxattr(path, "user.k", b"v%d" % number)
            if number % 30 == 29:
                os.link(path, path.with_name(f"other{number}"))
            path.chmod((0o644, 0o644, 0o755, 0o4755)[number // 50 % 4])
            os.utime(path, ns=(10**18, 10**18 + number))
    for directory, seconds in (("d", 77), ("e", 88)):
        os.utime(layer / directory, ns=(seconds * 10**9, seconds * 10**9))
    return layer


@pytest.mark.parametrize("change", CHANGES)
def test_changing_many_files_gives_the_same_as_in_a_plain_directory(
    change: str, lower: Path, scratch: Path, mount: Callable[..., Mount]
) -> None:
    """Down to the times of directories; and nothing in the work directory once nobody asks any more."""
    plain = scratch / "plain"
    process.run(["cp", "-a", str(lower), str(plain)])
    code = WALK.format(change=CHANGES[change])
    union = mount(lower)
    names = os.listdir(union.path / "d")
    union.python(code, *names)
    process.run([sys.executable, "-I", "-S", "-c", code, *names], cwd=plain)
    assert differences(shown(plain), shown(union.path)) == ""
    assert left_when_idle(scratch / "work") == []


def test_chmod_of_a_whole_tree(lower: Path, scratch: Path, mount: Callable[..., Mount]) -> None:
    plain = scratch / "plain"
    process.run(["cp", "-a", str(lower), str(plain)])
    union = mount(lower)
    for directory in (plain, union.path):
        process.run(["chmod", "-R", "u=rwX,go=", str(directory)])
    assert differences(shown(plain), shown(union.path)) == ""
    assert left_when_idle(scratch / "work") == []


def test_nothing_is_copied_ahead_with_strict_durability(
    lower: Path, scratch: Path, mount: Callable[..., Mount]
) -> None:
    """Whatever is in the work directory after an answer was put there for who asked, and is gone by then."""
    union = mount(lower, durability="strict")
    code = f"""import glob, os
for name in os.listdir('d')[:30]:
    os.chmod('d/' + name, 0o700)
    found = glob.glob({str(scratch)!r} + '/work/live-*/t*')
    assert not found, found
"""
    union.python(code)


def shown(directory: Path) -> Snapshot:
    """All below the directory. It itself is the upper's, made just now."""
    return {path: snap for path, snap in snapshot(Native(directory)).items() if path}


def left_when_idle(work: Path) -> list[str]:
    """What is staged; what the daemon has not removed yet is waited for."""
    for _ in range(500):
        if not staged(work):
            break
        time.sleep(0.01)
    return staged(work)

"""A build that is killed or interrupted at each step, or for which the disk is full: the store is whole, and the next
build is right.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.build.conftest import BASE, Builder
from tests.support import process
from tests.support.timing import limit

TEXT = """\
FROM tiny:1 AS a
COPY big /a/
RUN --mount=type=bind,target=/ctx cat /ctx/big > /copied; rm /data/file
FROM tiny:1 AS b
RUN --mount=type=secret,id=s head -c 3000000 /dev/urandom > /b
FROM a
COPY --from=b /b /
WORKDIR /w
RUN sleep 0.3; touch done
"""


def _left(builder: Builder) -> list[Path]:
    return list((builder.root / "aside").iterdir())


@pytest.mark.parametrize(
    ("builder", "number", "steps"),
    [
        ("root", signal.SIGKILL, ("COPY big", "RUN --mount=type=secret")),
        ("ordinary", signal.SIGKILL, ("RUN --mount=type=bind", "COPY --from=b", "RUN sleep")),
        ("one-id", signal.SIGKILL, ("RUN --mount=type=bind", "WORKDIR")),
        ("ordinary", signal.SIGINT, ("COPY big", "RUN --mount=type=secret", "RUN sleep")),
        ("ordinary", signal.SIGTERM, ("RUN --mount=type=bind",)),
    ],
    indirect=["builder"],
)
def test_killed(builder: Builder, number: signal.Signals, steps: tuple[str, ...]) -> None:
    """When it has said that it begins a step."""
    context = builder.context(TEXT, {"big": os.urandom(2_000_000)})
    words = ["build", "--no-cache", "-t", "t:killed", "--secret", "id=s,env=HOME", context]
    env = {"UNIONFS_ROOT": os.fspath(builder.root)}
    for step in steps:
        running = builder.user.popen([*builder.user.unionfs_cmd, *map(str, words)], env=env)
        assert running.stdout is not None
        assert any(f": {step}" in line for line in running.stdout), step
        if number == signal.SIGKILL:
            running.kill()
        else:
            os.killpg(running.pid, number)
        running.communicate(timeout=limit(60))
        deadline = time.monotonic() + limit(40)
        while _builds(builder) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _builds(builder) == [], "no container outlives its build"
        if number == signal.SIGINT:
            assert running.returncode == 130
            assert _left(builder) == []
    assert "t/killed" not in builder("images").stdout
    builder("build", "-t", "t:1", "--secret", "id=s,env=HOME", context)
    assert builder.sh("ls /w/done /a/big /copied; ls /data").count("file") == 0
    assert builder.is_clean()


def _builds(builder: Builder) -> list[str]:
    """Mounts of builds, of any namespace, and their processes."""
    found = []
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = status.read_bytes()
            mounts = (status.parent / "mountinfo").read_bytes()
        except OSError:
            continue
        if b"unionfs:build " in mounts and os.fsencode(builder.root) in mounts:
            found.append(command.decode(errors="replace"))
    return found


def test_a_full_disk(user_builder: Builder, tiny_tar: Path, scratch: Path) -> None:
    """COPY, the command of RUN, and packing what it has written fail with an error that says so; nothing is left."""
    small = scratch / "small"
    small.mkdir()
    process.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", small])
    user_builder.user.own(small)
    build = Builder(user_builder.user, small / "store", scratch)
    build("import", "-q", tiny_tar, BASE)
    big = {"big": os.urandom(3 << 20)}
    room = os.statvfs(small)
    (small / "filler").write_bytes(bytes(room.f_bavail * room.f_frsize - (5 << 20)))
    for line, status, said in (
        ("COPY big /big", 125, "Containerfile:2: building failed"),
        ("RUN head -c 3500000 /dev/urandom > /big", 125, "RUN head -c 3500000 /dev/urandom > /big: building failed"),
        ("RUN head -c 9000000 /dev/urandom > /big", 1, "it returned 1"),
    ):
        done = build.build(f"FROM tiny:1\n{line}\n", files=big, check=False)
        assert (done.returncode, said in done.stderr, "No space left on device" in done.stderr) == (status, True, True)
        assert status == 1 or "unionfs image prune removes what no image needs" in done.stderr
        assert _left(build) == []
    (small / "filler").unlink()
    build.build("FROM tiny:1\nCOPY big /big\nRUN wc -c < /big > /size\n", files=big)
    assert build.sh("cat /size") == f"{3 << 20}\n"
    assert build.is_clean()

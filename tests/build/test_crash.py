"""A build that is killed, or interrupted, at each step: the store is whole, and the next build is right."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.build.conftest import Builder
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
        process = builder.user.popen([*builder.user.unionfs_cmd, *map(str, words)], env=env)
        assert process.stdout is not None
        assert any(f": {step}" in line for line in process.stdout), step
        if number == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, number)
        process.communicate(timeout=limit(60))
        deadline = time.monotonic() + limit(40)
        while _builds(builder) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _builds(builder) == [], "no container outlives its build"
        if number == signal.SIGINT:
            assert process.returncode == 130
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

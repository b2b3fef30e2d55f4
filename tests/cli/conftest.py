"""Containers from images for tests: a store of the test's own, with an image of a minimal Debian.

box    `box("run", "-d", "debian:1", ...)` is `unionfs run -d debian:1 ...` as the test's user
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.timing import limit
from tests.support.users import User

Box = Callable[..., "subprocess.CompletedProcess[str]"]

TIMEOUT_S = 120.0
SETTINGS = (
    "ENV COLOUR=red",
    "ENV SIZE=1",
    'ENTRYPOINT ["/bin/sh", "-c"]',
    'CMD ["echo $COLOUR $SIZE; pwd"]',
    "WORKDIR /srv/app",
    "VOLUME /etc/apt",
)


@pytest.fixture(scope="session")
def debian_archives(debian_tar: Path, run_dir: Path) -> dict[str, Path]:
    """Stores that have debian:1 and set:1 (the same with SETTINGS), by kind of user. Filled by `box`."""
    return {}


@pytest.fixture
def box(user: User, debian_tar: Path, debian_archives: dict[str, Path], fuse_device: Path) -> Iterator[Box]:
    """`unionfs VERB ...` as the user; afterwards no container is left."""
    home = debian_archives.get(user.kind)
    is_new = home is None
    if home is None:
        home = debian_archives[user.kind] = user.home / "images"
        with debian_tar.open("rb") as tar:
            made = subprocess.run(
                [*user.prefix, *user.unionfs_cmd, "import", "--root", home, "--compression", "none", "-", "debian:1"],
                stdin=tar, env=dict(user.env), cwd=user.home, capture_output=True, text=True,
                timeout=limit(300), check=False,
            )  # fmt: skip
        assert made.returncode == 0, made.stderr
    root = home

    def unionfs(verb: str, *words: str | os.PathLike[str], **options: object) -> subprocess.CompletedProcess[str]:
        argv = [*user.unionfs_cmd, verb, *words]
        environment = {"UNIONFS_ROOT": os.fspath(root)}
        return user.run(argv, env=environment, timeout_s=TIMEOUT_S, **options)  # type: ignore[arg-type]

    if is_new:
        unionfs("run", "--name", "made", "debian:1", "true")
        unionfs("commit", "made", "set:1", *(word for change in SETTINGS for word in ("-c", change)))
        unionfs("rm", "made")
    yield unionfs
    left = [one["id"] for one in json.loads(unionfs("ps", "-a", "--json").stdout)]
    if left:
        unionfs("rm", "-f", *left)

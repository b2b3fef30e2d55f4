"""Containers for tests: a Debian root filesystem for each user, `unionfs run`, and the proof that nothing stays.

user      root, then an ordinary user, with containers of this test file alone
debian    a minimal Debian of the test's user, unpacked once per run; tests must not change it
run       `run(*ARGUMENTS)` is `unionfs run --rm ARGUMENTS` as the test's user
tidy      (every test) no process and no mount of ours is left behind
"""

from __future__ import annotations

import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import rootfs
from tests.support.timing import limit
from tests.support.users import User

Run = Callable[..., "subprocess.CompletedProcess[str]"]

_POSTINST = """\
#!/bin/sh
set -e
chown games:games /usr/share/greeting/text
# On a view of the host as an ordinary user has it, nobody may read this, and no group can be made.
if cat /etc/gshadow >/dev/null 2>&1; then groupadd --system greeters; fi
"""

_SETTLING_S = 20.0
"""How long processes may take to go once the one that was waited for has gone."""


@pytest.fixture(scope="session")
def unpacked(run_dir: Path) -> dict[str, Path]:
    """The root filesystems of this run, by kind of user. Filled by `debian`."""
    return {}


@pytest.fixture
def user(user: User, request: pytest.FixtureRequest) -> User:
    """The state is each test file's own: what one leaves when it fails is not another one's failure."""
    state = user.home / f".state-{request.node.path.stem}"
    return replace(user, env={**user.env, "XDG_DATA_HOME": os.fspath(state)})


@pytest.fixture
def debian(user: User, unpacked: dict[str, Path], run_dir: Path, fuse_device: Path) -> Path:
    """A minimal Debian, owned as `user`'s containers need it."""
    if user.kind not in unpacked:
        try:
            unpacked[user.kind] = rootfs.unpack(rootfs.debian_tar(), run_dir / f"debian-{user.kind}", user)
        except rootfs.NoRootfsError as why:
            pytest.skip(str(why))
    return unpacked[user.kind]


@pytest.fixture(scope="session")
def package(run_dir: Path) -> Path:
    """A Debian package built here; installing it gives a file to another user and makes a group."""
    tree = run_dir / "greeting"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: greeting\nVersion: 1.0\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\n"
        "Depends: passwd\nDescription: a text\n"
    )
    (tree / "DEBIAN/postinst").write_text(_POSTINST)
    (tree / "DEBIAN/postinst").chmod(0o755)
    (tree / "usr/share/greeting").mkdir(parents=True)
    (tree / "usr/share/greeting/text").write_text("hello\n")
    built = run_dir / "greeting.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", tree, built], check=True, capture_output=True, timeout=limit(60)
    )
    built.chmod(0o644)
    return built


@pytest.fixture
def run(user: User, tidy: None) -> Run:
    """`unionfs run --rm ARGUMENTS` as the test's user; keyword arguments are those of User.run."""

    def run_container(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        return user.run([*user.unionfs_cmd, "run", "--rm", *arguments], **options)  # type: ignore[arg-type]

    return run_container


@pytest.fixture
def tidy(user: User) -> Iterator[None]:
    """After the test nothing of its containers is left: no process, no mount, no directory of an unwanted container."""
    yield
    left = wait_until_gone(user)
    assert not left, f"processes are left: {left}"
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if os.fspath(user.home) in line]


def wait_until_gone(user: User) -> dict[int, str]:
    """The launcher's processes of `user`, once they have had their time to go."""
    deadline = time.monotonic() + limit(_SETTLING_S)
    while (left := processes(user)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def processes(user: User) -> dict[int, str]:
    """The launcher's processes of `user`, init and daemons among them: pid -> name. They have the user's home. What
    a parent of mounts has forked shows no environment, but a mountpoint in that directory, or a command line with a
    path beside it."""
    home, mountpoint = f"HOME={user.home}".encode(), f"unionfs mount {user.home}/".encode()
    beside = f"{user.home.parent}/".encode()
    found: dict[int, str] = {}
    parents: dict[int, int] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        pid = int(directory.name)
        try:
            name = (directory / "comm").read_text().strip()
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
            environment = (directory / "environ").read_bytes().split(b"\0")
            command_line = (directory / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if fields[0] == "Z":
            continue
        parents[pid] = int(fields[1])
        is_users = home in environment or command_line.startswith(mountpoint) or name == "unionfs-init"
        is_users |= command_line.startswith(b"unionfs run ") and beside in command_line
        if name.startswith("unionfs") and is_users:
            found[pid] = name
    # An init shows no environment; it is the user's if its parent is.
    return {pid: name for pid, name in found.items() if name != "unionfs-init" or parents[pid] in found}


def containers(user: User) -> list[Path]:
    """The directories of the user's containers in this test file."""
    return sorted(path for path in (state(user) / "containers").glob("[0-9a-f]*") if stat.S_ISDIR(path.stat().st_mode))


def state(user: User) -> Path:
    """Where the user's containers are."""
    return Path(user.env["XDG_DATA_HOME"]) / "unionfs"

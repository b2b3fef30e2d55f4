"""Users that mount with a parent that no other test has, and what can be seen of it."""

from __future__ import annotations

import json
import os
import secrets
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.mountinfo import detach, mount_at
from tests.support.timing import limit
from tests.support.users import User

PATIENCE_S = 30.0

_ADDRESS = """
from unionfs.mount_parent import identity
print(identity.address(identity.facts()).hex())
"""


@dataclass
class Caller:
    """A user, in an environment that makes its parent one of its own: each PYTHON variable is part of its identity."""

    user: User
    directory: Path
    linger_s: str = "20"
    token: str = field(default_factory=lambda: secrets.token_hex(4))
    mountpoints: list[Path] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        return {**self.user.env, "PYTHONTESTTOKEN": self.token, "UNIONFS_LINGER": self.linger_s}

    def run(
        self, *argv: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return self.user.run(argv, env={**self.env, **(env or {})}, cwd=cwd, check=False)

    def unionfs(
        self, *argv: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return self.run(*self.user.unionfs_cmd, *argv, env=env, cwd=cwd)

    def directories(self, name: str) -> tuple[Path, Path]:
        """A new lower with a file, and a mountpoint."""
        lower, mountpoint = self.directory / f"{name}.lower", self.directory / name
        for made in (lower, mountpoint):
            made.mkdir()
        (lower / "file").write_text(name)
        self.user.own(lower, mountpoint)
        self.mountpoints.append(mountpoint)
        return lower, mountpoint

    def mount(self, name: str, *before: str | Path, env: Mapping[str, str] | None = None) -> Path:
        """Mount in the form of fuse-overlayfs, `before` before the command. Returns the mountpoint."""
        lower, mountpoint = self.directories(name)
        done = self.run(*before, *self.user.unionfs_cmd, "-o", f"lowerdir={lower}", mountpoint, env=env)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert self.run("cat", mountpoint / "file").stdout == name
        return mountpoint

    def stats(self, mountpoint: Path) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.unionfs("stats", "--json", mountpoint).stdout)
        return found

    def started_by(self, mountpoint: Path) -> str:
        return str(self.stats(mountpoint)["started_by"])

    def address(self) -> bytes:
        """The name of the parent's socket."""
        return bytes.fromhex(self.run(sys.executable, "-c", _ADDRESS).stdout)

    def parents(self) -> list[int]:
        """The processes that listen under that name."""
        name = self.address().replace(b"\0", b"@", 1).decode()
        sockets = {
            f"socket:[{words[6]}]"
            for line in Path("/proc/net/unix").read_text().splitlines()[1:]
            if (words := line.split())[-1] == name and words[3] == "00010000"  # it listens
        }
        found = []
        for directory in Path("/proc").glob("[0-9]*/fd"):
            with suppress(OSError):  # the process has ended
                if any(_links_to(fd, sockets) for fd in directory.iterdir()):
                    found.append(int(directory.parts[2]))
        return sorted(found)

    def parent(self) -> int:
        """The one parent. /proc/net/unix, which is read in pieces, may leave it out once."""
        deadline = time.monotonic() + limit(PATIENCE_S)
        while len(found := self.parents()) != 1:
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        return found[0]

    def end(self) -> None:
        for mountpoint in self.mountpoints:
            while mount_at(mountpoint) is not None:
                detach(mountpoint)
        for pid in self.parents():
            os.kill(pid, 9)


def _links_to(fd: Path, wanted: set[str]) -> bool:
    try:
        return os.readlink(fd) in wanted
    except OSError:  # closed meanwhile
        return False


@contextmanager
def caller_of(user: User, scratch: Path) -> Iterator[Caller]:
    """A caller whose mounts and whose parent are gone afterwards."""
    caller = Caller(user, scratch)
    try:
        yield caller
    finally:
        caller.end()


def ends(pid: int) -> bool:
    """Whether the process ends in time."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], limit(PATIENCE_S))[0])
    finally:
        os.close(pidfd)

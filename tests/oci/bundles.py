"""Bundles for tests, and the runtimes that run them: ours, runc and crun."""

from __future__ import annotations

import copy
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import process
from tests.support.timing import limit
from tests.support.users import User
from unionfs.oci.cgroups import hierarchies

CAPABILITIES: Final = ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_AUDIT_WRITE"]
_SETS: Final = ("bounding", "effective", "permitted")

CONFIG: Final[dict[str, Any]] = {
    "ociVersion": "1.0.2",
    "root": {"path": "rootfs", "readonly": True},
    "hostname": "boxed",
    "process": {
        "user": {"uid": 0, "gid": 0},
        "args": ["true"],
        "env": ["PATH=/usr/bin:/bin", "TERM=xterm"],
        "cwd": "/",
        "capabilities": dict.fromkeys(_SETS, CAPABILITIES),
        "noNewPrivileges": True,
    },
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        },
    ],
    "linux": {
        "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
        "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/scsi", "/sys/firmware"],
        "readonlyPaths": ["/proc/bus", "/proc/sys", "/proc/sysrq-trigger"],
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
    },
}
"""What `runc spec` writes, without sysfs and cgroups."""

_PURE_V2: Final = (
    "umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec crun --cgroup-manager=disabled"
)


class Bundle:
    """A bundle below `where`, with a root filesystem that other bundles may share."""

    def __init__(self, where: Path, rootfs: Path) -> None:
        self.where = where
        self.config = copy.deepcopy(CONFIG)
        self.config["root"]["path"] = os.fspath(rootfs)
        self.config["linux"]["cgroupsPath"] = f"/unionfs-test-{secrets.token_hex(4)}"

    def cgroups(self) -> list[str]:
        """The directories of the container's control groups that there are."""
        path = self.config["linux"]["cgroupsPath"]
        return [found for one in hierarchies() if os.path.isdir(found := one.directory(path, default=""))]

    @property
    def process(self) -> dict[str, Any]:
        found: dict[str, Any] = self.config["process"]
        return found

    @property
    def linux(self) -> dict[str, Any]:
        found: dict[str, Any] = self.config["linux"]
        return found

    def mount(self, destination: str, kind: str, source: str, *options: str) -> None:
        entry = {"destination": destination, "type": kind, "source": source, "options": list(options)}
        self.config["mounts"].append(entry)

    def shell(self, script: str) -> None:
        self.process["args"] = ["sh", "-c", script]

    def write(self) -> Path:
        self.where.mkdir(exist_ok=True)
        (self.where / "config.json").write_text(json.dumps(self.config))
        return self.where


class Runtime:
    """A runtime that keeps the state of its containers below `where`."""

    def __init__(self, name: str, where: Path, user: User) -> None:
        self.name = name
        self.user = user
        self._root = where / f"state-{name}-{secrets.token_hex(3)}"
        self.errors = where / f"errors-{name}"  # of `begin`

    def argv(self, *words: str | Path) -> list[str]:
        """The command line of a command."""
        own = [sys.executable, "-m", "unionfs", "oci"]
        flags = ["--root", os.fspath(self._root), *(os.fspath(word) for word in words)]
        if self.name == "crun":
            inner = ["sh", "-c", f'{_PURE_V2} "$@"', "crun", *flags]
            return [*self.user.prefix, "unshare", "--mount", "--propagation", "private", "--cgroup", *inner]
        return [*self.user.prefix, *(own if self.name == "ours" else ["runc"]), *flags]

    def __call__(
        self, *words: str | Path, check: bool = True, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return process.run(self.argv(*words), cwd=self.user.home, env=self.user.env, check=check, stdin=stdin)

    def begin(self, *words: str | Path, output: Path | None = None) -> None:
        """Run a command that leaves a container behind, whose output would hold pipes open; it goes to a file."""
        with open(output or os.devnull, "wb") as file, self.errors.open("ab") as errors:
            done = subprocess.run(
                self.argv(*words),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=errors,
                cwd=self.user.home,
                env=self.user.env,
                timeout=limit(60),
                check=False,
            )
        assert done.returncode == 0, self.errors.read_text()

    def run(self, bundle: Bundle, *, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run the bundle in the foreground. Its standard input is a pipe: crun gives the machine's /dev/null away."""
        return self("run", "--bundle", bundle.write(), f"c{secrets.token_hex(4)}", check=check, stdin=stdin)

    def clean_up(self) -> None:
        """Remove the containers that a failed test has left."""
        for name in self("list", "-q").stdout.split():
            self("delete", "--force", name, check=False)

    def state(self, identity: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("state", identity).stdout)
        return found


RuntimeFor = Callable[[str], Runtime]


def need(name: str) -> None:
    """Skip where a runtime is not installed."""
    if name != "ours" and shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.skip(f"{name} is not installed")

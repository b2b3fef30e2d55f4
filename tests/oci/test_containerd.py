"""Debian's containerd: its shim runs our runtime (BinaryName), on a directory as the root filesystem."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.oci.test_engines import our_runtime
from tests.support import process, tiny
from tests.support.timing import limit
from tests.support.users import User

pytestmark = pytest.mark.runs_as("root")

_PATIENCE_S: Final = 60.0
_CONFIG: Final = """\
version = 2
root = "{where}/root"
state = "{where}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{where}/c.sock"
[ttrpc]
  address = "{where}/c.ttrpc"
"""


class Ctr:
    """containerd of this test, and `ctr` on it."""

    def __init__(self, where: Path, runtime: Path, rootfs: Path) -> None:
        self.where = where
        self.runtime = ["--runc-binary", os.fspath(runtime), "--runc-root", f"{where}/runc"]
        self._rootfs = os.fspath(rootfs)
        (where / "config.toml").write_text(_CONFIG.format(where=where))

    def argv(self, *words: str) -> list[str]:
        return ["ctr", "-a", f"{self.where}/c.sock", *words]

    def __call__(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return process.run(self.argv(*words), timeout_s=_PATIENCE_S, check=check)

    def run_argv(self, *flags: str, name: str, command: list[str]) -> list[str]:
        return self.argv("run", *self.runtime, "--rootfs", *flags, self._rootfs, name, *command)

    def run(self, *flags: str, name: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        return process.run(self.run_argv(*flags, name=name, command=command), timeout_s=_PATIENCE_S, check=False)


@pytest.fixture(scope="module")
def ctr(root_user: User, run_dir: Path, rootfs: Path) -> Iterator[Ctr]:
    if missing := [name for name in ("containerd", "ctr", "runc") if shutil.which(name) is None]:
        pytest.skip(f"not installed: {' '.join(missing)}")
    where = run_dir / "oc"
    where.mkdir()
    made = Ctr(where, our_runtime(where, root_user), rootfs)
    with (where / "containerd.log").open("wb") as log:
        server = subprocess.Popen(["containerd", "-c", where / "config.toml"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + limit(_PATIENCE_S)
        while made("version", check=False).returncode:
            assert time.monotonic() < deadline, (where / "containerd.log").read_text()
            time.sleep(0.1)
        yield made
    finally:
        for name in made("container", "ls", "-q").stdout.split():
            made("task", "rm", "-f", name, check=False)
            made("container", "rm", name, check=False)
        server.terminate()
        server.wait()


def test_commands_and_their_exit_codes(ctr: Ctr) -> None:
    script = "id -u; echo $A; grep -e Seccomp: /proc/self/status; exit 7"
    flags = ("--rm", "--env", "A=1", "--seccomp")
    done = ctr.run(*flags, name="codes", command=["sh", "-c", script])
    assert (done.stdout, done.returncode) == ("0\n1\nSeccomp:\t2\n", 7), done.stderr
    absent = ctr.run("--rm", name="absent", command=["nosuch"])
    assert absent.returncode == 1
    assert "executable file not found in $PATH" in absent.stderr
    ctr("container", "rm", "absent", check=False)
    assert ctr("container", "ls", "-q").stdout == ""


def test_an_image_that_unionfs_has_built(ctr: Ctr, root_user: User, scratch: Path) -> None:
    env = {"UNIONFS_ROOT": os.fspath(scratch / "store")}

    def unionfs(*words: str | Path) -> None:
        root_user.run([*root_user.unionfs_cmd, *words], env=env, timeout_s=_PATIENCE_S)

    unionfs("import", "-q", tiny.make(scratch / "tiny.tar"), "tiny:1")
    (scratch / "Containerfile").write_text(
        "FROM tiny:1\nRUN rm /data/file && ln /etc/motd /hard && chown 5:60 /hard\n"
        'COPY Containerfile /copied\nENV A=b\nCMD ["sh", "-c", "stat -c %u:%g /etc/motd; ls /data /copied; echo $A"]\n'
    )
    unionfs("build", "-q", "-t", "localhost/built:1", scratch)
    unionfs("save", "-o", scratch / "built.tar", "localhost/built:1")
    ctr("image", "import", "--snapshotter", "native", f"{scratch}/built.tar")
    done = ctr("run", "--rm", "--snapshotter", "native", *ctr.runtime, "localhost/built:1", "built")
    assert done.stdout == "5:60\n/copied\n\n/data:\ndir\ngone\nkept\nlink\nsymlink\nb\n"


def test_a_life(ctr: Ctr) -> None:
    ctr.run("-d", name="box", command=["sleep", "1000"])
    assert ctr("task", "ls").stdout.splitlines()[1].split()[2] == "RUNNING"
    words = (
        "task",
        "exec",
        "--exec-id",
        "one",
        "--cwd",
        "/data",
        "box",
        "sh",
        "-c",
        "pwd; cat /proc/1/comm; exit 4",
    )
    done = ctr(*words, check=False)
    assert (done.stdout, done.returncode) == ("/data\nsleep\n", 4)
    assert len(ctr("task", "ps", "box").stdout.splitlines()) == 2
    ctr("task", "pause", "box")
    assert ctr("task", "ls").stdout.splitlines()[1].split()[2] == "PAUSED"
    ctr("task", "resume", "box")
    ctr("task", "kill", "-s", "KILL", "box")
    deadline = time.monotonic() + limit(_PATIENCE_S)
    while "STOPPED" not in ctr("task", "ls").stdout:
        assert time.monotonic() < deadline
    ctr("task", "rm", "box", check=False)
    ctr("container", "rm", "box")
    assert os.listdir(ctr.where / "runc" / "default") == []


def test_a_terminal(ctr: Ctr) -> None:
    command = " ".join(ctr.run_argv("--rm", "-t", name="tty", command=["sh", "-c", "'tty; test -c /dev/console'"]))
    done = process.run(["script", "-qec", command, "/dev/null"], timeout_s=_PATIENCE_S)
    assert "/dev/pts/0" in done.stdout

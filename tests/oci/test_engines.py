"""podman, buildah and containerd with our runtime: what their users do all day."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.launcher.terminals import terminal
from tests.support import tiny
from tests.support.podmans import need_podman
from tests.support.users import User

IMAGE: Final = "localhost/small:1"


def our_runtime(where: Path, user: User) -> Path:
    """`unionfs oci` as one program, which is how engines call a runtime."""
    program = where / "unionfs-oci"
    environment = f"PYTHONPATH='{user.env['PYTHONPATH']}'" if "PYTHONPATH" in user.env else ""
    program.write_text(f'#!/bin/sh\n{environment} exec {sys.executable} -m unionfs oci "$@"\n')
    program.chmod(0o755)
    return program


class Engine:
    """Podman of one user with stores of its own, on the kernel's own driver, with our runtime."""

    def __init__(self, user: User, where: Path) -> None:
        self.user = user
        self.where = where
        limits = 'default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]\n'  # root here may not have more
        containers = f"[containers]\n{limits}" if user.kind == "root" else ""
        (where / "containers.conf").write_text(
            f'{containers}[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        )
        self.env = {"CONTAINERS_CONF": str(where / "containers.conf")}
        self.store = ["--root", f"{where}/root", "--runroot", f"{where}/run", "--storage-driver", "vfs"]
        self.runtime = our_runtime(where, user)

    def argv(self, *words: str | Path) -> list[str | Path]:
        return ["podman", *self.store, "--runtime", self.runtime, *words]

    def run(self, *words: str | Path, check: bool = True) -> tuple[int, str, str]:
        done = self.user.run(self.argv(*words), env=self.env, timeout_s=240, check=check)
        return done.returncode, done.stdout, done.stderr

    def __call__(self, *words: str | Path, check: bool = True) -> str:
        return self.run(*words, check=check)[1].strip()


@pytest.fixture(scope="module", params=["root", "ordinary"])
def podman(request: pytest.FixtureRequest, run_dir: Path) -> Iterator[Engine]:
    need_podman()
    user: User = request.getfixturevalue(f"{request.param}_user")
    where = run_dir / f"e{request.param[0]}"  # podman wants its runroot short
    where.mkdir()
    tiny.make(where / "small.tar")
    user.own(where)
    made = Engine(user, where)
    try:
        made("import", "-q", where / "small.tar", IMAGE)
        yield made
    finally:
        for words in (("rm", "-af", "-t", "0"), ("unshare", "rm", "-rf", where / "root"), ("system", "migrate")):
            made(*words, check=False)


def test_commands_and_their_exit_codes(podman: Engine) -> None:
    words = ("run", "--rm", "--network=none", "-e", "A=1", "-w", "/data", "-u", "games", IMAGE)
    said = podman.run(*words, "sh", "-c", "id -u; pwd; echo $A; echo err >&2; exit 7", check=False)
    assert said == (7, "5\n/data\n1\n", "err\n")
    assert podman.run(*words, "nosuch", check=False)[0] == 127
    assert podman.run(*words, "/etc", check=False)[0] == 126


def test_what_podman_sets_up(podman: Engine) -> None:
    """Its filter of system calls, capabilities, devices, volumes, a read-only root, limits of processes."""
    given = podman.where / "given"
    given.mkdir(exist_ok=True)
    (given / "file").write_text("given\n")
    podman.user.own(given)
    script = (
        "grep -e Seccomp: /proc/self/status; cat /v/file; echo x > /v/new; echo x > /x; echo y > /tmp/y; cat /tmp/y;"
        "hostname; ulimit -n; mkdir /data/z; env | grep -c container=podman; echo > /dev/null; ls /proc/acpi | wc -l"
    )
    words = (
        "--read-only",
        "-v",
        f"{given}:/v:ro",
        "--hostname",
        "h",
        "--ulimit",
        "nofile=90:95",
        "--ulimit",
        "nproc=900:900",
        "--tmpfs",
        "/data",
    )
    status, out, err = podman.run("run", "--rm", "--network=none", *words, IMAGE, "sh", "-c", script, check=False)
    assert (status, out) == (0, "Seccomp:\t2\ngiven\ny\nh\n90\n1\n0\n"), err
    assert err.count("Read-only file system") == 2


def test_a_life(podman: Engine) -> None:
    script = "echo begun; touch /ready; trap 'exit 3' TERM; while :; do sleep 0.05; done"
    podman("run", "-d", "--name", "box", "--network=none", IMAGE, "sh", "-c", script)
    while podman.run("exec", "box", "test", "-e", "/ready", check=False)[0]:
        pass
    shown = json.loads(podman("inspect", "box"))[0]
    assert (shown["State"]["Status"], shown["OCIRuntime"]) == ("running", os.fspath(podman.runtime))
    assert podman.run("exec", "-e", "B=2", "-w", "/data", "-u", "5", "box", "sh", "-c", "pwd; echo $B; id -u; exit 4",
                      check=False)[:2] == (4, "/data\n2\n5\n")  # fmt: skip
    assert podman.run("exec", "box", "nosuch", check=False)[0] == 127
    assert podman("logs", "box") == "begun"
    if podman.user.kind == "root":
        podman("pause", "box")
        assert podman("inspect", "--format", "{{.State.Status}}", "box") == "paused"
        podman("unpause", "box")
    podman("stop", "-t", "60", "box")
    assert podman("wait", "box") == "3"
    podman("start", "box")
    podman("kill", "box")
    assert podman("wait", "box") == "137"
    podman("rm", "box")
    assert podman("ps", "-aq") == ""


def test_a_terminal(podman: Engine) -> None:
    line: list[str | Path] = ["env", *(f"{name}={value}" for name, value in podman.env.items())]
    line += podman.argv("run", "-it", "--rm", "--network=none", IMAGE, "sh")
    with terminal(podman.user, line, rows=33, columns=99) as screen:
        screen.expect("# ")
        screen.type("tty; exec sh -c 'stat -c %F /dev/tty; exit 5'\n")
        screen.expect("/dev/pts/0")
        assert screen.end() == 5


def test_a_pod_shares_namespaces(podman: Engine) -> None:
    if podman.user.kind == "root":
        pytest.skip("a pod of root gets a network, which needs more of the machine")
    podman(
        "pod", "create", "--name", "pod", "--network=none", "--infra-image", IMAGE, "--infra-command", "/bin/sleep 600"
    )
    try:
        podman("run", "-d", "--name", "one", "--pod", "pod", IMAGE, "sleep", "600")
        kinds = "for kind in net ipc uts; do readlink /proc/self/ns/$kind; done"
        assert podman("exec", "one", "sh", "-c", kinds) == podman(
            "run", "--rm", "--pod", "pod", IMAGE, "sh", "-c", kinds
        )
    finally:
        podman("pod", "rm", "-f", "-t", "0", "pod")


def test_limits(podman: Engine) -> None:
    """Where cgroups are ours they hold; without root on this kind of machine podman itself refuses or drops them."""
    if podman.user.kind != "root":
        pytest.skip("cgroups are root's here")
    podman("run", "-d", "--name", "tight", "--network=none", "-m", "32m", "--pids-limit", "20", IMAGE, "sleep", "600")
    pid = int(podman("inspect", "--format", "{{.State.Pid}}", "tight"))
    groups = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), path))
    if "memory" in groups:  # version 1
        assert Path(f"/sys/fs/cgroup/memory{groups['memory']}/memory.limit_in_bytes").read_text() == f"{32 << 20}\n"
        assert Path(f"/sys/fs/cgroup/pids{groups['pids']}/pids.max").read_text() == "20\n"
        assert "c 1:3 rwm" in Path(f"/sys/fs/cgroup/devices{groups['devices']}/devices.list").read_text()
    else:
        assert Path(f"/sys/fs/cgroup{groups['']}/memory.max").read_text() == f"{32 << 20}\n"
    podman("update", "--memory", "64m", "tight", check=False)
    podman("rm", "-f", "-t", "0", "tight")


@pytest.mark.parametrize("mode", ["keep-id", "nomap", "auto"])
def test_user_namespaces_of_podmans_own(podman: Engine, mode: str) -> None:
    if podman.user.kind == "root":
        pytest.skip("needs a range of ids for containers")
    said = podman(
        "run", "--rm", "--network=none", f"--userns={mode}", IMAGE, "sh", "-c", "id -u; stat -c %u /etc/passwd"
    )
    assert said == f"{podman.user.uid if mode == 'keep-id' else 0}\n0"


def test_images_are_built(podman: Engine) -> None:
    context = podman.where / "context"
    context.mkdir()
    (context / "Containerfile").write_text(
        f"FROM {IMAGE}\nRUN echo inside > /file && rm /data/gone\nUSER games\nRUN id -u\n"
    )
    podman.user.own(context)
    said = podman("build", "--network=none", "--isolation=oci", "-t", "localhost/built:1", context)
    assert "\n5\n" in said
    assert (
        podman(
            "run", "--rm", "--network=none", "localhost/built:1", "sh", "-c", "cat /file; ls /data/gone", check=False
        )
        == "inside"
    )
    env = podman.env
    line = ["buildah", *podman.store, "from", "--name", "work", "localhost/built:1"]
    podman.user.run(line, env=env)
    words: list[str | Path] = [
        "run",
        "--runtime",
        podman.runtime,
        "--network=none",
        "work",
        "sh",
        "-c",
        "id -u; exit 6",
    ]
    done = podman.user.run(["buildah", *podman.store, *words], env=env, check=False)
    assert (done.stdout, done.returncode) == ("5\n", 6)
    podman.user.run(["buildah", *podman.store, "rm", "work"], env=env)


def test_a_network_of_podmans_own(podman: Engine) -> None:
    """Podman connects the namespace of a created container, whose process cannot be traced by others."""
    if podman.user.kind == "root":
        pytest.skip("a bridge needs more of the machine")
    if shutil.which("slirp4netns") is None or not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("needs slirp4netns and /dev/net/tun")
    said = podman("run", "--rm", "--network=slirp4netns", IMAGE, "cat", "/proc/net/dev")
    assert "tap0:" in said

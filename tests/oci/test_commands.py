"""The commands of the runtime: states, errors, hooks, signals, exec, terminals, namespaces, limits, what is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.oci.bundles import Bundle, Runtime
from tests.support.timing import limit
from unionfs.oci.cgroups import hierarchies

pytestmark = pytest.mark.runs_as("root")

_FOREVER = "trap 'exit 3' TERM; while :; do sleep 0.05; done"


def _wait_for_status(runtime: Runtime, name: str, status: str) -> None:
    deadline = time.monotonic() + limit(60)
    while runtime.state(name)["status"] != status:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def box(ours: Runtime, bundle: Bundle) -> Iterator[str]:
    """A container that runs until it gets SIGTERM."""
    bundle.shell(_FOREVER)
    ours.begin("run", "--detach", "-b", bundle.write(), "box")
    yield "box"
    ours("delete", "--force", "box")


def test_states(ours: Runtime, bundle: Bundle, scratch: Path) -> None:
    """Every command in every state: what it does, or how it is refused; and nothing is left."""
    bundle.config["annotations"] = {"org.example": "x"}
    bundle.shell(f"echo begun > /dev/null; {_FOREVER}")

    def refused(*words: str) -> str:
        done = ours(*words, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr

    for command in (("state",), ("start",), ("kill",), ("delete",), ("exec",), ("ps",)):
        assert "container does not exist" in refused(*command, "box", *(("true",) if command == ("exec",) else ()))
    ours("delete", "--force", "box")
    ours.begin("create", "--bundle", bundle.write(), "--pid-file", scratch / "pid", "box")
    state = ours.state("box")
    pid = int((scratch / "pid").read_text())
    del state["created"]
    assert state == {
        "ociVersion": "1.2.0",
        "id": "box",
        "pid": pid,
        "status": "created",
        "bundle": os.fspath(bundle.where),
        "rootfs": bundle.config["root"]["path"],
        "annotations": {"org.example": "x"},
        "owner": "",
    }
    assert Path(f"/proc/{pid}/comm").read_text() == "unionfs-oci\n"
    assert Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0") == b"unionfs-oci", "the host's arguments are hidden"
    assert "container with id exists: box" in refused("create", "--bundle", os.fspath(bundle.where), "box")
    ours("start", "box")
    assert ours.state("box")["status"] == "running"
    assert Path(f"/proc/{pid}/comm").read_text() == "sh\n"
    assert "cannot start an already running container" in refused("start", "box")
    assert "that is not stopped: running" in refused("delete", "box")
    assert json.loads(ours("ps", "--format", "json", "box").stdout)[0] == pid
    assert ours("ps", "box").stdout.count("\n") >= 2
    assert [one["id"] for one in json.loads(ours("list", "--format", "json").stdout)] == ["box"]
    ours("pause", "box")
    assert ours.state("box")["status"] == "paused"
    assert "cannot exec in a paused container" in refused("exec", "box", "true")
    ours("resume", "box")
    assert "unknown signal" in refused("kill", "box", "NOSUCH")
    ours("kill", "box", "SIGTERM")
    _wait_for_status(ours, "box", "stopped")
    assert ours.state("box")["pid"] == 0
    assert "container not running" in refused("kill", "box")
    assert "cannot exec in a stopped container" in refused("exec", "box", "true")
    assert "has stopped" in refused("start", "box")
    ours("delete", "box")
    assert "container does not exist" in refused("state", "box")
    assert bundle.cgroups() == []


def test_hooks(ours: Runtime, bundle: Bundle, scratch: Path) -> None:
    """Each at its point, with the state as its input, in the namespaces and the root that the specification says."""
    script = scratch / "hook"
    script.write_text(
        f"#!/bin/sh\n/bin/cat > {scratch}/$NAME.json\nreadlink /proc/self/ns/mnt > {scratch}/$NAME.ns\n"
        f"echo $NAME >> {scratch}/order\n"
        f"[ ! -e {bundle.config['root']['path']}/proc/1 ] || touch {scratch}/$NAME.mounted\n"
    )
    script.chmod(0o755)
    names = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    hooks: dict[str, Any] = {
        name: [{"path": os.fspath(script), "args": ["hook", "x"], "env": [f"NAME={name}", "PATH=/bin"]}]
        for name in names
    }
    hooks["startContainer"] = [{"path": "/bin/sh", "args": ["sh", "-c", "cat > /tmp/state; touch /tmp/$(hostname)"]}]
    bundle.config["hooks"] = hooks
    bundle.mount("/tmp", "tmpfs", "tmpfs")
    bundle.process["args"] = ["sh", "-c", "cat /tmp/state; ls /tmp"]
    out = scratch / "out"
    ours.begin("create", "-b", bundle.write(), "box", output=out)
    assert (scratch / "order").read_text().split() == ["prestart", "createRuntime", "createContainer"]
    ours("start", "box")
    _wait_for_status(ours, "box", "stopped")
    ours("delete", "box")
    assert (scratch / "order").read_text().split() == list(names)
    states = {name: json.loads((scratch / f"{name}.json").read_text()) for name in names}
    assert [states[name]["status"] for name in names] == ["creating"] * 3 + ["running", "stopped"]
    assert {state["id"] for state in states.values()} == {"box"}
    assert "pid" not in states["poststop"]
    seen = {name: (scratch / f"{name}.ns").read_text() for name in names}
    assert seen["createContainer"] != seen["createRuntime"] == seen["poststart"] == seen["poststop"]
    assert (scratch / "createContainer.mounted").exists(), "it sees the container's mounts below the host's root"
    in_container, files = out.read_text().split("}", 1)
    assert json.loads(in_container + "}")["status"] == "created"
    assert files.split() == ["boxed", "state"]


@pytest.mark.parametrize("name", ["prestart", "createRuntime", "createContainer", "startContainer"])
def test_hooks_that_fail(ours: Runtime, bundle: Bundle, name: str) -> None:
    hook = {"path": "/bin/sh", "args": ["sh", "-c", "echo no such luck; exit 3"]}
    bundle.config["hooks"] = {name: [hook]}
    done = ours("run", "-b", bundle.write(), "box", check=False)
    assert done.returncode == 1
    assert f"error running {name} hook #0: /bin/sh: exit status 3" in done.stderr
    assert "no such luck" in done.stderr
    assert "does not exist" in ours("state", "box", check=False).stderr
    assert bundle.cgroups() == []


def test_late_hooks_that_fail_and_hooks_that_hang(ours: Runtime, bundle: Bundle) -> None:
    fails = {"path": "/bin/false"}
    bundle.config["hooks"] = {"poststart": [fails], "poststop": [fails]}
    bundle.process["args"] = ["true"]
    done = ours.run(bundle)
    assert done.stderr.count("level=warning") == 2
    bundle.config["hooks"] = {"prestart": [{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]}
    assert "ran past the timeout of 1 s" in ours.run(bundle, check=False).stderr


def test_exec(ours: Runtime, bundle: Bundle, box: str, scratch: Path) -> None:
    script = "pwd; echo $A; id; cat /proc/self/cgroup; for k in pid mnt net; do readlink /proc/self/ns/$k; done; exit 5"
    words = ("exec", "--cwd", "/data", "-e", "A=1", "-u", "5:60", "-g", "7", "--cap", "CAP_SYS_PTRACE")
    done = ours(*words, box, "sh", "-c", script, check=False)
    *said, pid, mount, network = done.stdout.splitlines()
    assert (said[:3], done.returncode) == (["/data", "1", "uid=5(games) gid=60(games) groups=60(games),7"], 5)
    first = ours.state(box)["pid"]
    assert [pid, mount, network] == [os.readlink(f"/proc/{first}/ns/{kind}") for kind in ("pid", "mnt", "net")]
    assert all(bundle.linux["cgroupsPath"] in line for line in said[3:])
    assert "executable file not found in $PATH" in ours("exec", box, "nosuch", check=False).stderr
    process = {
        "args": ["sh", "-c", "echo $B; cat"],
        "cwd": "/",
        "env": ["PATH=/bin", "B=2"],
        "user": {"uid": 0, "gid": 0},
    }
    (scratch / "process.json").write_text(json.dumps(process))
    assert ours("exec", "--process", scratch / "process.json", box, stdin="typed\n").stdout == "2\ntyped\n"
    ours.begin("exec", "-d", "--pid-file", scratch / "pid", box, "sleep", "1000")
    pid_of_sleep = int((scratch / "pid").read_text())
    assert pid_of_sleep in json.loads(ours("ps", "-f", "json", box).stdout)
    assert Path(f"/proc/{pid_of_sleep}/comm").read_text() == "sleep\n"
    assert ours("exec", box, "sh", "-c", "kill -KILL $$", check=False).returncode == 137


def test_a_console_socket(ours: Runtime, bundle: Bundle, scratch: Path) -> None:
    bundle.process["terminal"] = True
    bundle.process["consoleSize"] = {"height": 33, "width": 99}
    bundle.shell("tty; test -c /dev/console && read line && echo got $line")
    assert "console socket" in ours("create", "-b", bundle.write(), "box", check=False).stderr
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(scratch / "s"))
        listener.listen()
        ours.begin("create", "-b", bundle.where, "--console-socket", scratch / "s", "box")
        connection, _ = listener.accept()
        with connection:
            name, (master,), _, _ = socket.recv_fds(connection, 100, 1)
    assert name == b"/dev/ptmx"
    assert os.get_terminal_size(master) == (99, 33)
    ours("start", "box")
    os.write(master, b"hello\n")
    said = b""
    while b"got hello" not in said:
        said += os.read(master, 1000)
    assert b"/dev/pts/0" in said
    os.close(master)
    ours("delete", "--force", "box")


def test_logs(ours: Runtime, bundle: Bundle, scratch: Path) -> None:
    """The last error is in the log, as JSON if that is asked for, and on standard error."""
    bundle.process["args"] = ["nosuch"]
    log = scratch / "log"
    done = ours("--log", log, "--log-format", "json", "create", "-b", bundle.write(), "box", check=False)
    entry = json.loads(log.read_text().splitlines()[-1])
    assert (entry["level"], entry["msg"]) == ("error", 'exec: "nosuch": executable file not found in $PATH')
    assert entry["msg"] in done.stderr
    refused = ours("--systemd-cgroup", "create", "-b", bundle.where, "box", check=False)
    assert (refused.returncode, "cgroupfs" in refused.stderr) == (1, True)


def test_version_and_features(ours: Runtime) -> None:
    said = ours("--version").stdout.splitlines()
    assert said[0].startswith("unionfs oci version ")
    assert said[1] == "spec: 1.2.0"
    found = json.loads(ours("features").stdout)
    assert {"bind", "rro", "tmpcopyup"} <= set(found["mountOptions"])
    assert found["linux"]["seccomp"]["enabled"]


def test_the_first_process_killed_while_it_waits(ours: Runtime, bundle: Bundle) -> None:
    ours.begin("create", "-b", bundle.write(), "box")
    os.kill(ours.state("box")["pid"], signal.SIGKILL)
    _wait_for_status(ours, "box", "stopped")
    assert "has stopped" in ours("start", "box", check=False).stderr
    ours("delete", "box")
    assert bundle.cgroups() == []


def test_without_a_pid_namespace_all_processes_end(ours: Runtime, bundle: Bundle) -> None:
    bundle.linux["namespaces"] = [{"type": kind} for kind in ("mount", "ipc", "uts", "network")]
    bundle.shell("sleep 1000 & sleep 1000 & exec sleep 1000")
    ours.begin("run", "-d", "-b", bundle.write(), "box")
    deadline = time.monotonic() + limit(60)
    while len(pids := json.loads(ours("ps", "-f", "json", "box").stdout)) < 3:
        assert time.monotonic() < deadline
    os.kill(ours.state("box")["pid"], signal.SIGKILL)
    _wait_for_status(ours, "box", "stopped")
    ours("delete", "box")
    assert [pid for pid in pids if os.path.exists(f"/proc/{pid}/exe") and _comm(pid) == "sleep"] == []
    assert bundle.cgroups() == []


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_limits_and_their_update(ours: Runtime, bundle: Bundle, scratch: Path) -> None:
    if not any("pids" in one.controllers for one in hierarchies()):
        pytest.skip("this machine has no cgroup of version 1 for pids")
    bundle.linux["resources"] = {
        "pids": {"limit": 30},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0"},
        "devices": [
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"},
        ],
    }
    path = bundle.linux["cgroupsPath"] + "/box"
    bundle.linux["cgroupsPath"] = path
    bundle.shell(_FOREVER)
    ours.begin("run", "-d", "-b", bundle.write(), "box")
    where = {name: one for one in hierarchies() for name in one.controllers}

    def value(controller: str, file: str) -> str:
        return Path(where[controller].directory(path, default=""), file).read_text().strip()

    assert (value("pids", "pids.max"), value("cpu", "cpu.shares"), value("cpuset", "cpuset.cpus")) == ("30", "512", "0")
    assert value("cpu", "cpu.cfs_quota_us") == "50000"
    devices = value("devices", "devices.list").splitlines()
    assert {"c 10:229 rw", "c 1:3 rwm", "c 136:* rwm"} <= set(devices)
    assert "a *:* rwm" not in devices
    (scratch / "r.json").write_text(json.dumps({"pids": {"limit": 40}}))
    ours("update", "-r", scratch / "r.json", "box")
    assert (value("pids", "pids.max"), value("cpu", "cpu.shares")) == ("40", "512")
    ours("delete", "--force", "box")
    assert bundle.cgroups() == []
    for one in hierarchies():
        os.rmdir(os.path.dirname(one.directory(path, default="")))


def test_the_hosts_interpreter_cannot_be_written_to(ours: Runtime, bundle: Bundle) -> None:
    """A container's process is the host's interpreter until it executes its command: CVE-2019-5736."""
    ours.begin("create", "-b", bundle.write(), "box")
    pid = ours.state("box")["pid"]
    fd = os.open(f"/proc/{pid}/exe", os.O_RDONLY)
    assert os.fstatvfs(fd).f_flag & os.ST_RDONLY
    os.close(fd)
    ours("delete", "--force", "box")


def test_descriptors_of_the_caller(ours: Runtime, bundle: Bundle, scratch: Path) -> None:
    """None is passed on but those that are asked for."""
    (scratch / "f").write_text("kept\n")
    bundle.shell("cat <&3; ls /proc/self/fd")
    with (scratch / "f").open() as kept, (scratch / "f").open() as other:
        fds = (kept.fileno(), other.fileno())
        wrapper = f'exec "$@" 3<&{fds[0]} 4<&{fds[1]}'
        line = ["bash", "-c", wrapper, "bash", *ours.argv("run", "--preserve-fds", "1", "-b", bundle.write(), "box")]
        done = subprocess.run(
            line, pass_fds=fds, env=ours.user.env, capture_output=True, text=True, check=True, timeout=limit(60)
        )
    assert done.stdout.split() == ["kept", "0", "1", "2", "3", "4"]  # 4: the listing itself


def test_no_symlink_of_the_container_leads_out(ours: Runtime, bundle: Bundle, scratch: Path) -> None:
    """Mountpoints are found in the container's root; /proc and /sys are never mounted through a link."""
    root = scratch / "evil"
    shutil.copytree(bundle.config["root"]["path"], root, symlinks=True)
    (scratch / "outside").mkdir()
    (root / "link").symlink_to(scratch / "outside")
    bundle.config["root"] = {"path": os.fspath(root)}
    bundle.mount("/link/x", "tmpfs", "tmpfs")
    bundle.process["args"] = ["true"]
    ours.run(bundle)
    assert os.listdir(scratch / "outside") == []
    (root / "proc").rmdir() if (root / "proc").is_dir() else None
    (root / "proc").symlink_to("/tmp")
    assert "symlink" in ours.run(bundle, check=False).stderr
    (root / "proc").unlink()
    bundle.mount("/proc/self", "bind", os.fspath(scratch), "bind")
    assert "mounts in /proc are not allowed" in ours.run(bundle, check=False).stderr


def test_without_root(ordinary_user: Any, scratch: Path, rootfs: Path) -> None:
    """`runc spec --rootless`: a user namespace with one id, no control groups."""
    bundle = Bundle(scratch / "bundle", rootfs)
    bundle.linux["namespaces"] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "user")]
    bundle.linux["uidMappings"] = [{"containerID": 0, "hostID": ordinary_user.uid, "size": 1}]
    bundle.linux["gidMappings"] = [{"containerID": 0, "hostID": ordinary_user.gid, "size": 1}]
    del bundle.linux["resources"]
    devpts = next(entry for entry in bundle.config["mounts"] if entry["destination"] == "/dev/pts")
    devpts["options"].remove("gid=5")
    bundle.shell("id -u; echo > /dev/null; cat /data/file; exit 7")
    bundle.write()
    ordinary_user.own(scratch)
    runtime = Runtime("ours", scratch, ordinary_user)
    done = runtime.run(bundle, check=False)
    assert (done.stdout, done.returncode) == ("0\na file\n", 7), done.stderr
    bundle.linux["resources"] = {"pids": {"limit": 10}}
    done = runtime.run(bundle, check=False)
    assert done.returncode == 7
    assert "the container runs without this limit" in done.stderr

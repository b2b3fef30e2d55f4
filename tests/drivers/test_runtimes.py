"""Containers made by an OCI runtime: as our own launcher makes them, from a command line's point of view."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.drivers.conftest import Commands
from tests.launcher.terminals import terminal
from tests.support.marks import as_ordinary_user
from tests.support.timing import limit
from unionfs.id_ranges import IdRange
from unionfs.launcher import bundle
from unionfs.launcher.idmap import NamespaceMap
from unionfs.launcher.spec import Bind, Process, Spec, Tmpfs
from unionfs.launcher.users import Account

_FOREVER = "trap 'exit 3' TERM; while :; do sleep 0.05; done"


@pytest.fixture(params=["crun", "runc"])
def runtime(request: pytest.FixtureRequest) -> str:
    if not shutil.which(request.param, path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


@pytest.fixture
def commands(commands_for: Callable[[str], Commands]) -> Commands:
    return commands_for("fuse")


def test_what_a_command_sees(commands: Commands, runtime: str, scratch: Path) -> None:
    (scratch / "given").write_text("given\n")
    commands.user.own(scratch)
    script = "id -u; id -g; hostname; pwd; echo $A; cat /v/given; echo x > /v/w; echo y > /x; cat; exit 7"
    words = ("-i", "-u", "games", "-e", "A=1", "-w", "/tmp/here", "--hostname", "h", "-v", f"{scratch}:/v:ro")
    done = commands(
        "run", "--rm", "--runtime", runtime, *words, "layered:1", "sh", "-c", script, stdin="typed\n", check=False
    )
    assert (done.stdout, done.returncode) == ("5\n60\nh\n/tmp/here\n1\ngiven\ntyped\n", 7)
    assert done.stderr.count("Read-only file system") == 1  # /v/w
    assert done.stderr.count("Permission denied") == 1  # /x
    assert os.listdir(scratch) == ["given"]


@as_ordinary_user
def test_exit_codes(commands: Commands, runtime: str) -> None:
    def code(*command: str) -> int:
        return commands("run", "--runtime", runtime, "layered:1", *command, check=False).returncode

    assert [code("nosuch"), code("/etc")] == [127, 126]
    assert commands("ps", "-aq").stdout == ""
    assert [code("false"), code("true")] == [1, 0]
    absent = commands("run", "--runtime", "no-such-runtime", "layered:1", "true", check=False)
    assert (absent.returncode, "no such runtime" in absent.stderr) == (125, True)


def test_a_life(commands: Commands, runtime: str, scratch: Path) -> None:
    commands(
        "run", "-d", "--name", "r", "--runtime", runtime, "layered:1", "sh", "-c", f"echo out; touch /ready; {_FOREVER}"
    )
    deadline = time.monotonic() + limit(60)
    while commands("exec", "r", "test", "-e", "/ready", check=False).returncode:
        assert time.monotonic() < deadline
    shown = commands.inspect("r")
    assert os.path.basename(shown["HostConfig"]["Runtime"]) == runtime
    assert (
        commands("exec", "-e", "B=2", "-w", "/data", "r", "sh", "-c", "pwd; echo $B; exit 4", check=False).stdout
        == "/data\n2\n"
    )
    commands.user.own(scratch)
    commands("cp", "r:/ready", scratch / "got")
    report = json.loads(commands("commit", "-p", "--json", "r", "of-r:1").stdout)
    assert "/ready" in [one["path"] for one in report["changes"]]
    commands("rmi", "-f", "of-r:1")
    commands("stop", "r")
    assert commands("wait", "r").stdout == "3\n"
    assert commands("logs", "r").stdout == "out\n"
    commands("start", "r")
    record = json.loads((Path(shown["LogPath"]).parent / "container.json").read_text())
    os.kill(record["state"]["monitor"], signal.SIGKILL)
    commands("wait", "r")
    commands("start", "r")
    commands("kill", "r")
    assert commands("wait", "r").stdout == "137\n"
    commands("rm", "r")


@as_ordinary_user
def test_read_only_and_networks(commands: Commands, runtime: str) -> None:
    script = "echo x > /x; echo y > /tmp/y; cat /tmp/y; ls /sys/class/net; cat /proc/net/route | wc -l"
    words = ("--read-only", "--network", "none", "--runtime", runtime)
    done = commands("run", "--rm", *words, "layered:1", "sh", "-c", script, check=False)
    assert "Read-only" in done.stderr
    assert done.stdout == "y\nlo\n1\n"


def test_a_terminal(commands: Commands, runtime: str) -> None:
    line: list[str | Path] = [*commands.user.unionfs_cmd, "run", "--root", commands.root, "--runtime", runtime]
    line += ["-it", "--rm", "layered:1", "sh"]
    with terminal(commands.user, line, rows=33, columns=99) as screen:
        screen.expect("# ")
        screen.type("stat -c %F /dev/tty; tty; exit 5\n")
        screen.expect("/dev/pts/0")
        assert screen.end() == 5


def test_the_bundle() -> None:
    """What is written, and that owners, groups and privileges are those of our own launcher."""
    ids = NamespaceMap((IdRange(0, 1000, 1),), (IdRange(0, 1000, 1), IdRange(1, 5000, 10)))
    spec = Spec("/r", Process(("a", "b"), capabilities=("CHOWN",)), tmpfs=(Tmpfs("/scratch"),), own_network=True,
                binds=(Bind("/s/é", "/t/deep", True), Bind("/s", "/t")), id_map=ids)  # fmt: skip
    made = bundle.config(spec, Account(7, 8, (3, 4000), "/home/x"))
    process = made["process"]
    assert (made["root"], process["args"]) == ({"path": "/r", "readonly": False}, ["a", "b"])
    assert process["user"] == {"uid": 7, "gid": 8, "additionalGids": [3]}
    assert process["capabilities"] == {"bounding": ["CAP_CHOWN"], "effective": [], "permitted": []}
    assert "HOME=/home/x" in process["env"]
    destinations = [mount["destination"] for mount in made["mounts"]]
    assert destinations[-3:] == ["/scratch", "/t", "/t/deep"]
    assert "ro" in made["mounts"][-1]["options"]
    assert {"type": "network"} not in made["linux"]["namespaces"]

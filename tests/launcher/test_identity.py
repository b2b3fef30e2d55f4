"""Who and what a command in a container is: capabilities, users, namespaces, environment."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.launcher.conftest import Run
from tests.support.users import User
from unionfs.fuse.options import DEFAULT_TRANSPORT

pytestmark = pytest.mark.transport(DEFAULT_TRANSPORT)

USUAL = "00000000a80425fb"  # as docker leaves it, see test_capabilities
NONE = "0" * 16


def test_capabilities_of_root(run: Run, debian: Path) -> None:
    status = _status(run(debian, "cat", "/proc/self/status").stdout)
    sets = [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")]
    assert sets == [NONE, USUAL, USUAL, USUAL, NONE]
    assert status["NoNewPrivs"] == "1"
    assert status["Groups"] == ""


def test_capabilities_of_others(run: Run, debian: Path) -> None:
    status = _status(run("-u", "www-data", debian, "cat", "/proc/self/status").stdout)
    sets = [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")]
    assert sets == [NONE, NONE, NONE, USUAL, NONE]
    assert status["Uid"].split() == ["33"] * 4
    assert status["Gid"].split() == ["33"] * 4


def test_requested_capabilities(run: Run, debian: Path) -> None:
    status = _status(run("--cap-drop", "ALL", "--cap-add", "kill", debian, "cat", "/proc/self/status").stdout)
    assert [status[name] for name in ("CapPrm", "CapEff", "CapBnd")] == ["0000000000000020"] * 3
    status = _status(run("--allow-new-privileges", debian, "cat", "/proc/self/status").stdout)
    assert status["NoNewPrivs"] == "0"


def test_limits(run: Run, debian: Path) -> None:
    show = (debian, "sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -Hc")
    assert run("--ulimit", "nofile=100:200", "--ulimit", "core=0", *show).stdout == "100\n200\n0\n"


def test_set_user_id_programs_give_nothing(run: Run, debian: Path) -> None:
    script = "cp /usr/bin/id /usr/bin/id2; chmod 4755 /usr/bin/id2; su www-data -s /bin/sh -c 'id2 -u; id -u'"
    assert run(debian, "sh", "-c", script).stdout == "33\n33\n"


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ("games", "uid=5(games) gid=60(games) groups=60(games) /usr/games"),
        ("games:tty", "uid=5(games) gid=5(tty) groups=5(tty) /usr/games"),
        ("1234", "uid=1234 gid=0(root) groups=0(root) /"),
        ("1234:1235", "uid=1234 gid=1235 groups=1235 /"),
        ("root", "uid=0(root) gid=0(root) groups=0(root) /root"),
    ],
)
def test_users(run: Run, debian: Path, wish: str, expected: str) -> None:
    assert run("-u", wish, debian, "sh", "-c", "echo $(id) $HOME").stdout == f"{expected}\n"


def test_supplementary_groups(run: Run, debian: Path, scratch: Path) -> None:
    group = scratch / "group"
    group.write_text("root:x:0:\nstaff:x:50:www-data\nvideo:x:44:www-data,games\n")
    told = run("-v", f"{group}:/etc/group", "-u", "www-data", debian, "id", "-G")
    assert sorted(told.stdout.split()) == ["33", "44", "50"]


@pytest.mark.parametrize("wish", ["nosuch", "root:nosuch", "4294967295"])
def test_users_that_do_not_exist(run: Run, debian: Path, wish: str) -> None:
    ended = run("-u", wish, debian, "true", check=False)
    assert ended.returncode == 125
    assert re.search(r"finding the (user|group) failed", ended.stderr)


def test_namespaces_are_its_own(run: Run, debian: Path, user: User) -> None:
    kinds = ["mnt", "pid", "uts", "ipc", "cgroup"] + ([] if user.kind == "root" else ["user"])
    script = "for kind in $@; do readlink /proc/self/ns/$kind; done"
    inside = run(debian, "sh", "-c", script, "sh", *kinds, "net").stdout.split()
    outside = user.run(["sh", "-c", script, "sh", *kinds, "net"]).stdout.split()
    assert inside[-1] == outside[-1]
    assert not set(inside[:-1]) & set(outside)


def test_no_network_but_a_loopback(run: Run, debian: Path) -> None:
    script = """
import os, socket
print(os.listdir("/sys/class/net"), [name for _, name in socket.if_nameindex()])
server = socket.create_server(("127.0.0.1", 80))
client = socket.create_connection(("127.0.0.1", 80))
client.sendall(b"hello")
print(server.accept()[0].recv(9))
try:
    socket.create_connection(("192.0.2.1", 80))
except OSError as error:
    print(error.strerror)"""
    told = run("--network", "none", debian, "python3", "-c", script)
    assert told.stdout == "['lo'] ['lo']\nb'hello'\nNetwork is unreachable\n"


def test_hostname_and_environment(run: Run, debian: Path) -> None:
    told = run(
        "--hostname", "castle", "-e", "A=b c", "-e", "SHELL", "-e", "NOSUCH", debian, "sh", "-c", "hostname; env | sort"
    )
    hostname, *environment = told.stdout.splitlines()
    assert hostname == "castle"
    assert [line for line in environment if not line.startswith("PWD=")] == [
        "A=b c",
        "HOME=/root",
        "HOSTNAME=castle",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "SHELL=/bin/bash",
        "container=unionfs",
    ]


def test_path_of_the_container_finds_the_command(run: Run, debian: Path) -> None:
    assert run("-e", "PATH=/nowhere", debian, "true", check=False).returncode == 127
    assert run("-e", "PATH=/nowhere:/usr/bin", debian, "true").returncode == 0


def test_working_directory_and_umask(user: User, debian: Path, tidy: None) -> None:
    inside = "pwd; umask; stat -c %a /srv/new /srv/new/deep /dev /; stat -c %a /etc/hosts"
    command = [*user.unionfs_cmd, "run", "--rm", "-w", "/srv/new/dir/../deep", os.fspath(debian), "sh", "-c", inside]
    told = user.run(["sh", "-c", 'umask 077; exec "$@"', "sh", *command])
    assert told.stdout == "/srv/new/deep\n0022\n755\n755\n755\n755\n644\n"


def test_entrypoint(run: Run, debian: Path) -> None:
    assert run("--entrypoint", "echo", debian, "a", "-n", "--", "b").stdout == "a -n -- b\n"


def _status(text: str) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}

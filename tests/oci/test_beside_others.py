"""The same bundle run by our runtime, runc and crun: what its process sees must be the same."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.oci.bundles import CAPABILITIES, Bundle, RuntimeFor

pytestmark = pytest.mark.runs_as("root")


@pytest.fixture(params=["runc", "crun"])
def same(request: pytest.FixtureRequest, runtime_for: RuntimeFor) -> Callable[..., str]:
    """`same(bundle)`: what it prints with ours, after it was compared with another runtime, exit codes included."""
    others, ours = runtime_for(request.param), runtime_for("ours")

    def compare(bundle: Bundle, change: Callable[[str], str] = lambda text: text) -> str:
        theirs, mine = others.run(bundle, check=False), ours.run(bundle, check=False)
        assert (change(mine.stdout), mine.returncode) == (change(theirs.stdout), theirs.returncode), (
            mine.stderr + theirs.stderr
        )
        return mine.stdout

    return compare


def test_a_process(same: Callable[..., str], bundle: Bundle) -> None:
    """Ids, capabilities, environment, directory, names, limits, and the exit code."""
    bundle.process.update(
        user={"uid": 5, "gid": 60, "additionalGids": [7, 8], "umask": 0o027},
        cwd="/tmp",
        env=["PATH=/bin", "A=1", "A=2", "EMPTY="],
        rlimits=[
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ],
    )
    script = "id; umask; pwd; hostname; env | sort; ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj;"
    bundle.shell(script + "grep -e ^Cap -e NoNew -e Seccomp: -e ^Groups /proc/self/status; exit 7")
    said = same(bundle)
    assert said.splitlines()[:4] == ["uid=5(games) gid=60(games) groups=60(games),7,8", "0027", "/tmp", "boxed"]
    assert "A=2\nEMPTY=\nHOME=/usr/games\n" in said


@pytest.mark.parametrize("uid", [0, 5])
@pytest.mark.parametrize("ambient", [[], ["CAP_KILL"]])
def test_capabilities(same: Callable[..., str], bundle: Bundle, uid: int, ambient: list[str]) -> None:
    sets: dict[str, Any] = dict.fromkeys(("bounding", "permitted", "inheritable"), CAPABILITIES)
    bundle.process["capabilities"] = {**sets, "effective": ["CAP_KILL"], "ambient": ambient}
    bundle.process["user"] = {"uid": uid, "gid": uid}
    bundle.shell("grep ^Cap /proc/self/status")
    assert "CapBnd:\t00000000200000e1" in same(bundle)


def test_mounts(same: Callable[..., str], bundle: Bundle, scratch: Path) -> None:
    """Each line of mountinfo: what is mounted, with which options, under what; and modes of what was made for it."""
    source = scratch / "source"
    source.mkdir()
    (source / "file").write_text("shared\n")
    bundle.config["root"]["readonly"] = False
    bundle.mount("/data/kept", "bind", os.fspath(source), "rbind", "ro", "nosuid")
    bundle.mount("/data/file", "bind", os.fspath(source / "file"), "bind", "noexec", "nodev", "noatime")
    bundle.mount("/empty", "tmpfs", "tmpfs", "size=100k", "ro")
    bundle.mount("/tmp", "tmpfs", "scratch", "nodev", "noexec", "size=1m", "rprivate")
    bundle.shell(
        "while read a b c root at options rest; do echo $root $at $options $rest; done < /proc/self/mountinfo |"
        "grep -v -e ' /proc' -e ' /sys' | sort; cat /data/kept/file /data/file;"
        "echo x > /data/kept/new; echo y > /tmp/y && cat /tmp/y; ls /dev | grep -v core; stat -c %a /tmp /dev /dev/shm"
    )
    said = same(bundle)
    assert "shared\nshared\n" in said
    assert not (source / "new").exists()


def test_a_tmpfs_with_a_copy_of_the_directory_below(runtime_for: RuntimeFor, bundle: Bundle) -> None:
    bundle.mount("/data", "tmpfs", "tmpfs", "tmpcopyup", "size=1m")
    script = "find /data | sort; cat /data/dir/old; readlink /data/symlink; stat -c '%a %u %g %F' /data /data/file"
    bundle.shell(f"{script}; echo x > /data/new")
    assert runtime_for("ours").run(bundle).stdout == runtime_for("runc").run(bundle).stdout


def test_what_is_hidden_and_read_only(same: Callable[..., str], bundle: Bundle) -> None:
    bundle.linux["maskedPaths"] += ["/data/file", "/data/dir", "/no/such"]
    bundle.linux["readonlyPaths"] += ["/tmp", "/no/such"]
    bundle.config["root"]["readonly"] = False
    bundle.shell(
        "cat /data/file; ls /data/dir; echo x > /tmp/x || echo refused; echo 1 > /proc/sys/kernel/core_uses_pid"
    )
    assert same(bundle) == "refused\n"


def test_kernel_settings_of_namespaces(same: Callable[..., str], bundle: Bundle) -> None:
    bundle.linux["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.msgmax": "8000", "net/ipv4/ping_group_range": "1 2"}
    bundle.shell("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ping_group_range")
    assert same(bundle) == "1\n8000\n1\t2\n"


def test_devices(same: Callable[..., str], bundle: Bundle) -> None:
    bundle.linux["devices"] = [
        {"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 5, "gid": 60},
        {"path": "/dev/deep/fifo", "type": "p", "fileMode": 0o600},
    ]
    bundle.shell(
        "stat -c '%n %F %a %u %g %t:%T' /dev/mine /dev/deep/fifo /dev/null /dev/tty; head -c 3 /dev/mine | wc -c;"
        "readlink /dev/stdin /dev/fd /dev/ptmx"
    )
    assert "/dev/mine character special file 640 5 60 1:5\n" in same(bundle)


def test_a_filter_of_system_calls(same: Callable[..., str], bundle: Bundle) -> None:
    """By number and by argument, with an errno of its own; and without noNewPrivileges."""
    bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"],
        "syscalls": [
            {"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 18},
            {
                "names": ["kill"],
                "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}],
            },
        ],
    }
    bundle.shell("mkdir /tmp/x; kill -USR1 $$; kill -0 $$ && echo alive; grep -e Seccomp: -e NoNew /proc/self/status")
    assert "alive\nNoNewPrivs:\t1\nSeccomp:\t2\n" in same(bundle)
    bundle.process["noNewPrivileges"] = False
    assert "alive\nNoNewPrivs:\t0\nSeccomp:\t2\n" in same(bundle)


@pytest.mark.parametrize("words", [["nosuch"], ["/no/such"], ["/etc/passwd"], ["/etc"], ["sh", "-c", "kill -KILL $$"]])
def test_commands_that_cannot_be_executed(same: Callable[..., str], bundle: Bundle, words: list[str]) -> None:
    bundle.process["args"] = words
    same(bundle)


def test_ids_of_a_user_namespace(same: Callable[..., str], bundle: Bundle, scratch: Path) -> None:
    """As podman --uidmap has it: the root filesystem belongs to others, and devices are those of the machine."""
    bundle.linux["namespaces"].append({"type": "user"})
    bundle.linux["uidMappings"] = [
        {"containerID": 0, "hostID": 0, "size": 1},
        {"containerID": 1, "hostID": 5001, "size": 99},
    ]
    bundle.linux["gidMappings"] = [
        {"containerID": 0, "hostID": 0, "size": 1},
        {"containerID": 1, "hostID": 6001, "size": 99},
    ]
    bundle.linux["resources"] = {}
    bundle.process["user"] = {"uid": 5, "gid": 6}
    bundle.shell(
        "cat /proc/self/uid_map /proc/self/gid_map; id -u; stat -c '%u %g %F' /bin/sh /dev/null; echo > /dev/null"
    )
    same(bundle)


def test_a_new_network_has_a_loopback(same: Callable[..., str], bundle: Bundle) -> None:
    bundle.shell("grep -c 127.0.0.1 /proc/net/fib_trie")
    assert same(bundle) == "2\n"


def test_namespaces_by_path(same: Callable[..., str], bundle: Bundle) -> None:
    kinds = {"network": "net", "ipc": "ipc", "uts": "uts"}
    namespaces = [{"type": kind, "path": f"/proc/self/ns/{name}"} for kind, name in kinds.items()]
    del bundle.config["hostname"]
    bundle.linux["namespaces"] = [{"type": "mount"}, {"type": "pid"}, *namespaces]
    bundle.shell("hostname; for kind in net ipc uts; do readlink /proc/self/ns/$kind; done")
    assert same(bundle).splitlines()[1:] == [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds.values()]


def test_limits_above_ours(same: Callable[..., str], bundle: Bundle) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    bundle.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": hard, "hard": hard}]
    bundle.shell("ulimit -n")
    assert same(bundle) == f"{hard}\n"

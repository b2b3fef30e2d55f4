"""`unionfs doctor`: verdicts on made-up machines, and on this one with one thing or another taken away."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import process
from tests.support.users import User
from unionfs.doctor.diagnosis import LACKING, LIMITED, OK, diagnose
from unionfs.doctor.machine import Machine, first_free

FINE = Machine(
    user="alice",
    is_root=False,
    kernel=(6, 12),
    packages="apt",
    namespaces="",
    settings={"kernel.unprivileged_userns_clone": "1", "user.max_user_namespaces": "96365"},
    has_seccomp=False,
    subordinate_ids=(65536, 65536),
    free_ids=165536,
    id_helpers="",
    id_map="",
    fuse_device="",
    tun_device="",
    thin_pools="",
    fuse_mount="",
    proc_mount="",
    fusermount="",
    cgroups="v2",
    state="/home/alice/.local/share/unionfs",
    state_xattrs="",
    modules={"trio": "", "xxhash": "", "pyfuse3": ""},
    code="compiled",
)
REFUSED = "this machine does not let this user make user namespaces (Operation not permitted)"


def test_a_machine_that_has_everything() -> None:
    findings = diagnose(FINE)
    assert {finding.state for finding in findings} == {OK}
    assert not any(finding.why or finding.mend for finding in findings)


@pytest.mark.parametrize(
    ("changes", "name", "state", "mend"),
    [
        ({"kernel": (4, 19)}, "kernel", LACKING, "install a kernel of version 5.4 or later"),
        ({"kernel": (6, 1)}, "kernel", LIMITED, "install a kernel of version 6.9 or later"),
        (
            {"namespaces": REFUSED, "settings": {"kernel.unprivileged_userns_clone": "0"}},
            "user namespaces",
            LACKING,
            "sudo sysctl -w kernel.unprivileged_userns_clone=1",
        ),
        (
            {"namespaces": "the limit", "settings": {"user.max_user_namespaces": "0"}},
            "user namespaces",
            LACKING,
            "sudo sysctl -w user.max_user_namespaces=15000",
        ),
        (
            {"namespaces": REFUSED, "settings": {"kernel.apparmor_restrict_unprivileged_userns": "1"}},
            "user namespaces",
            LACKING,
            "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        (
            {"namespaces": REFUSED, "has_seccomp": True},
            "user namespaces",
            LACKING,
            "allow unshare and mount in the surrounding container (docker: --security-opt seccomp=unconfined)",
        ),
        (
            {"namespaces": REFUSED, "is_root": True},
            "namespaces",
            LACKING,
            "give this container CAP_SYS_ADMIN (docker: --privileged)",
        ),
        (
            {"proc_mount": "/proc: Operation not permitted"},
            "a new /proc",
            LACKING,
            "show all of /proc in the surrounding container (docker: --security-opt systempaths=unconfined)",
        ),
        ({"fuse_device": "No such file or directory"}, "/dev/fuse", LACKING, "sudo modprobe fuse"),
        ({"tun_device": "Permission denied"}, "private networks", LIMITED, "sudo chmod 666 /dev/net/tun"),
        (
            {"thin_pools": "Linux 6 has no module dm_thin_pool"},
            "device mapper",
            LIMITED,
            "install a kernel with CONFIG_DM_THIN_PROVISIONING",
        ),
        ({"fuse_device": "Permission denied"}, "/dev/fuse", LACKING, "sudo chmod 666 /dev/fuse"),
        ({"fuse_mount": "/mnt: No such device"}, "FUSE in namespaces", LACKING, "sudo modprobe fuse"),
        ({"modules": {"trio": "No module named 'trio'"}}, "Python module trio", LACKING, "pip install trio"),
        (
            {"state_xattrs": "/home: Operation not supported"},
            "state directory",
            LACKING,
            "export UNIONFS_ROOT=/a/directory/on/another/filesystem",
        ),
        ({"id_helpers": "newuidmap is not installed"}, "newuidmap, newgidmap", LIMITED, "sudo apt-get install uidmap"),
        (
            {"id_helpers": "newuidmap is not installed", "packages": "dnf"},
            "newuidmap, newgidmap",
            LIMITED,
            "sudo dnf install shadow-utils",
        ),
        (
            {"id_helpers": "/usr/bin/newgidmap is neither set-user-id root nor given capabilities"},
            "newuidmap, newgidmap",
            LIMITED,
            "sudo chmod u+s /usr/bin/newgidmap",
        ),
        (
            {"subordinate_ids": (0, 65536)},
            "subordinate ids",
            LIMITED,
            "sudo usermod --add-subuids 165536-231071 --add-subgids 165536-231071 alice",
        ),
        (
            {"subordinate_ids": (1000, 1000)},
            "subordinate ids",
            LIMITED,
            "sudo usermod --add-subuids 165536-231071 --add-subgids 165536-231071 alice",
        ),
        ({"id_map": "newuidmap: not you"}, "subordinate ids", LACKING, ""),
        ({"fusermount": "fusermount3 is not installed"}, "fusermount3", LIMITED, "sudo apt-get install fuse3"),
        (
            {"fusermount": "/usr/bin/fusermount3 is not set-user-id root"},
            "fusermount3",
            LIMITED,
            "sudo chmod u+s /usr/bin/fusermount3",
        ),
        ({"cgroups": "hybrid"}, "control groups", LIMITED, "boot with systemd.unified_cgroup_hierarchy=1"),
    ],
)
def test_what_is_lacking_has_a_reason_and_a_command(changes: dict[str, Any], name: str, state: str, mend: str) -> None:
    findings = {finding.name: finding for finding in diagnose(replace(FINE, **changes))}
    found = findings[name]
    assert (found.state, found.mend) == (state, mend)
    assert found.found
    assert found.why


def test_root_needs_no_ids_and_no_helper() -> None:
    names = {finding.name for finding in diagnose(replace(FINE, is_root=True, subordinate_ids=(0, 0)))}
    assert not names & {"subordinate ids", "newuidmap, newgidmap", "fusermount3"}


@pytest.mark.parametrize(
    ("subids", "first"),
    [
        ("", 100000),
        ("alice:100000:65536\n", 165536),
        ("alice:100000:65536\nbob:300000:10\nbad\ncarol:x:y\n", 300010),
        ("system:1:10\n", 100000),
    ],
)
def test_ids_that_no_user_has(subids: str, first: int) -> None:
    assert first_free(subids) == first


# -- this machine --


def test_this_machine(user: User, fuse_device: Path) -> None:
    told = user.unionfs("doctor", check=False)
    assert told.returncode == 0, told.stdout
    assert "`unionfs run` works here" in told.stdout
    as_json = json.loads(user.unionfs("doctor", "--json").stdout)
    assert as_json["works"] is True
    states = {check["name"]: check["state"] for check in as_json["checks"]}
    assert states["/dev/fuse"] == states["FUSE in namespaces"] == states["a new /proc"] == OK
    for check in as_json["checks"]:
        assert f"{check['state']:<9} {check['name']}: {check['found']}" in told.stdout


def _doctor_where(user: User, setup: str, *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    """The doctor's exit code and its checks by name, for `user`, after root has run `setup` in a private namespace."""
    command = shlex.join([*user.prefix, *user.unionfs_cmd, "doctor", "--json", *arguments])
    script = f"unshare --mount --propagation private sh -ec {shlex.quote(f'{setup}; exec {command}')}"

    told = process.run(["sh", "-c", script], env=user.env, cwd=user.home, check=False)
    assert told.returncode in (0, 1), told.stderr
    return told.returncode, {check["name"]: check for check in json.loads(told.stdout)["checks"]}


@pytest.fixture
def somebody(ordinary_user: User, root_user: User) -> User:
    """An ordinary user whose machine root can change."""
    return ordinary_user


def test_fuse_is_closed(somebody: User, scratch: Path) -> None:
    os.mknod(scratch / "fuse", 0o600 | 0o020000, os.makedev(10, 229))
    code, checks = _doctor_where(somebody, f"mount --bind {scratch}/fuse /dev/fuse")
    assert code == 1
    assert checks["/dev/fuse"]["state"] == LACKING
    assert checks["/dev/fuse"]["mend"] == "sudo chmod 666 /dev/fuse"
    assert checks["FUSE in namespaces"]["state"] == LACKING


def test_proc_is_partly_hidden(somebody: User) -> None:
    code, checks = _doctor_where(somebody, "mount -t tmpfs none /proc/bus")
    assert code == 1
    assert checks["a new /proc"]["state"] == LACKING


def test_there_are_no_subordinate_ids(somebody: User) -> None:
    code, checks = _doctor_where(somebody, "mount --bind /dev/null /etc/subuid")
    assert code == 0
    assert checks["subordinate ids"]["state"] == LIMITED
    assert checks["subordinate ids"]["mend"].endswith(f" {somebody.name}")


def test_the_helpers_have_lost_their_rights(somebody: User, scratch: Path) -> None:
    copy = scratch / "newuidmap"
    setup = f"cp /usr/bin/newuidmap {copy}; chmod 755 {copy}; mount --bind {copy} /usr/bin/newuidmap"
    code, checks = _doctor_where(somebody, setup)
    assert code == 0
    assert checks["newuidmap, newgidmap"]["state"] == LIMITED
    assert checks["newuidmap, newgidmap"]["mend"].startswith("sudo chmod u+s /")


def test_the_state_cannot_have_attributes(somebody: User, scratch: Path) -> None:
    setup = f"mount -t ramfs none {scratch}; chmod 777 {scratch}"
    code, checks = _doctor_where(somebody, setup, "--root", f"{scratch}/new")
    assert code == 1
    assert checks["state directory"]["state"] == LACKING


def test_there_are_no_user_namespaces(somebody: User) -> None:
    # The limit counts in each user namespace for itself; so one can be closed without touching the machine's.
    inner = "echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --reuid=1 --regid=1 --clear-groups -- "
    command = shlex.join([*somebody.unionfs_cmd, "doctor", "--json"])
    told = somebody.run(["unshare", "--map-root-user", "--map-auto", "sh", "-c", inner + command], check=False)
    assert told.returncode == 1
    checks = {check["name"]: check for check in json.loads(told.stdout)["checks"]}
    assert checks["user namespaces"]["state"] == LACKING


def test_with_one_id_a_container_runs_and_the_limits_are_printed(somebody: User, fuse_device: Path) -> None:
    # A container on the host's / as somebody without ranges.
    command = shlex.join([*somebody.prefix, *somebody.unionfs_cmd, "run", "--rm", "/", "id", "-u"])
    script = f"unshare --mount --propagation private sh -ec 'mount --bind /dev/null /etc/subgid; exec {command}'"

    told = process.run(["sh", "-c", script], env=somebody.env, cwd=somebody.home)
    assert told.stdout == "0\n"
    assert told.stderr.count("one user id only, since /etc/subgid gives this user no ids") == 1

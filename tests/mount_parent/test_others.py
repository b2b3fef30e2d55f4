"""Callers that differ from the parent in user, rights, place or code get an ordinary mount."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.fuse.daemons import daemon_of
from tests.mount_parent.callers import Caller, ends
from tests.support import chaos, machine
from tests.support.users import CHECKOUT, User

ABSENT = "itself: there was no parent"


_TAKE_NAME = """
import os, socket, sys
taken = socket.socket(socket.AF_UNIX)
taken.bind(bytes.fromhex(sys.argv[1]))
taken.listen()
print(flush=True)
while True:
    end, _ = taken.accept()
    print(end.recv(100), flush=True)
"""


@contextmanager
def _name_taken(caller: Caller, *before: str) -> Iterator[subprocess.Popen[str]]:
    argv = [*before, sys.executable, "-c", _TAKE_NAME, caller.address().hex()]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as stranger:
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == "\n"
        try:
            yield stranger
        finally:
            stranger.kill()


def test_a_socket_of_another_user_gets_no_message(root: Caller, ordinary_user: User) -> None:
    with _name_taken(root, *ordinary_user.prefix) as stranger:
        why = f"itself: its socket belongs to user {ordinary_user.uid}"
        assert root.started_by(root.mount("first")) == why
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == "b''\n"


def test_a_socket_of_the_same_user_with_other_rights_gets_no_message(root: Caller) -> None:
    with _name_taken(root, "setpriv", "--bounding-set=-sys_time", "--inh-caps=-sys_time") as stranger:
        why = "itself: another process has its socket: not the same capabilities"
        assert root.started_by(root.mount("first")) == why
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == "b''\n"


def test_a_socket_whose_process_has_ended_gets_no_message(root: Caller) -> None:
    """Its number may be another process's by now."""
    with _name_taken(root, "sh", "-c", '"$@" & wait $!', "sh") as stranger:
        child = int(Path(f"/proc/{stranger.pid}/task/{stranger.pid}/children").read_text())
        passed = subprocess.Popen(["nsenter", "-t", str(child), "true"])
        passed.wait()
        os.kill(child, 9)
    assert root.started_by(root.mount("first")) == ABSENT


@pytest.mark.parametrize(
    "before",
    [
        ("setpriv", "--bounding-set=-sys_time", "--inh-caps=-sys_time"),
        ("setpriv", "--groups=4242"),
        ("setpriv", "--regid=4242", "--clear-groups"),
        ("unshare", "--ipc"),
        ("unshare", "--pid", "--fork", "--mount-proc"),
    ],
    ids=["capabilities", "groups", "gid", "ipc namespace", "pid namespace"],
)
def test_other_rights_or_namespaces_make_it_another_caller(root: Caller, before: tuple[str, ...]) -> None:
    root.mount("first")
    lower, mountpoint = root.directories("second")
    command = " ".join(root.user.unionfs_cmd)
    script = f"set -e; {command} -o lowerdir={lower} {mountpoint}; {command} stats --json {mountpoint}"
    done = root.run(*before, "sh", "-c", script)
    assert f'"started_by": "{ABSENT}"' in done.stdout, done.stderr
    root.parent()


def test_another_personality_has_a_parent_of_its_own(root: Caller) -> None:
    root.mount("first")
    mountpoint = root.mount("second", "setarch", "-R")
    assert root.started_by(mountpoint) == ABSENT
    with daemon_of(mountpoint) as daemon:
        assert int(Path(f"/proc/{daemon.pid}/personality").read_text(), 16) == 0x40000  # ADDR_NO_RANDOMIZE


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (("setpriv", "--no-new-privs"), "this process has no_new_privs"),
        (("setpriv", "--securebits=+no_setuid_fixup"), "this process has securebits"),
    ],
)
def test_a_confined_process_neither_asks_nor_starts_a_parent(root: Caller, before: tuple[str, ...], why: str) -> None:
    mountpoint = root.mount("first", *before)
    assert root.started_by(mountpoint) == f"itself: {why}"
    assert root.parents() == []


def test_an_ordinary_user_with_no_new_privs_asks_no_parent(ordinary: Caller) -> None:
    """It could not mount by itself, and no parent helps it out."""
    ordinary.mount("first")
    lower, mountpoint = ordinary.directories("second")
    argv = ["setpriv", "--no-new-privs", *ordinary.user.unionfs_cmd, "-o", f"lowerdir={lower}"]
    assert ordinary.run(*argv, mountpoint).returncode == 1
    assert not os.path.ismount(mountpoint)


def test_another_cgroup_has_a_parent_of_its_own(root: Caller) -> None:
    places = [Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/pids")]
    name = f"unionfs-test-{secrets.token_hex(4)}"
    group = next((place / name for place in places if (place / "cgroup.procs").exists()), None)
    if group is None:
        pytest.skip("no cgroup can be made here")
    group.mkdir()
    try:
        root.mount("first")
        into = ("sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh")
        second = root.mount("second", *into)
        assert root.started_by(second) == ABSENT
        third = root.mount("third", *into)
        assert root.started_by(third).startswith("parent ")
        assert root.started_by(third) != f"parent {root.parent()}"
        with daemon_of(third) as daemon:
            assert f"/{name}\n" in Path(f"/proc/{daemon.pid}/cgroup").read_text()
    finally:
        root.end()
        for pid in (group / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), 9)
                assert ends(int(pid))
        group.rmdir()


def test_in_another_mount_namespace_roots_parent_mounts_there(root: Caller) -> None:
    """And does not keep it alive."""
    root.mount("first")
    lower, mountpoint = root.directories("second")
    command = " ".join(root.user.unionfs_cmd)
    mount = f"{command} -o lowerdir={lower} {mountpoint}"
    script = f"set -e; {mount}; cat {mountpoint}/file; {command} stats --json {mountpoint}"
    said = root.run("unshare", "--mount", "sh", "-c", script).stdout
    assert said.startswith("second")
    assert f'"started_by": "parent {root.parent()}"' in said
    assert not os.path.ismount(mountpoint)
    assert ends(int(said.partition('"pid": ')[2].partition(",")[0]))


def test_a_parent_left_in_a_namespace_does_not_keep_it_alive(ordinary: Caller) -> None:
    """The mounts of a user and mount namespace go with its last process."""
    pairs = [ordinary.directories(name) for name in ("first", "second")]
    command = " ".join(ordinary.user.unionfs_cmd)
    mounts = "; ".join(f"{command} mount --lower {lower} {mountpoint}" for lower, mountpoint in pairs)
    stats = "; ".join(f"{command} stats --json {mountpoint}; echo" for _, mountpoint in pairs)
    done = ordinary.run("unshare", "--map-root-user", "--mount", "sh", "-c", f"set -e; {mounts}; {stats}")
    assert done.stderr == ""
    first, second = done.stdout.splitlines()[::2]
    assert ABSENT in first
    parent = int(second.partition('"started_by": "parent ')[2].partition('"')[0])
    for line in (first, second):
        assert ends(int(line.partition('"pid": ')[2].partition(",")[0]))
    os.kill(parent, 9)


def test_in_a_chroot_the_mount_is_an_ordinary_one(root: Caller) -> None:
    root.mount("first")
    lower, mountpoint = root.directories("second")
    top = root.directory / "top"
    top.mkdir()
    subprocess.run(["mount", "--rbind", "/", top], check=True)
    try:
        subprocess.run(["mount", "--make-rslave", top], check=True)
        done = root.run("chroot", top, *root.user.unionfs_cmd, "-o", f"lowerdir={lower}", mountpoint)
        assert (done.returncode, done.stderr) == (0, "")
        assert "another root directory" in root.run("chroot", top, *root.user.unionfs_cmd, "stats", mountpoint).stdout
        root.run("umount", f"{top}{mountpoint}")
    finally:
        subprocess.run(["umount", "-l", top], check=True)


def test_other_code_is_another_caller_and_changed_code_ends_the_parent_with_its_mounts(root: Caller) -> None:
    copy = root.directory / "code"
    shutil.copytree(CHECKOUT / "unionfs", copy / "unionfs")
    there = {"PYTHONPATH": os.fspath(copy)}
    root.mount("first")
    assert root.started_by(root.mount("second", env=there)) == ABSENT
    theirs = root.started_by(root.mount("third", env=there))
    assert theirs.startswith("parent ")
    assert theirs != f"parent {root.parent()}"
    with (copy / "unionfs" / "daemon" / "process.py").open("a") as source:
        source.write("# another version\n")
    assert root.started_by(root.mount("fourth", env=there)) == (
        f"itself: {theirs}: its code or its surroundings have changed"
    )
    third = root.directory / "third"
    if not machine.lacks_keeper():
        mount = Path(f"/proc/{root.stats(third)['pid']}/comm").read_text().strip()
        os.kill(before := chaos.wait_for_daemon(mount), 9)  # the next one is of the code before
        chaos.wait_for_daemon(mount, after=before)
        assert root.started_by(third) == theirs
    for mountpoint in (third, root.directory / "second"):
        assert root.unionfs("umount", mountpoint).returncode == 0
    assert ends(int(theirs.split()[1]))
    last = root.started_by(root.mount("fifth", env=there))
    assert last.startswith("parent ")
    os.kill(int(last.split()[1]), 9)

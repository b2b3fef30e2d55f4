"""`unionfs run --as-me`: the command runs as this user, with the user's files, and the image is not changed."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launcher.terminals import terminal
from tests.support.users import User, without_ids
from unionfs.containers import accounts, as_me
from unionfs.containers.config import Group, HostUser

pytestmark = pytest.mark.usefixtures("fuse_device")

GROUP = 54321
LOOK = """
id -u; id -g; id -un; pwd; echo $HOME; umask; echo $JOB $SECRET_A $LD_LIBRARY_PATH; hostname
echo mine > $HOME/made; echo ours > "$SHARED/made"; echo scratch > /usr/scratch
stat -c %u:%g /usr/scratch $HOME/made; getent passwd $(id -u); getent group $(id -g)
chown 0 $HOME/made 2>/dev/null || echo refused; cat /dev/shm/$JOB; readlink /proc/self/ns/ipc; cat <&7
"""


@pytest.fixture
def me(ordinary_user: User, root_user: User) -> User:
    """An ordinary user who is in one more group."""
    del root_user  # sets the group
    groups = ("setpriv", f"--reuid={ordinary_user.uid}", f"--regid={ordinary_user.gid}", f"--groups={GROUP}", "--")
    return dataclasses.replace(ordinary_user, prefix=groups)


@pytest.mark.parametrize("has_ids", [True, False], ids=["subordinate ids", "one id"])
def test_the_command_is_the_users(me: User, debian: Callable[[User], Path], run_dir: Path, has_ids: bool) -> None:
    user, root = me if has_ids else without_ids(me), debian(me)
    job = f"unionfs-{secrets.token_hex(4)}"
    shared = run_dir / job
    shared.mkdir()
    os.chown(shared, 0, GROUP)
    shared.chmod(0o2770)
    Path("/dev/shm", job).write_text("memory\n")
    Path("/dev/shm", job).chmod(0o644)
    names = {"JOB": job, "SECRET_A": "x", "LD_LIBRARY_PATH": "/x", "SHARED": os.fspath(shared)}
    words = [
        "run",
        "--as-me",
        "--env-exclude",
        "SECRET*",
        "--tmpfs",
        "/var/tmp",
        "-v",
        f"{shared}:{shared}",
        os.fspath(root),
    ]
    command = [*user.unionfs_cmd, *words, "bash", "-c", LOOK]
    try:
        begin = 'umask 027; echo descriptor | { exec 7<&0; "$@"; }'
        told = user.run(["sh", "-c", begin, "sh", *command], env=names)
    finally:
        Path("/dev/shm", job).unlink()
    gid = user.gid
    assert told.stdout.splitlines() == [
        *(str(user.uid), str(gid), user.name, str(user.home), str(user.home), "0027", job, os.uname().nodename),
        *(f"{user.uid}:{gid}", f"{user.uid}:{gid}"),
        f"{user.name}:x:{user.uid}:{gid}::{user.home}:/bin/bash",
        f"{user.name}:x:{gid}:{user.name}",
        *("refused", "memory", os.readlink("/proc/self/ns/ipc"), "descriptor"),
    ]
    made = (user.home / "made").stat()
    assert (made.st_uid, made.st_gid, made.st_mode & 0o777) == (user.uid, gid, 0o640)
    assert (shared / "made").stat().st_gid == GROUP
    assert not (root / "usr/scratch").exists()
    assert f"{user.name}:" not in (root / "etc/passwd").read_text()
    assert json.loads(me.unionfs("ps", "-a", "--json").stdout) == []
    (user.home / "made").unlink()


def test_root_is_root_also_on_a_view_of_this_machine(root_user: User) -> None:
    told = root_user.unionfs("run", "--as-me", "/", "sh", "-c", "id; pwd; echo $HOME")
    home = str(root_user.home)
    assert told.stdout.splitlines() == ["uid=0(root) gid=0(root) groups=0(root)", home, home]


def test_at_a_terminal_and_beside_it(me: User, debian: Callable[[User], Path]) -> None:
    root = debian(me)
    with terminal(me, [*me.unionfs_cmd, "run", "--as-me", "--name", "mine", root, "bash"]) as shell:
        shell.type("stat -c %U $(tty); echo $((1 + 1))-up\n")
        shell.expect(rf"{me.name}\r\n2-up")
        beside = me.unionfs("exec", "mine", "sh", "-c", "id -u; pwd; echo $LOGNAME")
        assert beside.stdout.splitlines() == [str(me.uid), str(me.home), me.name]
        assert me.unionfs("exec", "-u", "root", "mine", "id", "-u").stdout == "0\n"
        shell.type("exit 7\n")
        assert shell.end() == 7
    me.unionfs("rm", "mine")  # a name keeps it


def test_names_that_clash_and_no_files_at_all(me: User, debian: Callable[[User], Path], run_dir: Path) -> None:
    top = run_dir / "clashing"
    (top / "etc").mkdir(parents=True, mode=0o755)
    text = f"root:x:0:0:root:/root:/bin/sh\n{me.name}:x:33:33::/:/bin/false\nnode:x:{me.uid}:{me.gid}::/:/bin/false\n"
    (top / "etc/passwd").write_text(text)
    words = ("run", "--as-me", "--lower", top, "--lower", debian(me))
    look = "id -un; id -u $0; id -u node; getent passwd 33; wc -l < /etc/passwd"
    found = me.unionfs(*words, "sh", "-c", look, me.name, check=False).stdout.splitlines()
    assert found == [me.name, str(me.uid), str(me.uid), "3"]
    (top / "etc/passwd").unlink()
    (top / "etc/passwd").symlink_to("/nowhere/passwd")
    assert me.unionfs(*words, "id", "-un", check=False).stdout.strip() == me.name


def test_what_exclude_each_other(me: User) -> None:
    for words in (["--as-me", "--user", "root"], ["--as-me", "--runtime", "true"], ["--env-exclude", "A"]):
        refused = me.unionfs("run", *words, "/", "true", check=False)
        assert refused.returncode == 125
        assert "--as-me" in refused.stderr


def test_where_user_namespaces_are_refused_the_administrator_is_asked(me: User) -> None:
    refusing = 'echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --inh-caps=-all --ambient-caps=-all "$@"'
    own = ("unshare", "--user", "--map-current-user", "--keep-caps", "sh", "-c", refusing, "sh")
    refused = me.run([*own, *me.unionfs_cmd, "run", "--as-me", "/", "true"], check=False)
    assert refused.returncode == 125
    assert refused.stderr.splitlines()[1:] == [
        f"  ask the administrator of {os.uname().nodename} for: sysctl -w user.max_user_namespaces=15000"
    ]


def test_directories_of_the_system_are_the_images(tmp_path: Path) -> None:
    shown = {path: as_me.may_show(path) for path in ("/", "/usr/share", "/etc", "/home", "/libx", "relative")}
    assert not any(shown.values())
    here = os.path.realpath(tmp_path)
    mine = HostUser("me", 7, (Group("us", 8),), "", here, "/bin/sh", f"{here}/gone", (("TMPDIR", here),))
    found = [volume.target for volume in as_me.volumes(mine, ("/tmp", "/var/tmp"))]
    assert found == [here]


def test_a_user_without_an_account() -> None:
    mine = HostUser("user7", 7, (Group("group8", 8), Group("wheel", 10)), "", "/", "/bin/sh", "/", ())
    assert accounts.passwd(mine, "") == "user7:x:7:8::/:/bin/sh\n"
    assert accounts.group(mine, "wheel:x:9:\nroot:x:0:\n") == "group8:x:8:user7\nwheel:x:10:user7\nroot:x:0:\n"

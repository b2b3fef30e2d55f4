"""The form in which container tools call us: option strings as they were seen, and what a mount made so looks like."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from tests.fuse.daemons import Daemon, daemon_of
from tests.support.mountinfo import mount_at
from tests.support.users import User
from unionfs.cli import mount_helper
from unionfs.cli.errors import CommandError
from unionfs.daemon.options import DaemonOptions
from unionfs.fuse.options import DEFAULT_TRANSPORT, FOREVER_S


def _options(*argv: str) -> DaemonOptions:
    return mount_helper._daemon_options(mount_helper._parse([*argv]))


_BRANCHES = "lowerdir=/l/A:/l/B,upperdir=/u,workdir=/w"
_CONTEXT = "system_u:object_r:container_file_t:s0:c1,c2"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a,b=c", ["a", "b=c"]),
        ("a,,b,", ["a", "b"]),
        ("", []),
        (r"lowerdir=/a\,b:/c", ["lowerdir=/a,b:/c"]),
        (r"lowerdir=/a\:b", [r"lowerdir=/a\:b"]),
        (f'context="{_CONTEXT}",ro', [f"context={_CONTEXT}", "ro"]),
        ("a\\", ["a\\"]),
        ('lowerdir=/x/"q"/lo,ro', ['lowerdir=/x/"q"/lo', "ro"]),
        ('lowerdir="/x"/lo,upperdir=/"y",ro', ['lowerdir="/x"/lo', 'upperdir=/"y"', "ro"]),
    ],
)
def test_options_are_separated_by_commas(text: str, wanted: list[str]) -> None:
    assert list(mount_helper.split_options(text)) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("/a:/b", ["/a", "/b"]),
        (r"/a\:b:/c", ["/a:b", "/c"]),
        (r"/a\\:/c", ["/a\\", "/c"]),
        ("/a::/b:", ["/a", "/b"]),
        ("/a\\", ["/a\\"]),
    ],
)
def test_lowers_are_separated_by_colons(text: str, wanted: list[str]) -> None:
    assert mount_helper.split_paths(text) == wanted


def test_the_upper_and_the_work_directory_have_colons(tmp_path: Path) -> None:
    for name in ("lower", "a:b", "c:d"):
        (tmp_path / name).mkdir()
    for colon in (":", r"\:"):
        wanted = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/a{colon}b,workdir={tmp_path}/c{colon}d"
        union = _options("-o", wanted, "/merged").union
        assert (union.upper, union.work) == (f"{tmp_path}/a:b", f"{tmp_path}/c:d")


def test_podmans_read_write_mount() -> None:
    options = _options("-o", f"{_BRANCHES},,volatile", "/merged")
    assert options.union.lowers == ("/l/A", "/l/B")
    assert (options.union.upper, options.union.work) == ("/u", "/w")
    assert (options.union.durability, options.union.whiteout) == ("volatile", "fuse-overlayfs")
    assert (options.mountpoint, options.mount.read_only, options.may_cover_union) == ("/merged", False, True)
    assert _options("-o", f"{_BRANCHES},", "/m").union.durability == "normal"


def test_podmans_read_only_mount() -> None:
    options = _options("-o", "lowerdir=/l/A:/l/B", "/merged")
    assert (options.union.upper, options.union.work) == (None, None)
    assert options.mount.read_only
    assert options.serve.read_only


def test_containerds_form_names_a_source_first() -> None:
    options = _options("overlay", "/mnt", "-o", "workdir=/w,upperdir=/u,lowerdir=/l,dev,suid")
    assert options.mountpoint == "/mnt"
    assert (options.mount.dev, options.mount.suid) == (True, True)


def test_flags_of_a_mount_helper() -> None:
    words = ["src", "/m", "-n", "-s", "-v", "-t", "fuse.unionfs", "-orw,noatime", "-o", "lowerdir=/l"]
    request = mount_helper._parse(words)
    assert request.positionals == ["src", "/m"]
    assert request.options == ["rw", "noatime", "lowerdir=/l"]
    assert not request.foreground
    assert mount_helper._parse(["-f", "/m"]).foreground
    debug = mount_helper._parse(["-d", "/m"])
    assert debug.foreground
    assert debug.debug
    assert mount_helper._parse(["-o", "a", "--", "-odd"]).positionals == ["-odd"]


@pytest.mark.parametrize(("text", "read_only"), [("ro", True), ("rw", False), ("ro,rw", False), ("rw,ro", True)])
def test_the_later_of_opposites_counts(text: str, read_only: bool) -> None:
    assert _options("-o", f"{_BRANCHES},{text}", "/m").mount.read_only is read_only


def test_watching() -> None:
    assert _options("-o", "lowerdir=/l,watch", "/m").watch
    assert not _options("-o", "lowerdir=/l", "/m").watch


@pytest.mark.parametrize(
    ("text", "atime", "diratime"),
    [
        ("", False, True),
        ("noatime,atime", True, True),
        ("noatime,strictatime", True, True),
        ("relatime", True, True),
        ("atime,noatime,nodiratime", False, False),
    ],
)
def test_access_times_are_kept_when_asked_for(text: str, atime: bool, diratime: bool) -> None:
    options = _options("-o", f"{_BRANCHES},{text}", "/m")
    assert (options.mount.atime, options.mount.diratime) == (atime, diratime)
    assert options.union.atime == atime


def test_other_options_that_are_understood() -> None:
    options = _options("-o", f"{_BRANCHES},allow_other,timeout=0,writeback=1,nosuid,noexec,fsname=x,fsync=0", "/m")
    assert (options.serve.timeout_s, options.serve.writeback, options.union.durability) == (0.0, True, "volatile")
    assert (options.mount.suid, options.mount.exec, options.mount.source) == (False, False, "x")
    assert options.mount.allow_other is True


@pytest.mark.parametrize(("text", "mode"), [("", "auto"), ("busy_poll=on", "on"), ("busy_poll=off", "off")])
def test_busy_polling_is_asked_for_by_name(text: str, mode: str) -> None:
    assert _options("-o", f"{_BRANCHES},{text}", "/m").serve.busy_poll == mode


@pytest.mark.parametrize("value", ["", "x", "1"])
def test_no_other_mode_of_busy_polling_is_understood(value: str) -> None:
    with pytest.raises(CommandError, match=f"busy_poll={value}: not one of auto, on, off"):
        _options("-o", f"{_BRANCHES},busy_poll={value}", "/m")


@pytest.mark.parametrize(("value", "kept_in"), [("0", ""), ("1", "privileged"), ("2", "user")])
def test_where_owners_are_kept(value: str, kept_in: str) -> None:
    options = _options("-o", f"{_BRANCHES},xattr_permissions={value}", "/m").union
    assert (options.overrides, options.overrides_shared) == (kept_in, True)
    assert _options("-o", f"lowerdir=/l,xattr_permissions={value}", "/m").union.overrides == ""


def test_tuning_options_are_ignored_silently_and_unknown_ones_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    _options("-o", f"{_BRANCHES},threaded=1,xino=off,noacl,private,redirect_dir=off,x-systemd.automount,relatime", "/m")
    assert capsys.readouterr().err == ""
    _options("-o", f"{_BRANCHES},frobnicate=3,metacopy", "--strange", "/m")
    assert capsys.readouterr().err.splitlines() == [
        "unionfs: unknown argument ignored: --strange",
        "unionfs: unknown argument ignored: frobnicate=3",
        "unionfs: unknown argument ignored: metacopy",
    ]


@pytest.mark.parametrize("value", ["soon", "", "nan", "-1"])
def test_a_malformed_timeout_is_ignored_with_a_line(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _options("-o", f"{_BRANCHES},timeout={value}", "/m").serve.timeout_s == FOREVER_S
    assert capsys.readouterr().err == f"unionfs: unknown argument ignored: timeout={value}\n"
    assert _options("-o", f"{_BRANCHES},timeout=inf", "/m").serve.timeout_s == FOREVER_S


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["-o", "lowerdir=/l"], "no mountpoint specified"),
        (["-o", "upperdir=/u,workdir=/w", "/m"], "lowerdir not specified"),
        (["-o", "lowerdir=/l,upperdir=/u", "/m"], "workdir not specified"),
        (["-o", f"{_BRANCHES},redirect_dir=on", "/m"], "only redirect_dir=off"),
        (["-o", f"{_BRANCHES},uidmapping=0:1", "/m"], "uidmapping=0:1: not in groups of three"),
        (["-o", f"{_BRANCHES},gidmapping=0:1:0", "/m"], "gidmapping=0:1:0: a number is out of range"),
        (["-o", f"{_BRANCHES},uidmapping=0:one:5", "/m"], "uidmapping=0:one:5: not numbers"),
        (["-o", f"{_BRANCHES},squash_to_uid=-1", "/m"], "squash_to_uid=-1: a number is out of range"),
        (["-o", f"{_BRANCHES},squash_to_gid=", "/m"], "squash_to_gid=: not in groups of three"),
        (["-o", f"{_BRANCHES},xattr_permissions=3", "/m"], "xattr_permissions=3: not one of 0, 1, 2"),
        (["-o", f"{_BRANCHES},squash_to_uid=root", "/m"], "squash_to_uid=root: not numbers"),
    ],
)
def test_what_cannot_be_done_is_refused(argv: list[str], sentence: str) -> None:
    with pytest.raises(CommandError, match=sentence) as refused:
        mount_helper.main(argv)
    assert refused.value.status == 1


def test_the_environment_sets_what_options_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIONFS_TRANSPORT", "pyfuse3")
    monkeypatch.setenv("UNIONFS_LOG", "some.log")
    options = _options("-o", _BRANCHES, "/m")
    assert (options.transport, options.log) == ("pyfuse3", os.path.abspath("some.log"))


@pytest.mark.transport(DEFAULT_TRANSPORT)
def test_it_mounts_with_paths_that_need_escapes(user: User, scratch: Path, fuse_device: Path) -> None:
    del fuse_device
    lowers = [scratch / "a:b", scratch / "c,d"]
    others = {name: scratch / name for name in ("up", "work", "mnt")}
    for directory in (*lowers, *others.values()):
        directory.mkdir()
        user.own(directory)
    (lowers[0] / "one").write_text("1")
    (lowers[1] / "two").write_text("2")
    text = f"lowerdir={scratch}/a\\:b:{scratch}/c\\,d,upperdir={others['up']},workdir={others['work']},,volatile"
    user.run([*user.unionfs_cmd, "-o", text, "source", others["mnt"]], cwd=scratch)
    with daemon_of(others["mnt"]) as daemon:
        seen = mount_at(others["mnt"])
        assert seen is not None
        assert seen.fstype == "fuse.unionfs"
        user.run(["sh", "-c", 'cd "$1" && cat one two && rm one', "sh", others["mnt"]])
        user.unionfs("umount", others["mnt"])
        assert daemon.has_ended(0)
    hidden = os.lstat(others["up"] / "one")
    assert stat.S_ISCHR(hidden.st_mode)
    assert hidden.st_rdev == 0


@pytest.mark.transport(DEFAULT_TRANSPORT)
def test_it_mounts_twice_on_one_target(root_user: User, scratch: Path, fuse_device: Path) -> None:
    """As containerd's retry does; both must come and both must go."""
    del fuse_device
    made = {name: scratch / name for name in ("low", "up", "work", "mnt")}
    for directory in made.values():
        directory.mkdir()
    text = f"lowerdir={made['low']},upperdir={made['up']},workdir={made['work']}"
    argv = [*root_user.unionfs_cmd, "-o", text, os.fspath(made["mnt"])]
    root_user.run(argv)
    first = Daemon(made["mnt"])
    root_user.run(argv)
    with daemon_of(made["mnt"]) as second:
        assert second.pid != first.pid
        root_user.unionfs("umount", made["mnt"])
        assert second.has_ended(0)
        assert not first.has_ended(0)
        root_user.unionfs("umount", made["mnt"])
        assert first.has_ended(0)
    assert mount_at(made["mnt"]) is None
    os.close(first.pidfd)


@pytest.mark.transport(DEFAULT_TRANSPORT)
def test_a_mount_is_made_read_only_and_back(root_user: User, scratch: Path, fuse_device: Path) -> None:
    """`mount -o remount,ro`: mount(8) calls its helper with the options that hold and the new ones behind them."""
    del fuse_device
    made = {name: scratch / name for name in ("low", "up", "work", "mnt")}
    for directory in made.values():
        directory.mkdir()
    (made["low"] / "f").write_text("1")
    mnt = os.fspath(made["mnt"])
    now = "rw,nodev,relatime,user_id=0,group_id=0,default_permissions,allow_other"

    def remount(options: str, expect: int = 0) -> str:
        done = root_user.run([*root_user.unionfs_cmd, "unionfs", mnt, "-o", f"{now},remount,{options}"], check=False)
        assert done.returncode == expect, done.stderr
        return done.stderr

    argv = ["-o", f"lowerdir={made['low']},upperdir={made['up']},workdir={made['work']}", mnt]
    root_user.run([*root_user.unionfs_cmd, *argv])
    with daemon_of(made["mnt"]) as daemon:
        remount("ro")
        refused = 'cd "$1" && cat f && ! touch f && ! touch new && ! rm f && ! mkdir d'
        assert "Read-only file system" in root_user.run(["sh", "-c", refused, "sh", mnt]).stderr
        seen = mount_at(made["mnt"])
        assert seen is not None
        assert "ro" in seen.options.split(",")
        remount("rw")
        root_user.run(["sh", "-c", 'cd "$1" && echo 2 > f && touch new', "sh", mnt])
        said = root_user.run(
            ["sh", "-c", 'exec 3> "$1/open"; shift; "$@"', "sh", mnt, *root_user.unionfs_cmd, mnt, "-o", "remount,ro"],
            check=False,
        )
        assert said.returncode != 0
        assert "files are open for writing" in said.stderr
        root_user.unionfs("umount", mnt)
        assert daemon.has_ended(0)
    assert (made["up"] / "f").read_text() == "2\n"
    assert "nothing is mounted there" in remount("ro", expect=1)


_ASK_ATTRIBUTES = """
import os, sys
os.chdir(sys.argv[1])
for ask in (
    lambda: os.setxattr("f", "user.new", b"1"),
    lambda: os.getxattr("f", "user.old"),
    lambda: os.removexattr("f", "user.old"),
    lambda: os.listxattr("f"),
    lambda: os.setxattr("d", "user.new", b"1", os.XATTR_CREATE),
):
    try:
        print("answered", ask())
    except OSError as error:
        print(error.strerror)
print(os.stat(".").st_nlink, os.stat("d").st_nlink, os.stat("d/e").st_nlink, os.stat("f").st_nlink)
os.rename("f", "g")
os.rmdir("d/e")
os.rmdir("d")
os.mkdir("d")
os.mkdir("d/n")
print(os.listdir("d"), os.stat("d").st_nlink, os.access("g", os.R_OK))
"""


def test_no_attributes_and_one_link_for_directories(
    transport: str, root_user: User, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`noxattrs=1,static_nlink`. What the union itself keeps in attributes goes on: the new `d` hides the old one."""
    monkeypatch.setenv("UNIONFS_TRANSPORT", transport)
    made = {name: scratch / name for name in ("low", "up", "work", "mnt")}
    for directory in (*made.values(), made["low"] / "d", made["low"] / "d/e"):
        directory.mkdir()
    (made["low"] / "f").write_text("1")
    os.setxattr(made["low"] / "f", "user.old", b"1")
    branches = f"lowerdir={made['low']},upperdir={made['up']},workdir={made['work']}"
    root_user.run([*root_user.unionfs_cmd, "-o", f"{branches},noxattrs=1,static_nlink", made["mnt"]])
    with daemon_of(made["mnt"]) as daemon:
        asked = root_user.run([sys.executable, "-c", _ASK_ATTRIBUTES, made["mnt"]]).stdout.splitlines()
        assert asked == [*["Operation not supported"] * 5, "1 1 1 1", "['n'] 1 True"]
        root_user.unionfs("umount", made["mnt"])
        assert daemon.has_ended(0)
    assert sorted(os.listdir(made["up"])) == ["d", "f", "g"]
    assert any("opaque" in name for name in os.listxattr(made["up"] / "d"))
    assert os.getxattr(made["up"] / "g", "user.old") == b"1"

"""--passthrough on the command line: where it works, what `stats` says of it, and who is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import machine, tiny
from tests.support.mountinfo import mount_at
from tests.support.mounts import mounted, umount
from tests.support.rootfs import unpack
from tests.support.scratch import make_shared
from tests.support.users import User

TIMEOUT_S = 120
needs_passthrough = pytest.mark.skipif(machine.lacks_passthrough() != "", reason=machine.lacks_passthrough())
pytestmark = pytest.mark.usefixtures("fuse_device")


@pytest.fixture
def branches(scratch: Path) -> Path:
    make_shared(scratch)
    for name in ("lower", "upper", "work", "mnt"):
        (scratch / name).mkdir()
    (scratch / "lower/file").write_text("content")
    return scratch


def passed(user: User, mountpoint: Path) -> object:
    return json.loads(user.unionfs("stats", "--json", mountpoint).stdout)["passthrough"]


@needs_passthrough
def test_stats_count_open_files(root_user: User, branches: Path) -> None:
    lower, mnt = branches / "lower", branches / "mnt"
    options = ("--passthrough",)
    with mounted([lower], mnt, user=root_user, transport="kernel", upper=branches / "upper", options=options):
        assert passed(root_user, mnt) == {"open": 0, "plain": 0}
        with (mnt / "file").open() as file:
            assert file.read() == "content"
            assert passed(root_user, mnt) == {"open": 1, "plain": 0}
        assert "passthrough  " in root_user.unionfs("stats", mnt).stdout
    with mounted([lower], mnt, user=root_user, transport="kernel", upper=branches / "upper"):
        assert passed(root_user, mnt) is None


@needs_passthrough
def test_the_form_of_mount_helpers(root_user: User, branches: Path) -> None:
    options = ",".join(f"{key}={branches / name}" for key, name in
                       (("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work")))  # fmt: skip
    mnt = branches / "mnt"
    root_user.unionfs("-o", f"{options},passthrough,squash_to_uid=7", mnt)
    try:
        assert passed(root_user, mnt) == {"open": 0, "plain": 0}
        (mnt / "file").write_text("changed")
        assert (mnt / "file").stat().st_uid == 7
        assert (branches / "upper/file").read_text() == "changed"
    finally:
        umount(mnt, root_user)


@needs_passthrough
def test_run_and_what_it_keeps(root_user: User, scratch: Path) -> None:
    """A container that was made with it starts with it again."""
    lower = unpack(tiny.make(scratch / "tiny.tar"), scratch / "root", root_user)
    try:
        script = "read line </etc/hostname; echo more >>/file; cat /file"
        done = root_user.unionfs("run", "--passthrough", "--name", "c", "--lower", lower, "sh", "-c", script)
        assert done.stdout == "more\n"
        assert root_user.unionfs("start", "-a", "c").stdout == "more\nmore\n"
        (record,) = root_user.home.rglob("container.json")
        assert json.loads(record.read_text())["config"]["rootfs"]["passthrough"] is True
    finally:
        root_user.unionfs("rm", "-f", "c", check=False)


@needs_passthrough
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--writeback",), "passthrough and writeback exclude each other"),
        (("--transport", "pyfuse3"), "passthrough needs the kernel transport, not pyfuse3"),
    ],
)
def test_what_excludes_it(root_user: User, branches: Path, options: tuple[str, ...], told: str) -> None:
    argv = [*root_user.unionfs_cmd, "mount", "--passthrough", *options]
    argv += ["--lower", str(branches / "lower"), str(branches / "mnt")]
    done = root_user.run(argv, check=False, timeout_s=TIMEOUT_S)
    assert done.returncode == 1
    assert told in done.stderr
    assert mount_at(branches / "mnt") is None


def test_an_ordinary_user_is_refused(ordinary_user: User, branches: Path) -> None:
    ordinary_user.own(branches)
    argv = [*ordinary_user.unionfs_cmd, "mount", "--passthrough", "--lower", str(branches / "lower")]
    for prefix in ([], ["unshare", "--user", "--map-root-user", "--mount"]):
        done = ordinary_user.run([*prefix, *argv, str(branches / "mnt")], check=False, timeout_s=TIMEOUT_S)
        assert done.returncode == 1
        assert "passthrough needs root of the machine" in done.stderr
    assert mount_at(branches / "mnt") is None


def test_run_with_another_driver(user: User, scratch: Path) -> None:
    done = user.unionfs("run", "--passthrough", "--driver", "vfs", "--lower", scratch, "true", check=False)
    assert done.returncode == 125
    assert "bad driver: vfs: --passthrough is for fuse" in done.stderr

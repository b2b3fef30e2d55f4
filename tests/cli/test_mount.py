"""`unionfs mount`: usable when it returns, and clear about what it cannot do."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fuse.daemons import daemon_of
from tests.support.mountinfo import detach, mount_at
from tests.support.users import User
from unionfs.fuse.options import DEFAULT_TRANSPORT

pytestmark = pytest.mark.transport(DEFAULT_TRANSPORT)


@dataclass(frozen=True, slots=True)
class Place:
    """Directories to mount, all below `top`, and who mounts them."""

    user: User
    top: Path

    def path(self, name: str) -> Path:
        return self.top / name

    def mount(self, *args: str, check: bool = True, mountpoint: str = "mnt", **env: str) -> str:
        """Run `unionfs mount` in `top`; what it said on stderr."""
        argv = [*self.user.unionfs_cmd, "mount", *args, mountpoint]
        done = self.user.run(argv, cwd=self.top, env=env, check=check)
        assert done.stdout == ""
        return done.stderr

    def refused(self, *args: str, mountpoint: str = "mnt", **env: str) -> str:
        """As `mount`, which must fail and leave nothing mounted."""
        argv = [*self.user.unionfs_cmd, "mount", *args, mountpoint]
        done = self.user.run(argv, cwd=self.top, env=env, check=False)
        assert done.returncode == 1, done.stderr
        assert done.stderr.startswith("unionfs: ")
        assert mount_at(self.path("mnt")) is None
        return done.stderr


@pytest.fixture
def place(user: User, scratch: Path, fuse_device: Path) -> Iterator[Place]:
    """Directories low (with a file), low2, up, mnt."""
    del fuse_device
    for name in ("low", "low2", "up", "mnt"):
        (scratch / name).mkdir()
    (scratch / "low" / "file").write_text("low")
    (scratch / "low2" / "file").write_text("low2")
    (scratch / "low2" / "other").write_text("other")
    user.own(scratch)
    yield Place(user, scratch)
    while mount_at(scratch / "mnt") is not None:
        detach(scratch / "mnt")


def test_relative_paths_and_the_order_of_lowers(place: Place) -> None:
    assert place.mount("--lower", "low", "--lower", "low2", "--upper", "up") == ""
    with daemon_of(place.path("mnt")):
        shell = "cat mnt/file mnt/other && echo new > mnt/file && rm mnt/other"
        said = place.user.run(["sh", "-c", shell], cwd=place.top)
        place.user.unionfs("umount", place.path("mnt"))
    assert said.stdout == "lowother"
    assert sorted(os.listdir(place.path("up"))) == [".wh.other", "file"]
    assert place.path("low/file").read_text() == "low"


def test_names_that_are_not_text(place: Place) -> None:
    """Blanks, newlines, backslashes, commas, colons and bytes that are no UTF-8, in every path."""
    strange = os.fsdecode(b" a\nb\\040c,d:e\xff ")
    for name in ("low", "up", "mnt"):
        place.path(name).rename(place.path(name + strange))
    place.mount("--lower", f"low{strange}", "--upper", f"up{strange}", mountpoint=f"mnt{strange}")
    mountpoint = place.path(f"mnt{strange}")
    with daemon_of(mountpoint):
        assert place.user.run(["cat", mountpoint / "file"]).stdout == "low"
        place.user.run(["touch", mountpoint / f"new{strange}"])
        place.user.unionfs("umount", mountpoint)
    assert mount_at(mountpoint) is None
    assert os.listdir(place.path(f"up{strange}")) == [f"new{strange}"]


def test_a_caller_whose_directory_has_gone(place: Place) -> None:
    shell = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    argv = [*place.user.unionfs_cmd, "mount", "--lower", "low", "mnt"]
    done = place.user.run(["sh", "-c", shell, "sh", *argv], cwd=place.top, check=False)
    assert (done.returncode, done.stderr) == (1, "unionfs: mount failed: No such file or directory\n")


@pytest.mark.parametrize("parent", [False, True])
def test_a_mount_that_lacks_descriptors_fails_before_it_is_ready(place: Place, *, parent: bool) -> None:
    """A daemon could otherwise end a moment after the mount was reported, or be replaced again and again. A parent of
    mounts has more descriptors than the process that it forks may open."""
    shell = 'ulimit -n "$1"; shift; exec "$@"'
    low, up, mnt = (os.fspath(place.path(name)) for name in ("low", "up", "mnt"))
    argv = [*place.user.unionfs_cmd, "mount", "--lower", low, "--upper", up, mnt]
    env = {**place.user.env, "UNIONFS_LINGER": "1" if parent else "0"}
    codes = set()
    if parent:
        place.path("first").mkdir()
        place.user.own(place.path("first"))
        place.user.unionfs("mount", "--lower", low, place.path("first"))
    for number in range(8, 48, 3):
        done = place.user.run(["sh", "-c", shell, "sh", str(number), *argv], check=False, env=env)
        codes.add(done.returncode)
        if done.returncode == 0:
            with daemon_of(place.path("mnt")):
                assert place.user.run(["cat", place.path("mnt/file")]).stdout == "low"
                assert place.user.unionfs("stats", place.path("mnt"), check=False).returncode == 0
                place.user.unionfs("umount", place.path("mnt"))
        else:
            assert done.stderr.endswith("Too many open files\n"), number
        assert mount_at(place.path("mnt")) is None
    if parent:
        place.user.unionfs("umount", place.path("first"))
    assert codes == {0, 1}


def test_the_work_directory_is_made_beside_the_upper(place: Place) -> None:
    place.path("link").symlink_to("up")
    place.mount("--lower", "low", "--upper", "link")
    with daemon_of(place.path("mnt")):
        work = os.stat(place.path("up.work"))
        assert stat.S_IMODE(work.st_mode) == 0o700
        place.user.unionfs("umount", place.path("mnt"))
    place.mount("--lower", "low", "--upper", "up")
    with daemon_of(place.path("mnt")):
        place.user.unionfs("umount", place.path("mnt"))


def test_a_work_directory_made_in_vain_is_removed(place: Place) -> None:
    place.refused("--lower", "missing", "--upper", "up")
    assert not place.path("up.work").exists()


def test_without_an_upper_the_union_is_read_only(place: Place) -> None:
    place.mount("--lower", "low")
    with daemon_of(place.path("mnt")):
        seen = mount_at(place.path("mnt"))
        assert seen is not None
        assert seen.options.startswith("ro")
        tried = place.user.run(["sh", "-c", ": > mnt/file"], cwd=place.top, check=False)
        assert "Read-only file system" in tried.stderr
        place.user.unionfs("umount", place.path("mnt"))


def test_read_only_holds_back_an_upper(place: Place) -> None:
    place.path("up/file").write_text("up")
    place.user.own(place.path("up"))
    place.mount("--lower", "low", "--upper", "up", "--read-only")
    with daemon_of(place.path("mnt")):
        assert place.user.run(["cat", "mnt/file"], cwd=place.top).stdout == "up"
        tried = place.user.run(["rm", "mnt/file"], cwd=place.top, check=False)
        assert "Read-only file system" in tried.stderr
        place.user.unionfs("umount", place.path("mnt"))


def test_marks_in_the_requested_dialect(place: Place) -> None:
    place.mount("--lower", "low", "--upper", "up", UNIONFS_WHITEOUT="overlay")
    with daemon_of(place.path("mnt")):
        place.user.run(["rm", "mnt/file"], cwd=place.top)
        place.user.unionfs("umount", place.path("mnt"))
    assert stat.S_ISCHR(place.path("up/file").lstat().st_mode)


def test_it_may_cover_its_own_lower(place: Place) -> None:
    place.mount("--lower", "mnt", "--lower", "low")
    with daemon_of(place.path("mnt")):
        assert place.user.run(["ls", "mnt"], cwd=place.top).stdout == "file\n"
        place.user.unionfs("umount", place.path("mnt"))


def test_its_own_mountpoint_inside_a_lower_shows_empty(place: Place) -> None:
    """The daemon must not walk into the union that it serves."""
    place.mount("--lower", ".", "--log", "log")
    with daemon_of(place.path("mnt")):
        found = place.user.run(["find", "mnt", "-name", "file*"], cwd=place.top).stdout.split()
        assert sorted(found) == ["mnt/low/file", "mnt/low2/file"]
        place.user.unionfs("umount", place.path("mnt"))


def test_the_log_goes_to_a_file(place: Place) -> None:
    place.mount("--lower", "low", "--log", "log", "--debug")
    with daemon_of(place.path("mnt")):
        assert place.user.run(["cat", "mnt/file"], cwd=place.top).stdout == "low"
        place.user.unionfs("umount", place.path("mnt"))
    assert place.path("log").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("--lower", "missing"), "missing as a lower: No such file or directory"),
        (("--lower", "low/file"), "file as a lower: Not a directory"),
        (("--lower", "low", "--upper", "missing"), "missing as the upper: No such file or directory"),
        (("--lower", "low", "--upper", "low"), "lies inside the upper directory"),
        (("--lower", "up/inside", "--upper", "up"), "lies inside the upper directory"),
        (("--lower", "low", "--upper", "up", "--work", "up"), "overlap"),
        (("--lower", "low", "--upper", "up", "--work", "missing"), "missing as the work directory"),
        (("--lower", "low", "--upper", "up", "--work", "/proc"), "/proc is not on the same filesystem as the upper"),
        (("--lower", "low", "--work", "up"), "a work directory needs an upper"),
        (("--lower", "low", "--log", "missing/log"), "opening the log failed"),
    ],
)
def test_branches_that_make_no_union(place: Place, argv: tuple[str, ...], told: str) -> None:
    place.path("up/inside").mkdir()
    place.user.own(place.path("up/inside"))
    assert told in place.refused(*argv)


def test_mountpoints_that_cannot_be(place: Place) -> None:
    assert place.refused("--lower", "low", mountpoint="missing") == (
        "unionfs: mount failed: missing: the mountpoint does not exist\n  make it: mkdir -p missing\n"
    )
    assert "low/file: the mountpoint is not a directory" in place.refused("--lower", "low", mountpoint="low/file")


def test_a_busy_mountpoint(place: Place) -> None:
    place.mount("--lower", "low")
    with daemon_of(place.path("mnt")):
        done = place.user.run([*place.user.unionfs_cmd, "mount", "--lower", "low2", "mnt"], cwd=place.top, check=False)
        assert (done.returncode, done.stderr) == (
            1,
            "unionfs: mount failed: mnt: a union is mounted there already\n  unmount it first: unionfs umount mnt\n",
        )
        place.user.unionfs("umount", place.path("mnt"))
    assert mount_at(place.path("mnt")) is None


def test_senseless_command_lines(place: Place) -> None:
    for args in ([], ["mnt"], ["--lower", "low"], ["--whiteout", "x", "--lower", "low", "mnt"]):
        done = place.user.run([*place.user.unionfs_cmd, "mount", *args], cwd=place.top, check=False)
        assert done.returncode == 2
        assert "see unionfs mount --help" in done.stderr


_WITHOUT_DEVICE = """
set -e
mount -t tmpfs none /dev
mknod -m 666 /dev/null c 1 3
"$@"
"""


_ANOTHER_DEVICE = """
set -e
mount -t tmpfs -o mode=755 none /dev
mknod -m 666 /dev/null c 1 3
mknod -m 666 /dev/fuse c 1 3
"$@"
"""


def test_a_device_that_is_not_fuses(root_user: User, scratch: Path) -> None:
    done = _mount_with_another_dev(_ANOTHER_DEVICE, root_user, scratch)
    assert "opening failed: /dev/fuse: it is not the device of FUSE\n  as root of the machine: rm" in done.stderr


def test_a_machine_without_dev_fuse(root_user: User, scratch: Path) -> None:
    done = _mount_with_another_dev(_WITHOUT_DEVICE, root_user, scratch)
    assert "opening failed: /dev/fuse: the device does not exist\n  load the kernel module" in done.stderr


def _mount_with_another_dev(script: str, root_user: User, scratch: Path) -> subprocess.CompletedProcess[str]:
    if not shutil.which("unshare"):
        pytest.skip("unshare is missing (Debian package util-linux)")
    for name in ("low", "mnt"):
        (scratch / name).mkdir()
    argv = [*root_user.unionfs_cmd, "mount", "--lower", "low", "mnt"]
    shell = ["unshare", "--mount", "sh", "-c", script, "sh", *argv]
    done = root_user.run(shell, cwd=scratch, check=False)
    assert done.returncode == 1
    return done


_FEW_WATCHES = """
set -e
echo $1 > /proc/sys/user/max_inotify_instances
echo $2 > /proc/sys/user/max_inotify_watches
shift 2
"$@"
"""


@pytest.mark.parametrize(
    ("instances", "watches", "sentence"),
    [
        (
            "0",
            "100",
            "changes to the directories cannot be watched: Too many open files\n  allow more inotify instances",
        ),
        ("9", "0", "warning: not every directory can be watched: the limit of inotify watches is reached"),
    ],
)
def test_limits_of_inotify(
    ordinary_user: User, scratch: Path, fuse_device: Path, instances: str, watches: str, sentence: str
) -> None:
    """A user namespace has limits of its own (namespaces(7)), so nobody else feels these."""
    del fuse_device
    if not shutil.which("unshare"):
        pytest.skip("unshare is missing (Debian package util-linux)")
    for name in ("low", "mnt"):
        (scratch / name).mkdir()
    ordinary_user.own(scratch)
    argv = [*ordinary_user.unionfs_cmd, "mount", "--watch", "--lower", str(scratch / "low"), str(scratch / "mnt")]
    shell = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _FEW_WATCHES, "sh", instances, watches]
    done = ordinary_user.run([*shell, *argv], check=False)
    assert sentence in done.stderr
    assert done.returncode == (0 if watches == "0" else 1)

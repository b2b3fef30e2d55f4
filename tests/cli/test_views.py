"""A read-only union whose lowers are those of a mounted writable one: a view on the same superblock."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fuse.daemons import Daemon, daemon_of
from tests.support import share
from tests.support.mountinfo import detach, mount_at
from tests.support.timing import limit
from tests.support.users import User
from unionfs.syscalls import mountinfo

pytestmark = pytest.mark.transport("kernel")


class Place:
    """Two lowers with some files, an upper, its work directory and mountpoints."""

    def __init__(self, root: Path, user: User) -> None:
        self.root = root
        self.user = user
        for name in ("low1", "low2", "up", "work", "up2", "work2", "mnt", "mnt2", "view", "plain", "empty"):
            (root / name).mkdir()
        for path in ("low1/a/top", "low2/a/x", "low2/a/b/y", "low2/c/z", "low2/f"):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(path)
        os.link(root / "low2/a/x", root / "low2/c/hard")
        os.symlink("../f", root / "low2/c/link")
        os.setxattr(root / "low2/c/z", "user.kind", b"last")
        self.lowers = f"{root}/low1:{root}/low2"

    def mount(self, name: str, options: str = "", lowers: str = "", *, upper: str = "") -> Path:
        """Mount at `name`; with `upper` writable."""
        text = f"lowerdir={lowers or self.lowers}"
        if upper:
            text += f",upperdir={self.root / upper},workdir={self.root / upper.replace('up', 'work')}"
        self.user.unionfs("-o", f"{text},{options}" if options else text, self.root / name)
        return self.root / name

    def change(self, script: str) -> None:
        """Run shell code in the writable union."""
        subprocess.run(["sh", "-ec", script], cwd=self.root / "mnt", check=True, timeout=limit(30))


@pytest.fixture
def place(root_user: User, scratch: Path, fuse_device: Path) -> Iterator[Place]:
    """Root's. Whatever is mounted there afterwards is taken away."""
    del fuse_device
    made = Place(scratch, root_user)
    yield made
    for name in ("view", "plain", "mnt2", "mnt"):
        while mount_at(scratch / name) is not None:
            detach(scratch / name)


@pytest.fixture
def union(place: Place) -> Iterator[Path]:
    """A writable union at mnt, whose daemon is gone when the test has unmounted everything."""
    mnt = place.mount("mnt", upper="up")
    with daemon_of(mnt) as daemon:
        yield mnt
        for name in ("view", "plain", "mnt2", "mnt"):
            while mount_at(place.root / name) is not None:
                detach(place.root / name)
        assert daemon.has_ended()


def _device(path: Path) -> int:
    return os.stat(path).st_dev


def _numbers(path: Path) -> dict[str, int]:
    with os.scandir(path) as entries:
        return {entry.name: entry.inode() for entry in entries}


def _tree(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything that a program can compare, by path."""
    found: dict[str, tuple[object, ...]] = {}
    for above, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = os.path.join(above, name)
            st = os.lstat(path)
            data = ""
            if stat.S_ISLNK(st.st_mode):
                data = os.readlink(path)
            elif stat.S_ISREG(st.st_mode):
                data = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            size = 0 if stat.S_ISDIR(st.st_mode) else st.st_size
            mtime_ns = 0 if stat.S_ISDIR(st.st_mode) else st.st_mtime_ns
            xattrs = {key: os.getxattr(path, key, follow_symlinks=False) for key in _user_xattrs(path)}
            owner = st.st_mode, st.st_uid, st.st_gid, st.st_rdev
            found[os.path.relpath(path, root)] = (*owner, size, mtime_ns, data, tuple(sorted(xattrs.items())))
    return found


def _user_xattrs(path: str) -> list[str]:
    return [name for name in os.listxattr(path, follow_symlinks=False) if name.startswith("user.")]


def _changes(union: Path, stack: Path) -> list[str]:
    """The paths that differ, as podman finds them: what has equal numbers on one device is not looked at
    (containers/storage, pkg/archive/changes_linux.go)."""
    one, two = _looked_at(union, stack), _looked_at(stack, union)
    ours, theirs = _tree(union), _tree(stack)
    return sorted(path for path in one | two if ours.get(path) != theirs.get(path))


def _looked_at(here: Path, there: Path) -> set[str]:
    same_device = _device(here) == _device(there)
    found: set[str] = set()
    pending = ["."]
    while pending:
        path = pending.pop()
        both = [_numbers(root / path) if os.path.isdir(root / path) else {} for root in (here, there)]
        for name, number in both[0].items():
            if same_device and both[1].get(name) == number:
                continue
            below = os.path.normpath(os.path.join(path, name))
            found.add(below)
            if os.path.isdir(here / below) and not os.path.islink(here / below):
                pending.append(below)
    return found


def _all_changes(union: Path, stack: Path) -> list[str]:
    ours, theirs = _tree(union), _tree(stack)
    return sorted(path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path))


def test_it_is_on_the_device_of_the_union_and_shows_what_an_ordinary_mount_shows(place: Place, union: Path) -> None:
    view, plain = place.mount("view"), place.mount("plain", "view=off")
    assert _device(view) == _device(union) != _device(plain)
    assert _tree(view) == _tree(plain)
    place.change("echo new > f; rm -r a; mkdir a; echo > c/new; chmod 600 c/z")
    assert _tree(view) == _tree(plain)
    assert _numbers(view)["f"] != _numbers(union)["f"]
    with pytest.raises(OSError, match="Read-only file system"):
        (view / "f").write_text("x")


_KINDS = """
echo more >> f
touch -d 2020-01-01 c/z
chmod 600 a/x
mv a/b moved
mv c/hard a/hard
rm a/top
rm -r c; mkdir c; echo > c/z
ln f a/f
ln -s x a/link
setfattr -n user.kind -v other a/b/y
mkfifo c/fifo
rm f; mkdir f; echo > f/inner
mv a gone; mkdir a; echo > a/x
mv c/z c/y; mv c/y c/z
rm -r a; mv c a
""".strip().splitlines()


@pytest.mark.parametrize("seed", range(6))
def test_the_same_changes_are_found_as_between_ordinary_mounts(seed: int, place: Place, union: Path) -> None:
    """A view mounted before, one asked for in between, and after a remount."""
    chosen = random.Random(seed)
    view, plain = place.mount("view"), place.mount("plain", "view=off")
    assert _changes(union, view) == []
    for number in range(6):
        subprocess.run(["sh", "-c", chosen.choice(_KINDS)], cwd=union, check=False, stderr=subprocess.DEVNULL)
        if number == 3:
            detach(view)
            place.mount("view")
        assert _changes(union, view) == _all_changes(union, plain)
    detach(view)
    place.user.unionfs("umount", union)
    place.mount("mnt", upper="up")
    place.mount("view")
    assert _device(view) == _device(union)
    assert _changes(union, view) == _all_changes(union, plain)
    detach(view)
    place.user.unionfs("umount", union)


def test_what_is_equal_is_not_looked_at(place: Place, union: Path) -> None:
    place.change("echo new > a/b/new")
    view = place.mount("view")
    assert _looked_at(union, view) == {"a", "a/b", "a/b/new"}
    place.change("echo new >> c/z")
    assert _looked_at(union, view) == {"a", "a/b", "a/b/new", "c", "c/z"}


def test_an_empty_lower_at_the_bottom_does_not_count(place: Place, union: Path) -> None:
    view = place.mount("view", lowers=f"{place.lowers}:{place.root}/empty")
    assert _device(view) == _device(union)


@pytest.mark.parametrize(
    "options",
    [
        *("view=off", "squash_to_root", "squash_to_uid=5", "uidmapping=0:100000:5000", "timeout=5", "noacl"),
        *("noxattrs=1", "static_nlink", "fsname=other", "watch"),
    ],
)
def test_with_other_options_the_mount_is_an_ordinary_one(options: str, place: Place, union: Path) -> None:
    view = place.mount("view", options)
    assert _device(view) != _device(union)
    assert sorted(os.listdir(view)) == ["a", "c", "f"]


@pytest.mark.parametrize("options", ["view=off", "writeback=1", "watch", "passthrough", "ro", "noacl"])
def test_such_a_union_offers_none(options: str, place: Place) -> None:
    union, view = place.mount("mnt", options, upper="up"), place.mount("view")
    assert _device(view) != _device(union)
    said = json.loads(place.user.unionfs("stats", "--json", view).stdout)
    assert said["views"]["no_view"] == "no union that is mounted here has the same lowers and options"
    assert not said["is_view"]


@pytest.mark.parametrize("lowers", ["low2:low1", "low1", "low2", "empty:low1:low2", "low1:low2:up2/x"])
def test_with_other_lowers_the_mount_is_an_ordinary_one(lowers: str, place: Place, union: Path) -> None:
    (place.root / "up2/x").mkdir()
    os.setxattr(place.root / "up2/x", "user.overlay.opaque", b"y")
    view = place.mount("view", lowers=":".join(f"{place.root}/{name}" for name in lowers.split(":")))
    assert _device(view) != _device(union)


def test_the_flags_are_those_of_the_mount_that_was_asked_for(place: Place, union: Path) -> None:
    for options in ("", "nosuid,nodev,noexec,noatime,nodiratime", "dev,suid,atime"):
        view, plain = place.mount("view", options), place.mount("plain", f"{options},view=off")
        assert _device(view) == _device(union)
        ours, theirs = (mountinfo.topmost_at(os.fspath(path)) for path in (view, plain))
        assert ours is not None
        assert theirs is not None
        assert ours[6:9] == theirs[6:9]
        detach(view)
        detach(plain)


def test_of_two_unions_the_latest_has_the_view(place: Place, union: Path) -> None:
    second = place.mount("mnt2", upper="up2")
    view = place.mount("view")
    assert _device(view) == _device(second) != _device(union)
    (second / "f").write_text("second")
    place.change("echo first > c/z")
    assert _looked_at(second, view) == {"f"}
    assert _changes(union, view) == ["c/z"]
    assert place.mount("plain").stat().st_dev == _device(view)


def test_of_two_unions_the_last_used_has_the_view(place: Place, union: Path) -> None:
    """Podman calls statfs(2) on a container that is mounted already, then mounts its image to compare the two."""
    second = place.mount("mnt2", upper="up2")
    os.statvfs(union)
    view = place.mount("view")
    assert _device(view) == _device(union)
    assert json.loads(place.user.unionfs("stats", "--json", second).stdout)["views"]["nodes"] == 0  # it made none
    os.statvfs(second)
    place.user.run(["unshare", "--mount", "stat", "-f", union])  # in a container: df(1), say
    detach(view)
    assert _device(place.mount("view")) == _device(second)


@pytest.mark.parametrize("is_changed_first", [True, False])
def test_an_upper_is_whole_also_while_a_view_goes_on(is_changed_first: bool, place: Place, union: Path) -> None:
    """The view is neither listed nor unmounted after the change."""
    upper = place.root / "up"
    if is_changed_first:
        place.change("echo changed > a/x")
        assert not (upper / "c/hard").exists()
    view = place.mount("view")
    if not is_changed_first:
        place.change("echo changed > a/x")
    subprocess.run(["umount", union], check=True)
    until = time.monotonic() + limit(10)
    while not (upper / "c/hard").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    assert (upper / "c/hard").samefile(upper / "a/x")
    assert (view / "c/hard").read_text() == "low2/a/x"


def test_the_daemon_serves_the_view_to_its_end(place: Place, union: Path) -> None:
    view = place.mount("view")
    with daemon_of(union) as daemon:
        done = place.user.unionfs("umount", union, check=False)
        assert done.returncode == 1
        assert f"still serves a view of its lowers at {view}" in done.stderr
        assert (view / "c/z").read_text() == "low2/c/z"
        again = place.mount("plain")
        assert _tree(again) == _tree(view)
        assert not daemon.has_ended(0)
        place.user.unionfs("umount", view)
        assert daemon.has_ended()


def test_the_union_goes_on_without_the_view(place: Place, union: Path) -> None:
    for command in (["umount"], ["umount", "-l"], ["fusermount3", "-u"], [*place.user.unionfs_cmd, "umount"]):
        view = place.mount("view")
        assert _device(view) == _device(union)
        place.user.run([*command, view])
        assert mount_at(view) is None
        assert (union / "f").read_text() == "low2/f"


def test_the_upper_may_be_removed_while_the_view_is_used(place: Place, union: Path) -> None:
    view = place.mount("view")
    place.change("echo changed > a/x")
    subprocess.run(["umount", union], check=True)
    subprocess.run(["rm", "-r", place.root / "up", place.root / "work"], check=True)
    assert (view / "a/x").read_text() == "low2/a/x"
    assert sorted(os.listdir(view / "c")) == ["hard", "link", "z"]


def test_a_signal_ends_union_and_view(place: Place, union: Path) -> None:
    view = place.mount("view")
    with daemon_of(union) as daemon:
        daemon.kill(signal.SIGTERM)
        assert daemon.has_ended()
    assert mount_at(view) is None
    assert mount_at(union) is None


def test_a_view_goes_on_when_the_daemon_is_killed(place: Place, union: Path) -> None:
    view, plain = place.mount("view"), place.mount("plain", "view=off")
    place.change("echo changed > f")
    assert _changes(union, view) == ["f"]
    with daemon_of(union) as daemon:
        daemon.kill(signal.SIGKILL)
        assert daemon.has_ended()
        place.change("echo changed > c/z; mv a/b moved")
        assert _changes(union, view) == _all_changes(union, plain)
        assert _looked_at(union, view) >= {"f", "c", "c/z", "moved"}
        assert "a/x" not in _looked_at(union, view)
        detach(view)
        assert _device(place.mount("view")) == _device(union)


def test_an_upper_with_a_view_is_completed_by_the_next_daemon(place: Place, union: Path) -> None:
    """Also if nobody asks for the view any more."""
    place.mount("view")
    upper = place.root / "up"
    with daemon_of(union) as daemon:
        daemon.kill(signal.SIGKILL)
        assert daemon.has_ended()
        place.change("echo changed > a/x")
        until = time.monotonic() + limit(10)
        while not (upper / "c/hard").exists():
            assert time.monotonic() < until
            time.sleep(0.02)
    assert (upper / "c/hard").samefile(upper / "a/x")


def test_a_view_goes_on_after_an_upgrade(place: Place) -> None:
    """Of more nodes than are numbered in advance."""
    (place.root / "low2/many").mkdir()
    for number in range(1500):
        (place.root / f"low2/many/{number}").touch()
    union = place.mount("mnt", upper="up")
    view, plain = place.mount("view"), place.mount("plain", "view=off")
    before = _tree(plain)
    assert _tree(view) == before
    for number in range(2):
        done = place.user.unionfs("upgrade", union)
        assert "upgraded" in done.stdout
        place.change(f"echo changed{number} > c/z; mkdir more{number}")
        assert _tree(view) == before
        assert _changes(union, view) == _all_changes(union, plain)
        assert "a/x" not in _looked_at(union, view)
    detach(view)
    assert _device(place.mount("view")) == _device(union)


def test_without_a_keeper_views_of_a_killed_daemon_can_be_detached(place: Place) -> None:
    union, view = place.mount("mnt", "keeper=0", upper="up"), place.mount("view")
    with daemon_of(union) as daemon:
        daemon.kill(signal.SIGKILL)
        assert daemon.has_ended()
    with pytest.raises(OSError, match="not connected"):
        os.listdir(view)
    again = place.mount("plain")
    assert (again / "f").read_text() == "low2/f"
    for path in (view, union):
        detach(path)
        assert mount_at(path) is None


def _root_of(view: Path) -> str:
    there = mountinfo.topmost_at(os.fspath(view))
    assert there is not None
    return there.root.removeprefix("/")


_LOOK = "import os, sys\ntry: print(os.stat(sys.argv[1]).st_ino)\nexcept OSError as e: print(e.errno)"


def test_a_container_cannot_reach_it(place: Place, union: Path) -> None:
    """By its name, from another mount namespace or another root directory; by a listing."""
    view = place.mount("view")
    name = _root_of(view)
    look = [sys.executable, "-I", "-S", "-c", _LOOK]
    assert place.user.run([*look, union / name]).stdout.strip() == str(os.stat(view).st_ino)
    missing = str(errno.ENOENT)
    assert place.user.run(["unshare", "--mount", *look, union / name]).stdout.strip() == missing
    assert place.user.run(["unshare", "--user", "--map-root-user", *look, union / name]).stdout.strip() == missing
    subprocess.run(["mkdir", "-p", union / "proc"], check=True)
    probe = f"import os\nos.chroot({os.fspath(union)!r})\ntry: os.stat('/{name}')\nexcept OSError as e: print(e.errno)"
    assert place.user.run([sys.executable, "-I", "-S", "-c", probe]).stdout.strip() == missing
    assert name not in os.listdir(union)
    assert (view / "f").read_text() == "low2/f"
    assert place.user.run([*look, union / name]).stdout.strip() == str(os.stat(view).st_ino)


def test_a_directory_that_a_container_calls_so_is_not_taken_for_it(place: Place, union: Path) -> None:
    name = _root_of(place.mount("view"))
    detach(place.root / "view")
    inside = f"mkdir {union}/{name} && echo evil > {union}/{name}/f && stat {union}/{name}/f"
    place.user.run(["unshare", "--mount", "sh", "-ec", inside])
    view = place.mount("view")
    assert (view / "f").read_text() == "low2/f"
    assert not (view / name).exists()


def test_its_name_is_as_busy_as_a_mountpoint(place: Place, union: Path) -> None:
    """For those that find the view under the name; for all others it is a name like any."""
    view = place.mount("view")
    name = union / _root_of(view)
    inside = f"mkdir {name} && rmdir {name} && mkdir {name} {name}2 && mv -T {name}2 {name} && test -d {name}"
    place.user.run(["unshare", "--mount", "sh", "-ec", inside])
    (union / "new").mkdir()
    for source, target in ((union / "new", name), (name, union / "moved")):
        with pytest.raises(OSError, match="busy"):
            source.rename(target)
    with pytest.raises(OSError, match="busy"):
        name.rmdir()
    assert sorted(os.listdir(view)) == ["a", "c", "f"]
    detach(view)
    assert sorted(os.listdir(place.mount("view"))) == ["a", "c", "f"]


def test_files_are_copied_from_the_view_into_the_union(place: Place, union: Path) -> None:
    (place.root / "low2/large").write_bytes(os.urandom(3 << 20))
    view = place.mount("view")
    with open(view / "large", "rb") as source, open(union / "copy", "wb") as target:
        while os.copy_file_range(source.fileno(), target.fileno(), 1 << 20):
            pass
    assert (union / "copy").read_bytes() == (place.root / "low2/large").read_bytes()
    with pytest.raises(OSError, match="cross-device"):
        os.link(view / "f", union / "g")
    with pytest.raises(OSError, match="cross-device"):
        os.rename(view / "f", union / "g")


def test_stats_tell_of_views(place: Place, union: Path) -> None:
    assert json.loads(place.user.unionfs("stats", "--json", union).stdout)["views"] == {
        "offered": True, "mounted": 0, "nodes": 0, "no_view": ""
    }  # fmt: skip
    view = place.mount("view")
    os.listdir(view)
    os.stat(union / _root_of(view))
    said = json.loads(place.user.unionfs("stats", "--json", view).stdout)
    assert said["is_view"]
    assert said["views"] == {"offered": True, "mounted": 1, "nodes": 1, "no_view": ""}
    assert "of the lowers of this union" in place.user.unionfs("stats", view).stdout
    detach(view)
    assert json.loads(place.user.unionfs("stats", "--json", union).stdout)["views"]["mounted"] == 0


def test_listings_of_a_view_are_asked_for_each_time(place: Place, union: Path) -> None:
    """Entries, then the end; an ordinary mount answers the second listing from the kernel's cache."""

    def asked() -> int:
        said: int = json.loads(place.user.unionfs("stats", "--json", union).stdout)["messages"].get("READDIRPLUS", 0)
        return said

    view = place.mount("view")
    before = asked()
    for number in (1, 2, 3):
        assert sorted(os.listdir(view / "c")) == ["hard", "link", "z"]
        assert asked() == before + 2 * number


@contextmanager
def _stopped(daemon: Daemon) -> Iterator[None]:
    daemon.kill(signal.SIGSTOP)
    try:
        yield
    finally:
        daemon.kill(signal.SIGCONT)


def test_a_daemon_that_does_not_answer_is_not_waited_for(place: Place, union: Path) -> None:
    with daemon_of(union) as daemon:
        with _stopped(daemon):
            plain = place.mount("plain")
            assert (plain / "f").read_text() == "low2/f"
            said = json.loads(place.user.unionfs("stats", "--json", plain).stdout)["views"]
        assert said["no_view"] == "a daemon of a union that is mounted here does not answer"


def test_another_daemon_that_does_not_answer_costs_no_view(place: Place, union: Path) -> None:
    with daemon_of(place.mount("mnt2", upper="up2")) as other, _stopped(other):
        assert _device(place.mount("view")) == _device(union)


def test_a_union_that_is_unmounted_meanwhile(place: Place) -> None:
    """After delays, in turns (tests.support.share): either a view or an ordinary mount is there, its content right."""
    kinds = set()
    for number in share.of(range(20)):
        union = place.mount("mnt", upper="up")
        device = _device(union)
        with place.user.popen(
            [*place.user.unionfs_cmd, "-o", f"lowerdir={place.lowers}", place.root / "view"]
        ) as asking:
            time.sleep(number * 0.01)
            subprocess.run(["umount", "-l", union], check=True)
            assert asking.wait(limit(30)) == 0
        view = place.root / "view"
        kinds.add(_device(view) == device)
        assert (view / "c/z").read_text() == "low2/c/z"
        place.user.unionfs("umount", view)
    assert kinds

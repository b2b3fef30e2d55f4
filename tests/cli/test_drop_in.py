"""In fuse-overlayfs's place: each way in which tools start us, their next steps, and their reading of our uppers."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.fuse.daemons import daemon_of
from tests.layers.registries import need
from tests.support import process
from tests.support.mountinfo import detach, mount_at
from tests.support.timing import limit
from tests.support.users import User
from unionfs.fuse import mounting

pytestmark = pytest.mark.transport("kernel")

_SCRIPT = """#!{python}
import sys
sys.path.insert(0, {code!r})
from unionfs.__main__ import main
sys.exit(main())
"""


class Place(NamedTuple):
    """Two lowers, an upper, its work directory and a mountpoint, and programs of ours under their various names."""

    root: Path
    user: User
    bin: Path

    @property
    def text(self) -> str:
        """The option string."""
        return f"{self.read_only},upperdir={self.root}/up,workdir={self.root}/work"

    @property
    def read_only(self) -> str:
        return f"lowerdir={self.root}/low1:{self.root}/low2"

    @property
    def mnt(self) -> Path:
        return self.root / "mnt"

    def run(self, *argv: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command that finds our programs before others of the same names."""
        path = f"{self.bin}:{self.user.env['PATH']}"
        return self.user.run(argv, cwd=self.root, env={"PATH": path}, check=check)


def _place(scratch: Path, user: User) -> Place:
    place = Place(scratch, user, scratch / "bin")
    for name in ("low1", "low2", "up", "work", "mnt", "bin"):
        (scratch / name).mkdir()
    (scratch / "low1/one").write_text("1")
    (scratch / "low2/two").write_text("2")
    (scratch / "low2/dir").mkdir()
    (scratch / "low2/dir/inner").write_text("inner")
    for name in ("unionfs", "fuse-overlayfs"):
        (place.bin / name).write_text(_SCRIPT.format(python=sys.executable, code=user.env["PYTHONPATH"]))
        (place.bin / name).chmod(0o755)
    user.own(*(scratch / name for name in ("low1", "low2", "up", "work", "mnt")))
    return place


@pytest.fixture
def place(root_user: User, scratch: Path, fuse_device: Path) -> Place:
    """Root's."""
    del fuse_device
    return _place(scratch, root_user)


@pytest.fixture
def users_place(ordinary_user: User, scratch: Path, fuse_device: Path) -> Place:
    """An ordinary user's."""
    del fuse_device
    scratch.chmod(0o777)
    return _place(scratch, ordinary_user)


@contextmanager
def _mounted_by(place: Place, *argv: str | Path) -> Iterator[Path]:
    """The mountpoint of a union that `argv` makes; its daemon is gone as soon as it is unmounted."""
    place.run(*argv)
    with daemon_of(place.mnt) as daemon:
        yield place.mnt
        process.run(["umount", place.mnt])
        assert daemon.has_ended()


_FORMS = {
    "type and program": "mount -t fuse.unionfs overlay {mnt} -o rw,noatime,{text},dev,suid",
    "program and source": "mount -t fuse3 unionfs#src {mnt} -o rw,noatime,{text},dev,suid",
    "a source like a verb": "mount -t fuse.unionfs try {mnt} -o {text},dev,suid",
    "fstab": "mount --fstab {root}/fstab {mnt}",
    "containerd": "mount.fuse3 overlay {mnt} -o {text} -o x-a=b -t unionfs",
    "a path": "mount.fuse3 overlay {mnt} -o {text} -t {bin}/fuse-overlayfs",
}
_IN_NAMESPACE = """
mount --bind bin /usr/local/sbin
{form}
findmnt -n -o FSTYPE,OPTIONS mnt
cat mnt/one mnt/two; rm mnt/one; echo > mnt/new
umount mnt
"""


@pytest.mark.parametrize("form", _FORMS)
def test_mounted_by_mount(form: str, place: Place) -> None:
    """mount(8) has a PATH of its own: in a mount namespace, our programs are the first of it."""
    (place.root / "fstab").write_text(
        f"overlay {place.mnt} fuse.unionfs noauto,{place.text},nofail,x-systemd.requires=/,_netdev 0 0\n"
    )
    line = _FORMS[form].format(mnt=place.mnt, text=place.text, root=place.root, bin=place.bin)
    script = _IN_NAMESPACE.format(form=line)
    fstype, options, content = place.run("unshare", "--mount", "sh", "-ec", script).stdout.split()
    assert fstype == "fuse.unionfs"
    assert {"rw", "noatime", "allow_other"} <= set(options.split(","))
    assert "nodev" not in options
    assert content == "12"
    assert stat.S_ISCHR(os.lstat(place.root / "up/one").st_mode)
    assert (place.root / "up/new").exists()


def test_the_names_of_others(place: Place) -> None:
    """Under the name fuse-overlayfs, as a store that was made with it looks for: never a verb."""
    assert "unionfs" in place.run("fuse-overlayfs", "--version").stdout
    refused = place.run("fuse-overlayfs", check=False)
    assert (refused.returncode, refused.stderr) == (1, "unionfs: mount failed: no mountpoint specified\n")
    with _mounted_by(place, "fuse-overlayfs", "-o", f"{place.text},,volatile", place.mnt) as mnt:
        assert (mnt / "one").exists()


@pytest.mark.parametrize("text", ["allow_other,{text},noacl", "allow_other,ro,{text},noacl"])
def test_as_apptainer_does_with_a_mounted_descriptor(text: str, place: Place) -> None:
    """-f, and in set-user-id mode /dev/fd/N: apptainer itself has mounted. The program ends with the mount."""
    fd = mounting.mount_union(os.fspath(place.mnt), mounting.MountOptions(read_only=",ro," in text))
    argv = [f"{place.bin}/unionfs", "-f", "-o", text.format(text=place.text), f"/dev/fd/{fd}"]
    with subprocess.Popen(argv, pass_fds=[fd], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as serving:
        os.close(fd)
        try:
            assert place.run("cat", place.mnt / "one", place.mnt / "two").stdout == "12"
            written = place.run("touch", place.mnt / "new", check=False)
            assert ("Read-only" in written.stderr) == (",ro," in text)
            process.run(["umount", place.mnt])
            assert serving.wait(limit(30)) == 0
        finally:
            while mount_at(place.mnt) is not None:
                detach(place.mnt)
            serving.kill()


def test_in_the_foreground_until_unmounted(users_place: Place) -> None:
    place = users_place
    serving = place.user.popen([place.bin / "unionfs", "-f", "-o", f"{place.text},noacl", place.mnt])
    with serving:
        try:
            while mount_at(place.mnt) is None:
                assert serving.poll() is None
            assert place.run("cat", place.mnt / "two").stdout == "2"
            place.run("fusermount3", "-u", place.mnt)
            assert serving.wait(limit(30)) == 0
        finally:
            while mount_at(place.mnt) is not None:
                detach(place.mnt)
            process.kill_group(serving)


_LOWERS_GO = """
mount --bind low1 bound
unionfs -o lowerdir=$PWD/bound:$PWD/low2,upperdir=$PWD/up,workdir=$PWD/work mnt
umount -l bound
cat mnt/one mnt/dir/inner; echo more >> mnt/one; mv mnt/dir mnt/moved; cat mnt/one mnt/moved/inner; ls mnt
umount mnt
"""


def test_lowers_that_are_detached_after_the_start(place: Place) -> None:
    """podman unmounts the idmapped binds as soon as the mount program has returned."""
    (place.root / "bound").mkdir()
    said = place.run("unshare", "--mount", "sh", "-ec", _LOWERS_GO).stdout
    assert said.split() == ["1inner1more", "inner", "moved", "one", "prog", "two"] or said.startswith(
        "1inner1more\ninner"
    )
    assert (place.root / "up/one").read_text() == "1more\n"


_AGAIN_AND_AGAIN = """
for turn in 1 2 3 4 5 6; do
    unionfs -o lowerdir=$PWD/low1:$PWD/low2,upperdir=$PWD/up,workdir=$PWD/work,,volatile mnt
    echo $turn > mnt/file$turn; rm -f mnt/one; mkdir mnt/d$turn; echo x >> mnt/dir/inner
    fusermount3 -u mnt; mv mnt elsewhere; rmdir elsewhere; mkdir mnt
done
unionfs -o lowerdir=$PWD/low1:$PWD/low2,upperdir=$PWD/up,workdir=$PWD/work, mnt
cat mnt/file* mnt/dir/inner; ls mnt
fusermount3 -u mnt; rm -r up work mnt; mkdir up work mnt
"""


def test_right_after_unmounting_everything_can_be_moved_and_mounted_again(users_place: Place) -> None:
    """In a user namespace, as podman does: unmount, rename, rmdir, remount, remove all; nothing was still in hand."""
    argv = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", _AGAIN_AND_AGAIN]
    said = users_place.run(*argv).stdout.split()
    assert said[:6] == ["1", "2", "3", "4", "5", "6"]
    assert said[6:12] == ["innerx", *["x"] * 5]
    assert said[12:] == [*(f"d{turn}" for turn in range(1, 7)), "dir", *(f"file{turn}" for turn in range(1, 7)), "two"]


def _tree(top: Path) -> dict[str, object]:
    """What tools that walk two mounts compare: all of stat but the device and the access time, xattrs, capabilities."""
    code = """
import json, os, sys
found = {}
for directory, names, files in os.walk(sys.argv[1]):
    assert all(entry.inode() for entry in os.scandir(directory))
    for name in (*names, *files):
        path = os.path.join(directory, name)
        st = os.lstat(path)
        xattrs = {key: os.getxattr(path, key, follow_symlinks=False).hex()
                  for key in os.listxattr(path, follow_symlinks=False)}
        found[os.path.relpath(path, sys.argv[1])] = [
            st.st_mode, st.st_uid, st.st_gid, st.st_rdev, st.st_size, st.st_mtime_ns, st.st_nlink, st.st_ino, xattrs,
            None if not os.path.isfile(path) or os.path.islink(path) else open(path, 'rb').read().hex()]
print(json.dumps(found))
"""
    import json

    tree: dict[str, object] = json.loads(process.run([sys.executable, "-I", "-S", "-c", code, top]).stdout)
    return tree


def _furnish(low: Path) -> None:
    """A lower with one of each kind."""
    process.run(["cp", "/bin/true", low / "capable"])
    process.run(["setcap", "cap_net_raw+ep", low / "capable"])
    (low / "linked").hardlink_to(low / "dir/inner")
    (low / "link").symlink_to("dir")
    os.mkfifo(low / "fifo")
    os.mknod(low / "dev", 0o660 | stat.S_IFCHR, os.makedev(1, 3))
    os.setxattr(low / "dir/inner", "user.mine", b"1")
    os.chown(low / "dir/inner", 5, 6)
    os.utime(low / "dir/inner", ns=(1, 1_111_111_111_123_456_789))
    (low / "d1/d2").mkdir(parents=True)
    (low / "d1/d2/deep").write_text("deep")


def test_two_mounts_show_unchanged_files_alike(place: Place) -> None:
    """NaiveDiff walks the container's mount beside one of its parents; what differs would be committed."""
    _furnish(place.root / "low2")
    (place.root / "mnt2").mkdir()
    with _mounted_by(place, "unionfs", "-o", place.text, place.mnt) as mnt:
        place.run("unionfs", "-o", f"{place.read_only},view=off", place.root / "mnt2")
        with daemon_of(place.root / "mnt2"):
            before = _tree(place.root / "mnt2")
            assert _tree(mnt) == before
            process.run(["sh", "-c", f"cd {mnt}; setfattr -n user.new -v 1 capable; mv d1/d2 d1/moved; echo >> linked"])
            after = _tree(mnt)
            process.run(["umount", place.root / "mnt2"])
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed == {"capable", "linked", "dir/inner", "d1", "d1/d2", "d1/d2/deep", "d1/moved", "d1/moved/deep"}
    mtime, xattrs = 5, 8
    old, new = before["capable"], after["capable"]
    assert isinstance(old, list)
    assert isinstance(new, list)
    assert new[:mtime] + new[mtime:xattrs] == old[:mtime] + old[mtime:xattrs]
    assert new[xattrs] == {**old[xattrs], "user.new": "31"}
    assert after["d1/moved/deep"] == before["d1/d2/deep"]
    written = after["linked"]
    assert isinstance(written, list)
    assert (written[1:3], written[6]) == ([5, 6], 2)


_CHANGES = """
rm one; rm -r dir; mkdir dir; echo new > dir/other; mkdir fresh; echo > fresh/file; chmod 700 d1; echo >> d1/d2/deep
rm link; ln -s two link; rm fifo; mkdir fifo
"""


def _shape(top: Path) -> dict[str, object]:
    """_tree, but for what differs from mount to mount."""
    return {path: (*entry[:5], entry[9]) for path, entry in _tree(top).items() if isinstance(entry, list)}


@pytest.mark.parametrize("reader", ["unionfs", "fuse-overlayfs", "overlay"])
def test_other_programs_read_our_upper(reader: str, place: Place) -> None:
    """Our upper as a lower of fuse-overlayfs, of the kernel's overlay, and of ours."""
    if reader == "fuse-overlayfs":
        need("fuse-overlayfs")
    _furnish(place.root / "low2")
    with _mounted_by(place, "unionfs", "-o", place.text, place.mnt) as mnt:
        process.run(["sh", "-ec", f"cd {mnt}; {_CHANGES}"])
        expected = _shape(mnt)
    up = place.root / "up"
    whiteout = os.lstat(up / "one")
    assert (whiteout.st_mode, whiteout.st_rdev) == (stat.S_IFCHR, 0)
    assert (up / "dir/.wh..wh..opq").exists()
    assert os.getxattr(up / "dir", "trusted.overlay.opaque") == b"y"
    text = f"lowerdir={up}:{place.root}/low1:{place.root}/low2"
    if reader == "overlay":
        process.run(["mount", "-t", "overlay", "overlay", place.mnt, "-o", text])
    elif reader == "fuse-overlayfs":
        place.user.run(["fuse-overlayfs", "-o", text, place.mnt])
    else:
        place.run("unionfs", "-o", text, place.mnt)
    try:
        found = _shape(place.mnt)
    finally:
        process.run(["umount", place.mnt])
    # The kernel takes the file beside the attribute for a file.
    found = {path: entry for path, entry in found.items() if os.path.basename(path) != ".wh..wh..opq"}
    assert found == expected


_WITHOUT_ROOT = """
unionfs -o {text} mnt
(cd mnt; rm one; rm -r dir; mkdir dir; echo new > dir/other; mkdir fresh; echo > fresh/file)
look() {{ (cd mnt; find . -name .wh..wh..opq -o -printf '%p %y %m %s %T@\\n' | grep -v '^\\. ' | sort); umount mnt; }}
look > ours
fuse-overlayfs.real -o lowerdir=up:low1:low2 mnt; look > fuse-overlayfs
mount -t overlay -o userxattr,lowerdir=up:low1:low2 overlay mnt; look > overlay
cmp ours fuse-overlayfs; cmp ours overlay; cat ours
"""


def test_other_programs_read_the_upper_of_a_user(users_place: Place) -> None:
    """The same in a user namespace, where the marks are user.* attributes."""
    need("fuse-overlayfs")
    place = users_place
    (place.bin / "fuse-overlayfs.real").symlink_to("/usr/bin/fuse-overlayfs")
    script = _WITHOUT_ROOT.format(text=place.text)
    said = place.run("unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", script).stdout
    assert [line.split()[0] for line in said.splitlines()] == [
        "./dir",
        "./dir/other",
        "./fresh",
        "./fresh/file",
        "./two",
    ]
    assert os.getxattr(place.root / "up/dir", "user.overlay.opaque") == b"y"


_VALUES = [
    *("fsync=", "fsync=x", "fsync=2", "threaded=x", "noxattrs=", "noxattrs=x", "writeback=x", "fast_ino=x", "noacl=0"),
    *("redirect_dir=", "redirect_dir", "redirect_dir=on", "xattr_permissions=", "xattr_permissions=3", "volatile=x"),
    *(
        "uidmapping=",
        "uidmapping=:",
        "uidmapping=0",
        "uidmapping=0x1:1:1",
        "uidmapping=0:1:1:0:2:1",
        "gidmapping=a:b:c",
    ),
    *("squash_to_uid=", "squash_to_uid=x", "squash_to_root=0", "static_nlink=0", "ro=1", "=", "=x", "\\", 'context="a'),
    *(
        "lowerdir=",
        "lowerdir=:",
        "lowerdir=/nowhere",
        "upperdir=",
        "upperdir=/nowhere",
        "workdir=",
    ),
    *("workdir=/nowhere", "timeout=", "timeout=x", "timeout=-1", "fsname=", "private,shared", "allow_other,allow_root"),
]
_TRY = """
while read -r option; do
    rm -rf up work; mkdir up work; chown 3 low1/one
    if said=$("$@" -o "lowerdir=low1:low2,upperdir=up,workdir=work,$option" mnt 2>&1 </dev/null); then
        touch mnt/new 2>&1
        echo "$option|0|$(stat -c '%u %h' mnt/one mnt/dir | tr '\n' ' ')|$(ls up work | grep -c new)"
        umount mnt
    else
        echo "$option|$?|$([ -n "$said" ] && echo told)|"
    fi
done
"""


def test_values_that_make_no_sense(place: Place) -> None:
    """Each with fuse-overlayfs's exit code and effect; where that says nothing at all, we do."""
    need("fuse-overlayfs")
    found = []
    for program in (["/usr/bin/fuse-overlayfs"], place.user.unionfs_cmd):
        done = place.user.run(["sh", "-c", _TRY, "sh", *program], stdin="\n".join(_VALUES) + "\n", cwd=place.root)
        found.append(dict(line.split("|", 1) for line in done.stdout.splitlines()))
    theirs, ours = found
    assert list(ours) == _VALUES
    assert ours == {option: said.replace("1||", "1|told|") for option, said in theirs.items()}
    assert {"1|told|"} < set(ours.values())


_FILL = "cd mnt; ! head -c 300M /dev/zero > big 2>&1 && rm big && echo more >> one && echo more > new && rm new"


def test_room_made_on_a_full_disk_is_there_at_once(place: Place) -> None:
    """A file of more than 16 MiB is removed, and the very next write finds the room, as on the disk itself."""
    script = f"""
mkdir full; mount -t tmpfs -o size=40m none full; mkdir full/up full/work
unionfs -o lowerdir=low1:low2,upperdir=full/up,workdir=full/work mnt
for turn in 1 2 3 4 5; do ({_FILL}); done
cat mnt/one; umount mnt
"""
    said = place.run("unshare", "--mount", "sh", "-ec", script).stdout
    assert said.split("\n")[-6:] == ["1more", *["more"] * 4, ""]

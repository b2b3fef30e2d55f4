"""Users without subordinate ids: other users, owners and devices inside are noted, and come out as with full ids."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import pytest

from tests.support.timing import limit
from tests.support.users import User
from unionfs.launcher import supervisor

pytestmark = pytest.mark.usefixtures("fuse_device")

IMAGE: Final = "debian:test"
WITHOUT_IDS: Final = 'mount --bind /dev/null /etc/subuid; exec "$@"'

SCRIPT: Final = """
set -e
useradd --create-home --uid 1234 bob
useradd --system --uid 888 daemon-of-ours
dpkg -i /mnt/owned.deb
cp -a /home/bob /copy
chown -R daemon-of-ours:mail /copy
chmod 4755 /copy/.profile; chown bob /copy/.bashrc
ln -s nowhere /link; chown -h 5:6 /link
mkfifo -m 620 /fifo; chown 7:8 /fifo
su bob -c 'umask 027; mkdir /home/bob/d; echo hi > /home/bob/d/f; ln /home/bob/d/f /home/bob/d/g'
chgrp staff /etc/issue
rm /home/bob/.bash_logout
"""
DEVICES: Final = (
    "mknod -m 666 /null c 1 3; mknod -m 640 /disk b 8 1; chown 0:6 /disk; stat -c '%n %A %u:%g %t:%T' /null /disk"
)
LOOK: Final = "stat -c '%n %A %u:%g %h' /link /fifo /copy /copy/.profile /copy/.bashrc /home/bob/d/* /owned"


class Store:
    """`unionfs` with images of its own, as one user."""

    def __init__(self, user: User, root: Path) -> None:
        self.user = user
        self.root = root

    def __call__(self, *words: str | os.PathLike[str], check: bool = True) -> str:
        env = {"UNIONFS_ROOT": os.fspath(self.root)}
        return self.user.run([*self.user.unionfs_cmd, *words], env=env, timeout_s=200, check=check).stdout


@pytest.fixture(scope="module")
def package(run_dir: Path) -> Path:
    """A Debian package with a file of somebody else's."""
    tree = run_dir / "one-id/owned"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: owned\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: a file\n"
    )
    (tree / "owned").write_text("x")
    built = run_dir / "one-id/shared/owned.deb"
    built.parent.mkdir()
    (tree / "DEBIAN/postinst").write_text("#!/bin/sh\nchown games:utmp /owned; chmod 2751 /owned\n")
    (tree / "DEBIAN/postinst").chmod(0o755)
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", tree, built], check=True, capture_output=True, timeout=limit(60)
    )
    return built.parent


@pytest.fixture(scope="module")
def stores(ordinary_user: User, root_user: User, run_dir: Path, debian_tar: Path) -> Iterator[tuple[Store, Store]]:
    """The same image with one id, and with all of them."""
    del root_user  # takes the ranges away
    hide = ("unshare", "--mount", "--propagation", "private", "sh", "-ec", WITHOUT_IDS, "sh")
    alone = dataclasses.replace(ordinary_user, prefix=(*hide, *ordinary_user.prefix))
    made = Store(alone, ordinary_user.home / "alone"), Store(ordinary_user, ordinary_user.home / "many")
    for store in made:
        store("import", "--compression", "none", debian_tar, IMAGE)
    yield made
    for store in made:
        store("rmi", "--force", IMAGE, check=False)
        shutil.rmtree(store.root, ignore_errors=True)


def layer_of(store: Store, image: str) -> dict[str, tuple[object, ...]]:
    """What the topmost layer of an image says of each path."""
    archive = store.user.home / "layer.tar"
    store("save", "-o", archive, image)
    with tarfile.open(archive) as outer:

        def blob(digest: str) -> IO[bytes]:
            found = outer.extractfile(f"blobs/{digest.replace(':', '/')}")
            assert found is not None
            return found

        index = outer.extractfile("index.json")
        assert index is not None
        manifest = json.load(blob(json.load(index)["manifests"][0]["digest"]))
        with tarfile.open(fileobj=blob(manifest["layers"][-1]["digest"])) as tar:
            told = {member.name: _told(member) for member in tar}
    archive.unlink()
    return told


def _told(member: tarfile.TarInfo) -> tuple[object, ...]:
    device = (member.devmajor, member.devminor) if member.isdev() else None
    more = {name: text for name, text in member.pax_headers.items() if name.startswith("SCHILY")}
    return member.type, member.mode, member.uid, member.gid, member.linkname, device, more


def test_a_commit_equals_one_with_full_ids(stores: tuple[Store, Store], package: Path) -> None:
    layers, seen = [], []
    for store in stores:
        store("run", "--name", "box", "-v", f"{package}:/mnt:ro", IMAGE, "sh", "-c", SCRIPT)
        store("commit", "box", "made:1")
        seen.append(store("run", "--rm", "made:1", "sh", "-c", LOOK))
        layers.append(layer_of(store, "made:1"))
        store("rm", "box")
        store("rmi", "made:1")
    alone, many = layers
    assert alone["home/bob/d/f"][1:4] == (0o640, 1234, 1234)
    assert alone["copy/.profile"][1:4] == (0o4755, 888, 8)
    assert alone["owned"][1:4] == (0o2751, 5, 43)
    assert alone["link"][2:5] == (5, 6, "nowhere")
    assert "/fifo prw--w---- 7:8 1\n" in seen[0]
    assert seen[0] == seen[1]
    assert alone == many


def test_devices_are_made_and_go_into_the_layer(stores: tuple[Store, Store]) -> None:
    """Which not even full ids allow, since no user namespace does."""
    store = stores[0]
    told = store("run", "--name", "box", IMAGE, "sh", "-ec", DEVICES)
    assert told.splitlines() == ["/null crw-rw-rw- 0:0 1:3", "/disk brw-r----- 0:6 8:1"]
    store("commit", "box", "made:2")
    store("rm", "box")
    layer = layer_of(store, "made:2")
    assert (layer["null"][:4], layer["null"][5]) == ((tarfile.CHRTYPE, 0o666, 0, 0), (1, 3))
    assert (layer["disk"][:4], layer["disk"][5]) == ((tarfile.BLKTYPE, 0o640, 0, 6), (8, 1))
    store("rmi", "made:2")


def test_users_inside_have_their_ids(stores: tuple[Store, Store]) -> None:
    """`--user`, exec, setpriv and su; what is made belongs to whoever made it, and lost rights do not come back."""
    store = stores[0]
    assert store("run", "--rm", "--user", "games", IMAGE, "id").strip() == "uid=5(games) gid=60(games) groups=60(games)"
    store("run", "-d", "--name", "box", IMAGE, "sleep", "300")
    try:
        drop = "setpriv --reuid=33 --regid=44 --groups=50,60 sh -c 'id; touch /tmp/mine; stat -c %u:%g /tmp/mine'"
        told = store("exec", "box", "sh", "-ec", f"{drop}; id -u").splitlines()
        assert told[0].startswith("uid=33(www-data) gid=44(video) groups=44(video),50(staff),60(games)")
        assert told[1:] == ["33:44", "0"]
        denied = "setpriv --reuid=33 --clear-groups python3 -c 'import os; os.setuid(0)' 2>&1 | tail -1"
        assert "PermissionError" in store("exec", "box", "sh", "-c", denied)
        refused = "setpriv --reuid=33 --clear-groups chown 33 /etc/passwd 2>&1"
        assert "Operation not permitted" in store("exec", "box", "sh", "-c", refused, check=False)
        limits = "ulimit -Sm 1; ulimit -Hm 1; ulimit -m; id -u; id -g"
        assert store("exec", "-u", "33:8", "box", "bash", "-c", limits) == "unlimited\n33\n8\n"
        assert store("exec", "-u", "33:8", "box", "sh", "-c", "touch /tmp/b; stat -c %u:%g /tmp/b") == "33:8\n"
        missing = store("exec", "box", "sh", "-c", "chown 33 /nowhere /proc/self/mounts 2>&1", check=False)
        assert "'/nowhere': No such file" in missing
        assert len(who_answers(store)) == 1, "a command that joined leaves none of its own, not even a dead one"
    finally:
        store("rm", "-f", "box")


def who_answers(store: Store) -> list[int]:
    """The processes that answer for the users of this user's containers; unburied ones, too."""
    found = store.user.run(["pgrep", "-u", str(store.user.uid), "-x", supervisor.NAME], check=False)
    return list(map(int, found.stdout.split()))


def test_supplementary_groups(stores: tuple[Store, Store]) -> None:
    """Root in another group, as Alpine has it, runs as ever; with the groups that full ids give."""
    for store in stores:
        store("run", "--name", "box", IMAGE, "usermod", "-aG", "games,staff", "root")
        store("commit", "box", "made:3")
        store("rm", "box")
        look = "id -G; setpriv --clear-groups --regid=5 id -G; setpriv --groups=60 id -G"
        look += "; su games -s /bin/sh -c 'id -G'"  # pam_limits(8) sets every resource limit anew
        assert store("run", "--rm", "made:3", "sh", "-c", look) == "0 50 60\n5\n0 60\n60\n"
        assert store("run", "--rm", "--user", "0:0", "made:3", "id", "-G") == "0\n"
        store("run", "-d", "--name", "box", "made:3", "sleep", "300")
        assert store("exec", "box", "id", "-G") == "0 50 60\n"
        store("rm", "--force", "box")
        store("rmi", "made:3")


def test_a_container_ends_with_its_supervisor(stores: tuple[Store, Store]) -> None:
    store = stores[0]
    store("run", "-d", "--name", "box", IMAGE, "sleep", "300")
    try:
        (answering,) = who_answers(store)
        os.kill(answering, signal.SIGKILL)
        assert store("wait", "box").strip() == "125"
    finally:
        store("rm", "-f", "box")


def test_what_is_tried_is_put_in_place(stores: tuple[Store, Store]) -> None:
    """Modes, types and links as they were seen, not as the upper has them on disk; what is others' is refused."""
    store = stores[0]
    place = store.user.home / "tried"
    store.user.run(["mkdir", place])
    seen = "umask 022; mkdir d; chmod 2750 d; echo x > d/g; chmod 4711 d/g; ln -s q l; mkfifo -m 620 p"
    seen += "; echo > f; chmod 600 f"
    store("try", "--apply", "sh", "-ec", f"cd {place}; {seen}")
    modes = {path.name: stat.filemode(path.lstat().st_mode) for path in (place, *place.rglob("*"))}
    assert modes["d"] == "drwxr-s---"
    assert (modes["g"], modes["p"], modes["f"]) == ("-rws--x--x", "prw--w----", "-rw-------")
    assert (place / "l").readlink() == Path("q")
    assert {path.lstat().st_uid for path in place.rglob("*")} == {store.user.uid}
    refused = store("try", "--apply", "sh", "-ec", f"cd {place}; chown 33 f", check=False)
    assert "C" in refused
    assert (place / "f").stat().st_uid == store.user.uid


def test_noted_layers_are_packed_exported_and_checked(stores: tuple[Store, Store], scratch: Path) -> None:
    store = stores[0]
    store("run", "--name", "box", IMAGE, "sh", "-c", "chown 33:44 /etc/issue; ln -s x /l; chown -h 9:9 /l")
    exported = store.root / "box.tar"
    store("export", "-o", exported, "box")
    with tarfile.open(exported) as tar:
        owners = {member.name: (member.type, member.uid, member.gid) for member in tar}
    assert owners["etc/issue"] == (tarfile.REGTYPE, 33, 44)
    assert owners["l"] == (tarfile.SYMTYPE, 9, 9)
    assert owners["etc/shadow"][1:] == (0, 42)
    assert store("diff", "box").split("\n")[:3] == ["C /etc", "C /etc/issue", "A /l"]
    store("rm", "box")

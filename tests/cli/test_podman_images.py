"""Podman and buildah without root: images made with us equal those made with fuse-overlayfs, file by file. Also their
messages to a user when we cannot mount.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.layers.registries import Registry, need
from tests.support.podmans import BASE, Podman, need_podman, our_program, podman_store
from tests.support.process import run
from tests.support.users import User

pytestmark = [pytest.mark.transport("kernel"), pytest.mark.runs_as("ordinary")]

_BUILT: Final = "localhost/built:1"
_LEFT_OUT: Final = ("usr/share", "var", "usr/lib/python3", "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/apt")
"""Parts of a Debian that a build does without; var/tmp and the like are made by podman."""

_XATTRS: Final = {
    "SCHILY.xattr.user.mine": "1",
    "SCHILY.xattr.security.capability": "\1\0\0\2\0\x20" + 14 * "\0",  # cap_net_raw+p (capabilities(7), version 2)
}
"""What a file of the base has, which a layer must keep when the file is touched."""

_CONTAINERFILE: Final = f"""
FROM {BASE}
COPY --chown=3:4 file /srv/
RUN mkdir -p -m 2750 /d/e && echo x > /d/e/f && chown 33:34 /d/e/f && chmod 4755 /d/e/f \\
    && echo > /d/pair && ln /d/pair /d/hard && ln -s /nowhere /d/link && mkfifo -m 600 /d/fifo \\
    && touch -d @1000000000.123456789 /d/e/f
RUN touch -d @1050000000 /usr/bin/capable; rm /srv/file /etc/issue; chmod 711 /home; echo more >> /etc/passwd \\
    && touch -d @1100000000 /etc/passwd; chown 5 /etc/debian_version
RUN rm -r /d/e && mkdir /d/e && echo y > /d/e/g && touch -d @1200000000 /d/e/g; mv /etc/skel /etc/moved; \\
    rm -r /opt && echo > /opt
"""
# No file with several names loses one: fuse-overlayfs then takes the set-id bits of the others away.


class Stores(NamedTuple):
    """Podman over us and over fuse-overlayfs, each with the base image."""

    ours: Podman
    theirs: Podman


@pytest.fixture(scope="module")
def base(debian_tar: Path, run_dir: Path) -> Path:
    """The tar of a small Debian."""
    small = run_dir / "small-debian.tar"
    with tarfile.open(debian_tar) as whole, tarfile.open(small, "w", format=tarfile.PAX_FORMAT) as kept:
        for member in whole:
            if not member.name.removeprefix("./").startswith(_LEFT_OUT):
                kept.addfile(member, whole.extractfile(member) if member.isreg() else None)
        capable = tarfile.TarInfo("usr/bin/capable")
        capable.pax_headers = _XATTRS
        kept.addfile(capable)
    return small


@pytest.fixture(scope="module")
def stores(ordinary_user: User, run_dir: Path, base: Path, fuse_device: Path) -> Iterator[Stores]:
    del fuse_device
    need_podman()
    need("fuse-overlayfs")
    places = [run_dir / "po", run_dir / "pt"]  # podman wants its paths short
    for where in places:
        where.mkdir()
    theirs = Path(shutil.which("fuse-overlayfs") or "")
    with (
        podman_store(ordinary_user, places[0], our_program(places[0], ordinary_user)) as ours,
        podman_store(ordinary_user, places[1], theirs) as others,
    ):
        for podman in (ours, others):
            podman("import", "-q", base, BASE)
        yield Stores(ours, others)


@pytest.fixture(scope="module")
def built(stores: Stores, ordinary_user: User, run_dir: Path) -> str:
    """An image of several layers, built in both stores."""
    context = run_dir / "podman-context"
    context.mkdir()
    (context / "file").write_text("from outside\n")
    (context / "Containerfile").write_text(_CONTAINERFILE)
    ordinary_user.own(context)
    for podman in stores:
        podman("build", "-q", "--layers", "--network=none", "-t", _BUILT, context)
    return _BUILT


def _layers(podman: Podman, image: str) -> list[dict[str, tuple[object, ...]]]:
    """What each layer of an image holds, without the base: everything that a tar says of each name but when it changed,
    which is kept for what was given a time of long ago."""
    archive = podman.where / "saved.tar"
    podman("save", "-q", "--format", "oci-archive", "-o", archive, image)
    found = []
    with tarfile.open(archive) as opened:

        def blob(digest: str) -> tarfile.ExFileObject:
            file = opened.extractfile("blobs/sha256/" + digest.removeprefix("sha256:"))
            assert isinstance(file, tarfile.ExFileObject)
            return file

        index = json.load(opened.extractfile("index.json") or blob(""))
        manifest = json.load(blob(index["manifests"][0]["digest"]))
        for layer in manifest["layers"][1:]:
            with tarfile.open(fileobj=blob(layer["digest"])) as tar:
                found.append({member.name.rstrip("/"): _described(tar, member) for member in tar})
    archive.unlink()
    return found


def _described(tar: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[object, ...]:
    content = tar.extractfile(member) if member.isreg() else None
    digest = hashlib.sha256(content.read()).hexdigest() if content else ""
    xattrs = {key: value for key, value in member.pax_headers.items() if key.startswith("SCHILY.xattr.")}
    old = member.mtime if member.mtime < 1_600_000_000 and not member.isdir() else 0
    return (member.type, member.mode, member.uid, member.gid, member.size, member.linkname, digest, xattrs, old)


def test_built_images_are_alike(stores: Stores, built: str) -> None:
    ours, theirs = (_layers(podman, built) for podman in stores)
    assert len(ours) == 4
    assert ours == theirs
    assert {"d/e/f", "d/hard", "d/pair", "d/link", "d/fifo"} <= ours[1].keys()
    assert {"srv/.wh.file", "etc/.wh.issue", "etc/passwd", "home"} <= ours[2].keys()
    assert ours[2]["usr/bin/capable"][7] == _XATTRS
    assert {"d/e/g", "etc/.wh.skel", "opt"} <= ours[3].keys()


def test_commits_are_alike(stores: Stores, built: str) -> None:
    """A container that ran, was stopped, started and committed; with its difference and its export."""
    script = (
        "rm -r /d; mkdir /d; touch -d @1000000000 /d/new; echo >> /etc/group; touch -d @1100000000 /etc/group;"
        "mv /etc/moved /etc/back; ln -sf x /home/l; chown -h 7:8 /home/l"
    )
    results = []
    for podman in stores:
        podman("run", "-d", "--name", "kept-one", "--network=none", built, "sleep", "1000")
        podman.sh("kept-one", script)
        podman("stop", "-t", "0", "kept-one")
        podman("start", "kept-one")
        assert podman.sh("kept-one", "ls /d") == "new"
        difference = sorted(podman("diff", "kept-one").splitlines())
        podman("commit", "-q", "kept-one", "localhost/committed:1")
        podman("export", "-o", podman.where / "export.tar", "kept-one")
        with tarfile.open(podman.where / "export.tar") as tar:
            exported = {member.name: _described(tar, member)[:6] for member in tar}
        podman("rm", "-f", "-t", "0", "kept-one")
        results.append((difference, _layers(podman, "localhost/committed:1")[-1], exported))
    ours, theirs = results
    assert ours[0] == theirs[0]
    assert {"C /etc/group", "A /d/new", "D /etc/moved", "A /etc/back"} <= set(ours[0])
    assert ours[1] == theirs[1]
    assert ours[2] == theirs[2]


def test_through_a_registry(stores: Stores, built: str, run_dir: Path) -> None:
    """What we push, fuse-overlayfs's store pulls and shows alike; and so do we when we have pulled it ourselves."""
    need("docker-registry")
    see = ["sh", "-c", "find / -xdev -printf '%p %y %m %U %G %s %l\\n' | grep -v -e ^/etc/ho -e ^/run | sort"]
    with Registry(run_dir / "podman-registry") as registry:
        name = f"{registry.host}/t/built:1"
        stores.ours("push", "-q", "--tls-verify=false", built, name)
        stores.ours("tag", built, "localhost/kept:1")
        seen = []
        for podman in stores:
            podman("rmi", "-f", built)
            podman("pull", "-q", "--tls-verify=false", name)
            podman("tag", name, built)
            seen.append(podman("run", "--rm", "--network=none", name, *see))
        assert seen[0] == seen[1]
        assert "/d/e/g f 644 0 0 2" in seen[0]


def test_overlays_on_directories(stores: Stores, ordinary_user: User, run_dir: Path, base: Path) -> None:
    """-v DIR:/x:O and --rootfs DIR:O: changes are seen inside and never arrive in the directory."""
    podman = stores.ours
    where = run_dir / "podman-directories"
    (where / "volume").mkdir(parents=True)
    (where / "volume/file").write_text("old\n")
    ordinary_user.own(where)
    script = "echo new > /x/file; rm -f /x/gone; echo > /x/made; cat /x/file; grep ' /x ' /proc/self/mountinfo"
    said = podman("run", "--rm", "--network=none", "-v", f"{where}/volume:/x:O", BASE, "sh", "-ec", script)
    assert said.startswith("new\n")
    assert "fuse.unionfs" in said
    assert [path.name for path in (where / "volume").iterdir()] == ["file"]
    assert (where / "volume/file").read_text() == "old\n"
    podman(
        "unshare",
        "sh",
        "-ec",
        f"mkdir {where}/rootfs; cd {where}/rootfs; tar -xpf {base} --exclude=./dev/*; mkdir -p dev",
    )
    said = podman(
        "run", "--rm", "--network=none", "--rootfs", f"{where}/rootfs:O", "sh", "-ec", "echo > /made; ls /made"
    )
    assert said == "/made"
    assert not (where / "rootfs/made").exists()
    podman("unshare", "rm", "-rf", where / "rootfs")


def test_image_mount(stores: Stores, built: str) -> None:
    script = "m=$(podman $PODMAN image mount $IMAGE); cat $m/d/e/g; touch $m/x; podman $PODMAN image umount $IMAGE"
    store = stores.ours
    words = ["--root", f"{store.where}/root", "--runroot", f"{store.where}/run", "--storage-driver", "overlay"]
    words += ["--storage-opt", f"overlay.mount_program={store.where}/mount-program"]
    status, said, complaint = store.run(
        ["podman", *words, "unshare", "env", f"PODMAN={' '.join(words)}", f"IMAGE={built}", "sh", "-c", script]
    )
    assert status == 0
    assert said.startswith("y\n")
    assert "Read-only file system" in complaint


def test_buildah_step_by_step(stores: Stores) -> None:
    buildah = stores.ours.buildah
    name = buildah("from", "--pull-never", BASE)
    buildah("run", "--isolation", "chroot", name, "sh", "-ec", "mkdir /b; echo one > /b/one; rm /etc/issue")
    buildah("copy", "-q", name, stores.ours.where / "containers.conf", "/b/conf")
    buildah("config", "--cmd", "cat /b/one", name)
    buildah("commit", "-q", name, "localhost/stepped:1")
    buildah("rm", name)
    assert stores.ours("run", "--rm", "--network=none", "localhost/stepped:1") == "one"
    (layer,) = _layers(stores.ours, "localhost/stepped:1")
    assert {"b", "b/one", "b/conf", "etc", "etc/.wh.issue"} <= layer.keys()


_BAD: Final = {
    "redirect_dir=on": "redirect_dir=on",
    "uidmapping=0:1": "not in groups of three numbers",
    "uidmapping=0:x:1": "not numbers",
    "gidmapping=0:1:2:3": "not in groups of three numbers",
    "squash_to_uid=somebody": "squash_to_uid=somebody",
    "xattr_permissions=3": "not one of 0, 1, 2",
}


@pytest.mark.parametrize("option", _BAD)
def test_podman_reports_invalid_options(option: str, stores: Stores) -> None:
    status, said = stores.ours.refused(
        "run", "--rm", "--network=none", BASE, "true", options=["--storage-opt", f"overlay.mountopt={option}"]
    )
    assert status in (125, 126, 127)
    assert "unionfs: mount failed: " in said
    assert _BAD[option] in said


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("s|workdir=|workdirectory=|", "workdir not specified"),
        ("s|lowerdir=|lowerdir=/nowhere:|", "cannot use /nowhere as a lower: No such file or directory"),
        ("s|lowerdir=|lowerdir=/etc/passwd:|", "cannot use /etc/passwd as a lower: Not a directory"),
        ("s|lowerdir=|lowerdir=/root:|", "cannot read the lower /root: Permission denied"),
        ("s|workdir=[^,]*|workdir=/proc|", "files are renamed from one to the other"),
    ],
)
def test_podman_reports_directories_that_cannot_be_used(
    change: str, sentence: str, stores: Stores, ordinary_user: User, scratch: Path
) -> None:
    """A mount program that is given other directories than podman's: what it says, podman passes on, and ends."""
    program = our_program(scratch, ordinary_user, f'set -- "$1" "$(sed \'{change}\' <<< "$2")" "${{@:3}}"')
    status, said = stores.ours.refused(
        "run", "--rm", "--network=none", BASE, "true", options=["--storage-opt", f"overlay.mount_program={program}"]
    )
    assert status in (125, 126, 127)
    assert "unionfs: mount failed: " in said
    assert sentence in said


def test_no_daemon_is_left(stores: Stores) -> None:
    """When no container runs, nothing of ours does; podman's own pause process may."""
    assert stores.ours("ps", "-aq") == ""
    found = run(["ps", "-eo", "args"]).stdout.splitlines()
    assert [line for line in found if os.fspath(stores.ours.where) in line and "lowerdir=" in line] == []

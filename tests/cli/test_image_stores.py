"""Further stores of images (--image-store): of others, read-only, hostile, broken, changing; and --scratch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support import tiny
from tests.support.timing import limit
from tests.support.users import User, new_ordinary_user

pytestmark = pytest.mark.usefixtures("fuse_device", "root_user")

_IMAGE: Final = "shared:1"


@pytest.fixture(scope="module")
def owner(run_dir: Path) -> Iterator[User]:
    with new_ordinary_user(run_dir) as user:
        user.home.chmod(0o755)
        yield user


@pytest.fixture(scope="module")
def made(owner: User) -> Path:
    """A store of `owner` that is open to all, with one image. Not to be changed."""
    tar, root = tiny.make(owner.home / "tiny.tar"), owner.home / "shared"
    with tarfile.open(tar, "a") as archive:  # else users of the tests may have the same layer in their own stores
        archive.addfile(tarfile.TarInfo("shared"))
    (root / "layers").mkdir(parents=True)
    root.chmod(0o755)
    (root / "layers").chmod(0o755)  # so layers are open to all, too
    owner.own(owner.home)
    owner.run([*owner.unionfs_cmd, "import", "--root", root, "--compression", "none", tar, _IMAGE])
    return root


@pytest.fixture
def shared(made: Path, scratch: Path) -> Path:
    """A copy of that store."""
    subprocess.run(["cp", "-a", made, scratch / "shared"], check=True)
    scratch.chmod(0o755)
    return scratch / "shared"


def _unionfs(user: User, store: Path, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return user.run([*user.unionfs_cmd, *words], env={"UNIONFS_IMAGE_STORES": str(store)}, check=check)


def _state(tree: Path) -> list[tuple[object, ...]]:
    paths = [tree, *tree.rglob("*")]
    return [(str(path), (st := path.lstat()).st_mtime_ns, st.st_ctime_ns, st.st_mode, st.st_nlink) for path in paths]


@pytest.mark.parametrize("kind", ["bind", "squashfs"])
def test_a_read_only_store_is_listed_run_and_built_on_and_nothing_is_copied(
    made: Path, ordinary_user: User, scratch: Path, kind: str
) -> None:
    """The user's own directories stay as they were: no lock, no layer, no home that must be writable."""
    place = scratch / "ro"
    place.mkdir()
    scratch.chmod(0o755)
    if kind == "bind":
        subprocess.run(["mount", "--bind", "-o", "ro", made, place], check=True)
    else:
        if not shutil.which("mksquashfs"):
            pytest.skip("mksquashfs is missing (Debian package squashfs-tools)")
        image = scratch / "store.sqfs"
        subprocess.run(["mksquashfs", made, image, "-quiet", "-no-progress"], check=True)
        subprocess.run(["mount", "-t", "squashfs", "-o", "loop,ro", image, place], check=True)
    try:
        before, user, job = _state(place), ordinary_user, scratch / "job"
        job.mkdir()
        user.own(job)
        (home,) = json.loads(_unionfs(user, place, "images", "--json", "--root", scratch / "none").stdout)
        assert (home["repository"], home["store"]) == ("shared", str(place))
        run = ("run", "--rm", "--root", scratch / "none", "--scratch", job, _IMAGE)
        assert _unionfs(user, place, *run, "sh", "-c", "cat /data/file; echo new > /data/file").stdout == "a file\n"
        assert not (scratch / "none").exists()
        assert os.listdir(job / f"unionfs-{user.uid}" / "containers") == [".lock"]
        own = scratch / "own"
        own.mkdir()
        user.own(own)
        (own / "Containerfile").write_text(f"FROM {_IMAGE}\nRUN echo built > /data/built\n")
        _unionfs(user, place, "build", "-q", "--root", own / "S", "-t", "built:1", "-f", own / "Containerfile", own)
        script = "cat /data/built /data/file; echo more > /more"
        told = _unionfs(user, place, "run", "--root", own / "S", "--name", "box", "built:1", "sh", "-c", script)
        assert told.stdout == "built\na file\n"
        _unionfs(user, place, "commit", "-q", "--root", own / "S", "box", "more:1")
        assert _unionfs(user, place, "run", "--rm", "--root", own / "S", "more:1", "cat", "/more").stdout == "more\n"
        assert len(os.listdir(own / "S/layers")) == 2  # of the RUN and of the commit
        refused = _unionfs(user, place, "rmi", "--root", own / "S", _IMAGE, check=False)
        assert f"it is in the further store {place}, which is only read" in refused.stderr
        assert _state(place) == before
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_what_the_owner_removes_ends_the_containers_that_use_it(
    shared: Path, owner: User, ordinary_user: User, scratch: Path
) -> None:
    words = (*ordinary_user.prefix, *ordinary_user.unionfs_cmd, "run", "--name", "left", "--image-store", str(shared))
    ready = "echo ready; while :; do sleep 1; done"
    environment, home = dict(ordinary_user.env), ordinary_user.home
    with subprocess.Popen(
        [*words, _IMAGE, "sh", "-c", ready], env=environment, cwd=home, text=True, stdout=-1, stderr=-1
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        tar = owner.home / "tiny.tar"
        owner.run([*owner.unionfs_cmd, "import", "--root", shared, tar, "other:1"])  # which ends nothing
        owner.run([*owner.unionfs_cmd, "rmi", "--root", shared, "other:1", "--no-prune"])
        assert running.poll() is None
        owner.run([*owner.unionfs_cmd, "rmi", "--root", shared, _IMAGE])
        _, told = running.communicate(timeout=limit(30))
    assert (running.returncode, "the owner of the store has removed this layer of the image" in told) == (125, True)
    again = ordinary_user.unionfs("start", "-a", "left", check=False)
    assert (again.returncode, "No such file or directory" in again.stderr) == (1, True)
    ordinary_user.unionfs("rm", "left")
    del scratch


def test_a_hostile_store_leads_nowhere(shared: Path, owner: User, ordinary_user: User, scratch: Path) -> None:
    """Links, fifos and directories of others in the places of layers, records and names."""
    secret = scratch / "secret"
    (secret / "diff").mkdir(parents=True)
    ordinary_user.own(secret)
    (key,) = os.listdir(shared / "layers")
    layer = shared / "layers" / key
    (secret / "layer.json").write_bytes((layer / "layer.json").read_bytes())

    def refused(why: str) -> None:
        done = _unionfs(ordinary_user, shared, "run", "--rm", "--pull", "never", _IMAGE, "true", check=False)
        assert done.returncode != 0
        assert why in done.stderr, done.stderr
        assert "Traceback" not in done.stderr

    (layer / "diff").rename(layer / "kept")
    (layer / "diff").symlink_to(secret / "diff")
    refused("it is no directory, or reached through a symbolic link")
    (layer / "diff").unlink()
    (layer / "kept").rename(layer / "diff")
    layer.rename(scratch / "kept")
    layer.symlink_to(secret)
    refused("it is no directory, or reached through a symbolic link")
    layer.unlink()
    secret.rename(layer)
    refused("it belongs to another user than the store")
    layer.rename(secret)
    (scratch / "kept").rename(layer)
    for name, why in (("images/oci-layout", "not a regular file"), ("images/index.json", "not a regular file")):
        (shared / name).rename(scratch / "kept")
        os.mkfifo(shared / name)
        refused(why)
        (shared / name).unlink()
        (scratch / "kept").rename(shared / name)
    assert _unionfs(ordinary_user, shared, "run", "--rm", _IMAGE, "cat", "/data/file").stdout == "a file\n"
    del owner


def test_stores_that_cannot_be_read_are_named(shared: Path, ordinary_user: User, scratch: Path) -> None:
    def told(store: Path, *words: str) -> str:
        return _unionfs(ordinary_user, store, *words, check=False).stderr

    run = ("run", "--rm", "--pull", "never", _IMAGE, "true")
    assert "it has no images/oci-layout" in told(scratch / "nothing", *run)
    layout = (shared / "images/oci-layout").read_text()
    (shared / "images/oci-layout").write_text('{"imageLayoutVersion": "9.0.0"}')
    assert "its layout has version '9.0.0'; this program reads 1.0.0" in told(shared, *run)
    listed = _unionfs(ordinary_user, shared, "images")
    assert (listed.returncode, "version '9.0.0'" in listed.stderr) == (0, True)  # the others are listed
    (shared / "images/oci-layout").write_text("{")
    assert "its images/oci-layout is damaged" in told(shared, *run)
    (shared / "images/oci-layout").write_text(layout)
    (key,) = os.listdir(shared / "layers")
    (shared / "layers" / key).chmod(0o700)
    assert "it is not open to this user\n  its owner lets others in: chmod 755" in told(shared, *run)
    (shared / "layers" / key).chmod(0o755)
    (shared / "layers" / key).rename(shared / "aside" / key)  # as while its owner is pulling it: made of the blobs
    done = _unionfs(ordinary_user, shared, "run", "--rm", "--root", ordinary_user.home / "own", *run[1:])
    assert done.returncode == 0
    assert os.listdir(ordinary_user.home / "own/layers") == [key]
    (shared / "images/index.json").write_text("[")
    assert "index.json" in told(shared, *run)


def test_scratch_directories_of_others_are_refused(ordinary_user: User, owner: User, scratch: Path) -> None:
    scratch.chmod(0o1777)
    place = scratch / f"unionfs-{ordinary_user.uid}"
    words = ("run", "--rm", "--lower", "/", "true")
    job = {"SLURM_JOB_ID": "7", "TMPDIR": str(scratch)}

    def told() -> str:
        return ordinary_user.run([*ordinary_user.unionfs_cmd, *words], env=job, check=False).stderr

    place.symlink_to("/etc")
    assert f"using the scratch directory failed: {place}: it is not a directory of this user" in told()
    place.unlink()
    place.mkdir()
    owner.own(place)
    assert "it is not a directory of this user" in told()
    ordinary_user.own(place)
    place.chmod(0o755)
    assert "other users may enter it" in told()
    place.chmod(0o700)
    assert told() == ""
    assert os.listdir(place / "containers") == [".lock"]

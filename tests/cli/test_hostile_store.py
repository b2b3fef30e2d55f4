"""Root on a user's store in whose places the user has put something else: nothing outside changes, nothing hangs."""

from __future__ import annotations

import http.server
import json
import os
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from layers import credentials
from layers.errors import Refused
from tests.support.timing import limit
from tests.support.users import User, new_ordinary_user
from unionfs import store_files
from unionfs.syscalls import peers

pytestmark = pytest.mark.usefixtures("fuse_device")

_TOPS: Final = ("containers", "volumes", "images", "layers", "aside", "locks", "partial", "drivers")
_INNER: Final = (
    "containers/.lock", "{box}", "volumes/v", "images/index.json", "images/oci-layout", "images/blobs",
    "locks/store.lock", "locks/index.lock", "layers/{key}",
)  # fmt: skip
_LEAVES: Final = (
    "{box}/upper", "{box}/work", "{box}/merged", "{box}/outcome", "{box}/log", "{box}/daemon.log", "{box}/namespaces",
    "{box}/etc", "{box}/mountpoints", "{box}/mountpoint-lower", "{box}/changes.json", "{box}/apply.journal",
    "{box}/bundle", "volumes/v/volume.json", "volumes/v/_data", "images/blobs/sha256", "layers/{key}/layer.json",
    "layers/{key}/fingerprints", "layers/{key}/diff",
)  # fmt: skip
_RECORD: Final = ("{box}/container.json",)


def _link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def _dangling(path: Path, victim: Path) -> None:
    path.symlink_to(victim.parent / "not-there")


def _link_to_directory(path: Path, victim: Path) -> None:
    path.symlink_to(victim.parent)


def _fifo(path: Path, _: Path) -> None:
    os.mkfifo(path, 0o666)


def _directory(path: Path, _: Path) -> None:
    path.mkdir()


def _socket(path: Path, _: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        fd = os.open(path.parent, os.O_PATH)
        server.bind(f"/proc/self/fd/{fd}/{path.name}")
        os.close(fd)


def _nonsense(path: Path, _: Path) -> None:
    path.write_bytes(b'{"\xff' + b"[" * 100_000)


def _hard_link(path: Path, victim: Path) -> None:
    os.link(victim, path)


_PLANTS: Final = (_link, _dangling, _link_to_directory, _fifo, _directory, _socket, _nonsense, _hard_link)
_IMAGE_VERBS: Final = (
    ("images",), ("history", "i"), ("tag", "i", "j"), ("save", "i", "-o", "{tar}.i"), ("rmi", "i"),
    ("image", "prune", "-a"), ("import", "{tar}", "k"), ("load", "-i", "{tar}"), ("pull", "{registry}/i"),
    ("push", "i", "{registry}/i"), ("layers", "inspect", "i"), ("layers", "verify"), ("layers", "gc"),
    ("layers", "why", "i", "/f"), ("create", "i", "true"), ("volume", "create", "w"), ("volume", "ls"),
    ("volume", "inspect", "v"), ("volume", "rm", "v"), ("volume", "prune"),
)  # fmt: skip
_CONTAINER_VERBS: Final = (
    ("ps", "-a"), ("rm", "b"), ("inspect", "b"), ("logs", "b"), ("diff", "b"), ("rename", "b", "c"), ("start", "b"),
    ("stop", "b"), ("kill", "b"), ("top", "b"), ("wait", "b"), ("restart", "b"), ("exec", "b", "true"),
    ("export", "b", "-o", "{tar}.b"), ("commit", "b", "c"), ("cp", "b:/etc/hostname", "-"), ("why", "b:/f"),
    ("run", "--rm", "--lower", "/", "-v", "v:/mnt", "true"), ("create", "--lower", "/", "true"), ("apply", "b"),
    ("container", "prune"),
)  # fmt: skip


def _state(victim: Path) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for path in (victim, victim.parent):
        st = path.lstat()
        names = 0 if stat.S_ISREG(st.st_mode) else st.st_nlink
        found.append((st.st_uid, st.st_gid, st.st_mode, st.st_mtime_ns, names))
    return [*found, (victim.read_bytes(), sorted(os.listdir(victim.parent)))]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """HOST:PORT of a server that has nothing: pull and push fail at once."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def another_user(run_dir: Path, root_user: User) -> Iterator[User]:
    del root_user
    with new_ordinary_user(run_dir) as user:
        yield user


@pytest.fixture
def victim(scratch: Path) -> Path:
    """A file of root's, in a directory of root's."""
    where = scratch / "root"
    where.mkdir()
    path = where / "victim"
    path.write_text('{"secret": 1}')
    path.chmod(0o600)
    return path


def _store(user: User, where: Path) -> tuple[Path, str]:
    """A store of the user's, with a container and a volume: its root, and the container's place."""
    root = where / "R"
    user.run([*user.unionfs_cmd, "create", "--root", root, "--name", "b", "--lower", "/", "/true"])
    user.run([*user.unionfs_cmd, "volume", "--root", root, "create", "v"])
    user.run([*user.unionfs_cmd, "images", "--root", root])
    (box,) = [name for name in os.listdir(root / "containers") if not name.startswith(".")]
    return root, f"containers/{box}"


def _words(verb: tuple[str, ...], root: Path, tar: Path) -> list[str]:
    """A whole command, of `unionfs` unless it is one of `layers`; `--root` stands behind the verb."""
    length = 2 if verb[0] in ("image", "container", "layers") else 1
    command = [sys.executable, "-m", *(() if verb[0] == "layers" else ("unionfs",))]
    return [*command, *verb[:length], "--root", str(root), *(word.replace("{tar}", str(tar)) for word in verb[length:])]


def _plant_all(root: Path, places: tuple[str, ...], first: int, user: User, victim: Path, **names: str) -> None:
    """Put something else in all these places; which kind stands where turns with `first`."""
    for number, template in enumerate(places):
        path = root / template.format(**names)
        if path.is_symlink() or path.exists():
            path.rename(path.with_name(f"{path.name}.kept"))
        path.parent.mkdir(parents=True, exist_ok=True)
        plant = _PLANTS[(first + number) % len(_PLANTS)]
        plant(path, victim)
        if plant is not _hard_link:
            os.chown(path, user.uid, user.gid, follow_symlinks=False)


@pytest.mark.parametrize("verbs", [_IMAGE_VERBS, _CONTAINER_VERBS], ids=["images", "containers"])
def test_root_is_not_led_out_of_a_users_store(
    ordinary_user: User,
    root_user: User,
    victim: Path,
    registry: str,
    verbs: tuple[tuple[str, ...], ...],
) -> None:
    """All places at once, in three storeys, since what stands above hides what is below."""
    home = ordinary_user.home / f"store-{verbs[0][0]}"
    home.mkdir()
    tar = home / "i.tar"
    with tarfile.open(tar, "w") as archive:
        archive.addfile(tarfile.TarInfo("f"))
    ordinary_user.own(home)
    honest, box = _store(ordinary_user, home)
    ordinary_user.run(_words(("import", "{tar}", "i"), honest, tar))
    ordinary_user.run(_words(("create", "i", "true"), honest, tar))
    (key,) = os.listdir(honest / "layers")
    before = _state(victim)
    for number, verb in enumerate(verbs):
        upper = (_TOPS, _INNER, _RECORD)[number % 3]
        for storey, places in enumerate((upper, _LEAVES)):
            root = home / f"{number}-{storey}"
            subprocess.run(["cp", "-a", honest, root], check=True)
            _plant_all(root, places, 3 * number + storey, ordinary_user, victim, box=box, key=key)
            named = tuple(word.replace("{registry}", registry) for word in verb)
            words = _words(named, root, tar)
            done = root_user.run(words, check=False, timeout_s=60, stdin="")
            assert done.returncode != 2, (words, done.stderr)  # usage
            assert "Traceback" not in done.stderr, (words, done.stderr)
            assert "internal error" not in done.stderr, (words, done.stderr)
            told = [line for line in done.stderr.splitlines() if line.startswith(("unionfs: ", "layers: "))]
            assert len(told) <= 3, (words, done.stderr)
            assert _state(victim) == before, words
            subprocess.run(["rm", "-rf", root], check=True)


def test_a_user_is_refused_on_the_store_of_another(ordinary_user: User, another_user: User, victim: Path) -> None:
    home = ordinary_user.home / "theirs"
    home.mkdir()
    ordinary_user.own(home)
    root, _ = _store(ordinary_user, home)
    for path in (*ordinary_user.home.parents, ordinary_user.home, home):
        if path.is_relative_to(ordinary_user.home):
            path.chmod(0o755)
    for verb in (("rm", "b"), ("images",), ("layers", "gc"), ("volume", "rm", "v"), ("apply", "b")):
        done = another_user.run(_words(verb, root, victim), check=False)
        assert done.returncode == 1, (verb, done.stderr)
        assert f"it belongs to another user ({ordinary_user.uid})" in done.stderr, (verb, done.stderr)
    assert ordinary_user.run([*ordinary_user.unionfs_cmd, "rm", "--root", root, "b"]).returncode == 0


def test_a_runtime_in_a_record_is_run_as_the_owner_only(
    ordinary_user: User, root_user: User, scratch: Path, victim: Path
) -> None:
    home = ordinary_user.home / "runtime"
    home.mkdir()
    runtime, seen = home / "crun", home / "seen"
    runtime.write_text(f"#!/bin/sh\nawk '{{print $2}}' /proc/self/uid_map > {seen}\nexit 1\n")
    runtime.chmod(0o755)
    ordinary_user.own(home)
    root, box = _store(ordinary_user, home)
    record = json.loads((root / box / "container.json").read_text())
    record["config"]["runtime"] = str(runtime)
    (root / box / "container.json").write_text(json.dumps(record))
    done = root_user.run([*root_user.unionfs_cmd, "start", "--root", root, "b"], check=False)
    assert done.returncode == 1
    assert seen.stat().st_uid == ordinary_user.uid
    assert seen.read_text().split()[0] == str(ordinary_user.uid)  # root of the user's namespace
    assert _state(victim)
    del scratch


def test_root_gives_no_rights_that_the_user_did_not_have(ordinary_user: User, root_user: User, scratch: Path) -> None:
    """Set-id files of others, devices and capabilities are put in place with --allow-privileged only."""
    script = f"cd {scratch}; for f in set group plain; do echo > $f; done; chmod 4755 set; chmod 2755 group"
    ordinary_user.unionfs("try", "--keep", "rights", "sh", "-c", script)
    home = ordinary_user.home / ".local/share/unionfs"
    (box,) = [name for name in os.listdir(home / "containers") if not name.startswith(".")]
    (home / "containers" / box / "changes.json").unlink()  # of what alone is put in place
    os.mknod(home / "containers" / box / "upper" / str(scratch)[1:] / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    done = root_user.unionfs("apply", "--root", home, "rights", check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "unionfs: apply failed: rights: these files would give rights that its owner does not have (nothing was done)",
        f"  {scratch}/device: is a device",
        f"  {scratch}/group: runs with the rights of group 0 (set-id)",
        f"  {scratch}/set: runs with the rights of user 0 (set-id)",
        "  to give them: unionfs apply --allow-privileged rights",
    ]
    assert os.listdir(scratch) == []
    done = root_user.unionfs("apply", "--root", home, "--allow-privileged", "rights")
    assert f"note: {scratch}/set runs with the rights of user 0 (set-id)" in done.stderr
    assert sorted(os.listdir(scratch)) == ["device", "group", "plain", "set"]


_KILLED: Final = """
import os, sys, signal
from unionfs.containers import take_over
from unionfs.containers.store import ContainerStore
container = ContainerStore(sys.argv[1]).find("b")
with take_over.taken_over(container, int(sys.argv[2])):
    print(os.stat(container.directory).st_uid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_container_is_given_back_when_apply_is_killed(ordinary_user: User, root_user: User) -> None:
    home = ordinary_user.home / "killed"
    home.mkdir()
    ordinary_user.own(home)
    root, box = _store(ordinary_user, home)
    words = [sys.executable, "-c", _KILLED, str(root), str(ordinary_user.uid)]
    assert root_user.run(words, check=False).stdout == "0\n"
    deadline = time.monotonic() + limit(20)
    while (root / box).stat().st_uid != ordinary_user.uid and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (root / box).stat().st_uid == ordinary_user.uid
    assert (root / box / "container.json").stat().st_uid == ordinary_user.uid
    assert ordinary_user.run([*ordinary_user.unionfs_cmd, "rm", "--root", root, "b"]).returncode == 0


def test_files_of_roots_in_a_users_container_are_not_given_away(
    ordinary_user: User, root_user: User, victim: Path
) -> None:
    """A user may move a file of root's within a directory of his own, which `apply` must not take for its own."""
    home = ordinary_user.home / "moved"
    home.mkdir()
    ordinary_user.own(home)
    root, box = _store(ordinary_user, home)
    victim.rename(root / box / "secret")
    done = root_user.run([*root_user.unionfs_cmd, "apply", "--root", root, "b"], check=False)
    assert done.returncode == 1
    assert "secret has other names, or belongs to another user" in done.stderr
    assert (root / box / "secret").stat().st_uid == 0


def test_credentials_are_not_written_through_a_link_of_another_user(
    ordinary_user: User, monkeypatch: pytest.MonkeyPatch, scratch: Path, victim: Path
) -> None:
    theirs = scratch / "auth.json"
    theirs.symlink_to(victim)
    os.chown(theirs, ordinary_user.uid, ordinary_user.gid, follow_symlinks=False)
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(theirs))
    before = _state(victim)
    with pytest.raises(Refused, match="is a symbolic link of another user"):
        credentials.store("example.org", credentials.Credentials("a", "b"))
    assert _state(victim) == before
    theirs.unlink()
    os.mkfifo(theirs)
    with pytest.raises(OSError, match="not a regular file"):
        credentials.store("example.org", credentials.Credentials("a", "b"))


def test_the_lock_of_a_container_does_not_give_a_file_of_roots_away(
    ordinary_user: User, root_user: User, victim: Path
) -> None:
    home = ordinary_user.home / "given-away"
    home.mkdir()
    ordinary_user.own(home)
    root, box = _store(ordinary_user, home)
    (root / "containers/.lock").unlink(missing_ok=True)
    (root / "containers/.lock").symlink_to(victim)
    before = _state(victim)
    done = root_user.run([*root_user.unionfs_cmd, "rm", "--root", root, "b"], check=False)
    assert done.returncode == 1
    assert "a symbolic link instead of a file" in done.stderr
    assert _state(victim) == before
    (root / "containers/.lock").unlink()
    done = root_user.run([*root_user.unionfs_cmd, "rm", "--root", root, "b"], check=False)
    assert done.returncode == 0, done.stderr
    assert not (root / box).exists()
    assert (root / "containers/.lock").stat().st_uid == ordinary_user.uid


def test_the_owner_of_a_store(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    assert store_files.owner_of(str(own / "R")) == tmp_path.stat().st_uid
    if os.geteuid() == 0:
        os.chown(own, 12345, 12345)
        (own / "R").mkdir()
        assert store_files.owner_of(str(own / "R")) == 12345
        (tmp_path / "link").symlink_to(own)
        assert store_files.owner_of(str(tmp_path / "link/R")) == 12345
        os.chown(own / "R", 12346, 12346)
        with pytest.raises(store_files.OwnerError, match="several users"):
            store_files.owner_of(str(own / "R"))


def test_only_a_regular_file_of_one_name_and_of_its_owner_is_opened(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("x")
    for number, plant in enumerate(_PLANTS):
        if plant is not _nonsense:
            plant(tmp_path / str(number), victim)
            for flags in (os.O_RDONLY, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_TRUNC):
                with pytest.raises(OSError, match=r"link|regular"):
                    store_files.open_file(str(tmp_path / str(number)), flags)
    assert victim.read_text() == "x"
    if os.geteuid() == 0:
        os.unlink(tmp_path / str(_PLANTS.index(_hard_link)))
        os.chown(victim, 12345, 12345)
        with pytest.raises(PermissionError, match="another user"):
            store_files.open_file(str(victim), os.O_RDONLY)
    (tmp_path / "large").write_text("four")
    with pytest.raises(OSError, match="larger than 3 bytes"):
        store_files.read_file(str(tmp_path / "large"), 3)


def test_users_that_a_namespace_does_not_have_own_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the machine's root, to whom / belongs, looks like an ordinary user."""
    monkeypatch.setattr(os, "lstat", lambda path: os.stat_result((0o40755, 1, 1, 1, 65534, 0, 0, 0, 0, 0)))
    assert store_files.owner_of(str(tmp_path)) == (65534 if peers.has_all_users() else 0)
    monkeypatch.setattr(peers, "has_all_users", lambda: False)
    assert store_files.owner_of(str(tmp_path)) == 0


def test_root_applies_nothing_that_a_user_has_forged(ordinary_user: User, root_user: User, victim: Path) -> None:
    """Ids that are not the user's, a journal that root did not write, a link to root's files for an upper."""
    home = ordinary_user.home / "forged"
    home.mkdir()
    ordinary_user.own(home)
    root, box = _store(ordinary_user, home)
    before = _state(victim)
    container = root / box
    honest = (container / "container.json").read_bytes()

    def refused(why: str) -> None:
        done = root_user.run([*root_user.unionfs_cmd, "apply", "--root", root, "b"], check=False)
        assert done.returncode == 1
        assert why in done.stderr
        assert _state(victim) == before
        assert container.stat().st_uid == (container / "container.json").stat().st_uid == ordinary_user.uid

    value = json.loads(honest)
    value["facts"]["uid_map"] = [{"inside": 0, "outside": 0, "length": 1}]
    (container / "container.json").write_text(json.dumps(value))
    refused("claims user ids that its owner does not have")
    (container / "container.json").write_bytes(honest)
    (container / "apply.journal").write_text("{}")
    os.chown(container / "apply.journal", ordinary_user.uid, ordinary_user.gid)
    (container / "apply.journal").rename(container / "forged")
    (container / "upper").rename(container / "kept")
    (container / "upper").symlink_to(victim.parent)
    refused("upper is a symbolic link")
    (container / "upper").unlink()
    (container / "kept").rename(container / "upper")
    (container / "forged").rename(container / "apply.journal")
    done = root_user.run([*root_user.unionfs_cmd, "apply", "--root", root, "b"], check=False)
    assert done.returncode == 1
    assert "apply.journal was not written by root" in done.stderr

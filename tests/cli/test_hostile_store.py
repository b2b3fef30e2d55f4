"""Root on a user's store in whose places the user has put something else: nothing outside changes, nothing hangs."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.support.users import User
from unionfs import store_files
from unionfs.syscalls import peers

pytestmark = pytest.mark.usefixtures("fuse_device")

_PLACES: Final = (
    "containers", "containers/.lock", "{box}", "{box}/container.json", "{box}/upper", "{box}/work", "{box}/merged",
    "{box}/outcome", "{box}/log", "{box}/namespaces", "volumes", "volumes/v", "volumes/v/volume.json", "images",
    "images/index.json", "images/oci-layout", "locks", "locks/store.lock", "locks/index.lock", "layers", "aside",
)  # fmt: skip


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
_VERBS: Final = (
    ("ps", "-a"), ("rm", "b"), ("inspect", "b"), ("logs", "b"), ("diff", "b"), ("rename", "b", "c"), ("start", "b"),
    ("volume", "ls"), ("volume", "rm", "v"), ("images",), ("rmi", "x"), ("apply", "b"),
    ("create", "--lower", "/", "true"), ("exec", "b", "true"), ("wait", "b"), ("export", "b", "-o", "/dev/null"),
)  # fmt: skip


def _state(victim: Path) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for path in (victim, victim.parent):
        st = path.lstat()
        names = 0 if stat.S_ISREG(st.st_mode) else st.st_nlink
        found.append((st.st_uid, st.st_gid, st.st_mode, st.st_mtime_ns, names))
    return [*found, (victim.read_bytes(), sorted(os.listdir(victim.parent)))]


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


@pytest.mark.parametrize("plant", _PLANTS, ids=lambda plant: plant.__name__.strip("_"))
def test_root_is_not_led_out_of_a_users_store(
    ordinary_user: User, root_user: User, scratch: Path, victim: Path, plant: Callable[[Path, Path], None]
) -> None:
    home = ordinary_user.home / f"store-{plant.__name__}"
    home.mkdir()
    ordinary_user.own(home)
    root, box = _store(ordinary_user, home)
    before = _state(victim)
    for number, template in list(enumerate(_PLACES))[_PLANTS.index(plant) % 2 :: 2]:  # each place has half of them
        path = root / template.format(box=box)
        aside = path.with_name(f"{path.name}.kept")
        if path.is_symlink() or path.exists():
            path.rename(aside)
        path.parent.mkdir(parents=True, exist_ok=True)
        plant(path, victim)
        if plant is not _hard_link:
            os.chown(path, ordinary_user.uid, ordinary_user.gid, follow_symlinks=False)
        verb = _VERBS[(number + 5 * _PLANTS.index(plant)) % len(_VERBS)]  # all verbs and places, not all pairs
        words = [*root_user.unionfs_cmd, verb[0], "--root", root, *verb[1:]]
        done = root_user.run(words, check=False, timeout_s=60)
        assert "Traceback" not in done.stderr
        assert "internal error" not in done.stderr, (verb, template, done.stderr)
        assert len([line for line in done.stderr.splitlines() if line.startswith("unionfs: ")]) <= 2, done.stderr
        assert _state(victim) == before, template
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        if aside.exists() and not path.exists():
            aside.rename(path)
    del scratch


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
    assert "a symbolic link in the place of a file" in done.stderr
    assert _state(victim) == before
    (root / "containers/.lock").unlink()
    done = root_user.run([*root_user.unionfs_cmd, "rm", "--root", root, "b"], check=False)
    assert done.returncode == 0, done.stderr
    assert not (root / box).exists()
    assert (root / "containers/.lock").stat().st_uid == ordinary_user.uid


def test_whose_store_it_is(tmp_path: Path) -> None:
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

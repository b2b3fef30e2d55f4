"""Processes that are killed (SIGKILL) anywhere on the way, and full disks: nothing half shows, a second try succeeds.

The work is done in a child that kills itself at its n-th call that changes something. A first child only counts them.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from layers import archive, gc, image, make_image, unpacked
from layers.errors import NotFound
from layers.make_image import ImageOptions
from layers.store import Store
from tests.layers import images, trees
from tests.layers.trees import Dir, File
from tests.support import process
from tests.support.timing import limit

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="layers with other owners need root")

BASE: Final = trees.tar_of([("d", {"type": b"5", "mode": 0o750}, b""), *((f"d/{n}", {}, b"x" * n) for n in range(20))])
TOP: Final = trees.tar_of(
    [("top", {"uid": 7}, b"y" * 5000), ("d/.wh.3", {}, b""), ("e/l", {"type": b"2", "linkname": "x"}, b"")]
)
POINTS: Final = (0.0, 0.2, 0.45, 0.7, 0.9, 0.99)
"""Where on the way, from the first call that changes something to the last."""

_CHILD = """
import os, signal, sys
left = int(sys.argv[1])
count = 0
def dying(function):
    def call(*arguments, **named):
        global count
        if count == left:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        return function(*arguments, **named)
    return call
for name in ("mkdir", "rename", "unlink", "rmdir", "symlink", "link", "write", "fchmod", "utime", "fsync", "chown"):
    setattr(os, name, dying(getattr(os, name)))
from tests.layers import test_killed
test_killed.WORK[sys.argv[2]](*sys.argv[3:])
print(count)
"""


def unpack_(root: str, given: str) -> None:
    image.resolve(Store(root), "x:1")


def load(root: str, given: str) -> None:
    with open(given, "rb") as file:
        archive.load(Store(root), file)


def import_(root: str, given: str) -> None:
    make_image.import_tar(Store(root), io.BytesIO(BASE), ImageOptions(name="docker.io/library/new:1"))


def commit(root: str, given: str) -> None:
    make_image.commit(Store(root), given, "x:1", ImageOptions(name="docker.io/library/new:1"))


WORK: Final[dict[str, Callable[[str, str], None]]] = {
    "unpack": unpack_, "load": load, "import": import_, "commit": commit,
}  # fmt: skip


def _prepared(what: str, scratch: Path) -> tuple[Store, str]:
    """A store before the work, and what is given to it."""
    store = Store(str(scratch / "root"))
    if what in ("unpack", "commit"):
        images.layout(Path(store.images), [BASE, TOP], name="x:1")
    if what == "commit":
        image.resolve(store, "x:1")
        upper = trees.make(scratch / "upper", {"new": File(b"n" * 3000), "d": Dir(mode=0o750), "d/.wh.4": File()})
        return store, str(upper)
    if what == "load":
        other = Store(str(scratch / "other"))
        images.layout(Path(other.images), [BASE, TOP], name="docker.io/library/new:1")
        with (scratch / "saved.tar").open("wb") as sink:
            archive.save(other, ["new:1"], sink)
    return store, str(scratch / "saved.tar")


def _child(what: str, at: int, root: str, given: str) -> subprocess.CompletedProcess[str]:
    checkout = Path(__file__).resolve().parents[2]
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", _CHILD, str(at), what, root, given]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=limit(120), check=False)


def _assert_nothing_half(store: Store) -> None:
    for key in os.listdir(store.layers):
        assert unpacked.verify(store, key) == []
    for name in os.listdir(Path(store.images, "blobs/sha256")):
        assert images.digest(Path(store.images, "blobs/sha256", name).read_bytes()) == f"sha256:{name}"
    for named in store.list_images():  # what has a name can be used
        image.resolve(store, named.name)


@pytest.mark.parametrize("what", list(WORK))
def test_nothing_half_shows_and_a_second_try_succeeds(what: str, scratch: Path) -> None:
    (scratch / "counted").mkdir()
    store, given = _prepared(what, scratch / "counted")
    counted = _child(what, 1_000_000, store.root, given)
    assert counted.returncode == 0, counted.stderr
    total = int(counted.stdout)
    _assert_nothing_half(store)
    whole = sorted(os.listdir(store.layers))
    for point in POINTS:
        (scratch / str(point)).mkdir()
        store, given = _prepared(what, scratch / str(point))
        before = [named.name for named in store.list_images()]
        killed = _child(what, int(total * point), store.root, given)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        store.prepare()
        named = [one.name for one in store.list_images()]
        assert named[: len(before)] == before
        if what != "unpack" and len(named) == len(before):
            with pytest.raises(NotFound):
                store.find("new:1")
        _assert_nothing_half(store)
        WORK[what](store.root, given)
        _assert_nothing_half(store)
        assert os.listdir(store.aside) == []
        assert sorted(os.listdir(store.layers)) == whole
        gc.collect(store)
        assert sorted(os.listdir(store.layers)) == whole


@pytest.mark.parametrize("what", list(WORK))
def test_a_full_disk_leaves_no_partial_file(what: str, scratch: Path) -> None:
    small = scratch / "small"
    small.mkdir()
    process.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", small])
    store, given = _prepared(what, small)
    before, failed = store.list_images(), 0
    for left in (0, 6, 12, 40):  # KiB; the work needs more, or just enough
        room = os.statvfs(small)
        (small / "filler").write_bytes(bytes(max(room.f_bavail * room.f_frsize - (left << 10), 0)))
        if _is_full(what, store, given):
            failed += 1
            assert store.list_images() == before
        (small / "filler").unlink()
        assert os.listdir(store.aside) == []
    assert failed
    WORK[what](store.root, given)
    _assert_nothing_half(store)


def _is_full(what: str, store: Store, given: str) -> bool:
    try:
        WORK[what](store.root, given)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return True
    return False

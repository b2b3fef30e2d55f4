"""Many containers of one image at once: all succeed, nothing is left, and the image is not walked."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.marks import as_ordinary_user
from tests.support.timing import limit
from tests.support.users import User
from unionfs.syscalls import inotify

pytestmark = pytest.mark.usefixtures("fuse_device")

_COUNT = 20
_IN_ACCESS, _IN_OPEN = 0x1, 0x20  # <sys/inotify.h>


@as_ordinary_user
def test_twenty_containers_started_at_once(user: User, scratch: Path) -> None:
    user.own(scratch)
    root = scratch / "S"
    tar = tiny.make(scratch / "tiny.tar")
    user.unionfs("import", "--root", root, "--compression", "none", tar, "many:1")
    (key,) = os.listdir(root / "layers")
    fd = inotify.init()
    for below in ("data/dir", "usr/games", "var"):  # which no container of the test needs
        path = os.fsencode(root / "layers" / key / "diff" / below)
        assert ctypes.CDLL(None).inotify_add_watch(fd, path, _IN_ACCESS | _IN_OPEN) > 0
    words = [*user.prefix, *user.unionfs_cmd, "run", "--rm", "--root", str(root), "many:1", "cat", "/data/file"]
    started = [
        subprocess.Popen(words, env=dict(user.env), cwd=user.home, stdout=-1, stderr=subprocess.STDOUT)
        for _ in range(_COUNT)
    ]
    told = [(one.communicate(timeout=limit(120))[0], one.returncode) for one in started]
    assert told == [(b"a file\n", 0)] * _COUNT
    assert os.listdir(root / "containers") == [".lock"]
    assert [event for event in inotify.read(fd) if event.mask & (_IN_ACCESS | _IN_OPEN)] == []
    os.close(fd)
    mounted = Path("/proc/self/mounts").read_text()
    assert str(scratch) not in mounted

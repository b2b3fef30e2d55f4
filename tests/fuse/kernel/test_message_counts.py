"""How many messages things take, exactly: that is what decides the speed of a FUSE filesystem.

The tree has files in 50 directories over three layers. What the kernel does on its own account, and cannot be talked
out of, is in the numbers: after it has read something on a mount that can be written to it asks once more for the
attributes (the access time may have changed), and after an entry was made or removed it asks for those of the
directory.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.kernel.engine_process import Mount
from tests.support.process import run

pytestmark = pytest.mark.usefixtures("kept_caches")

DIRECTORIES, FILES = 50, 100
EVERY = DIRECTORIES * FILES

READ_ALL = """
import os
for directory in sorted(os.listdir(".")):
    for number in range(100):
        fd = os.open(f"{directory}/f{number}", os.O_RDONLY)
        assert len(os.read(fd, 65536)) == 1000
        os.close(fd)
"""

CREATE = """
import os
os.mkdir("new")
for number in range(5000):
    fd = os.open(f"new/f{number}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    os.write(fd, b"x" * 200)
    os.close(fd)
"""

CHANGE = """
import os
for number in range(100):
    os.chmod(f"new/f{number}", 0o600)
    os.rename(f"new/f{number}", f"new/g{number}")
    os.unlink(f"d2/f{number}")
    with open(f"d3/f{number}", "ab") as out:
        out.write(b"copied up")
    os.setxattr(f"d4/f{number}", "user.a", b"1")
    os.link(f"d5/f{number}", f"d6/g{number}")
os.rename("d7", "d8/d7")
os.rename("new", "new2")
"""

MISSING = """
import os
for number in range(1000):
    assert not os.path.exists(f"d1/missing{number}")
"""


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """5,000 files of 1,000 bytes in 50 directories, spread over three layers."""
    base = tmp_path_factory.mktemp("layers")
    tops = [base / name for name in ("a", "b", "c")]
    for top in tops:
        for number in range(DIRECTORIES):
            (top / f"d{number}").mkdir(parents=True)
    for directory in range(DIRECTORIES):
        for number in range(FILES):
            (tops[number % 3] / f"d{directory}" / f"f{number}").write_bytes(os.urandom(1000))
    return tops


@pytest.fixture
def mounted(layers: list[Path], mount: Callable[..., Mount]) -> Mount:
    """A fresh mount of the layers."""
    return mount(*layers)


def listing_messages() -> int:
    """READDIRPLUS messages for a directory of 100 entries: since Linux 6.16 as large as the reader's own buffer, so
    that one brings everything and one says that this was all; before, one for each page.
    """
    release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    return 2 if release >= (6, 16) else 6


def test_find(mounted: Mount) -> None:
    def find() -> dict[str, int]:
        lines = mounted.run("find", ".", "-printf", "%s\\n").splitlines()
        assert len(lines) == 1 + DIRECTORIES + EVERY
        new = mounted.new_messages()
        assert new.pop("STATFS", 0) <= 1  # find's own, about the filesystem
        return new

    first = find()
    assert first.pop("OPENDIR") == 1
    assert first.pop("GETATTR", 0) <= 1  # the root's
    listings = first.pop("READDIRPLUS")
    assert listings <= (1 + DIRECTORIES) * listing_messages()
    assert first == {}
    second = find()
    assert second.pop("GETATTR", 0) <= 1 + DIRECTORIES
    assert second == {}
    assert find() == {}


def test_reading_everything(mounted: Mount) -> None:
    mounted.run("ls", "-R")
    mounted.new_messages()
    mounted.python(READ_ALL)
    first = mounted.new_messages()
    assert first.pop("GETATTR", 0) <= 1  # the root's, for its listing
    assert first.pop("OPEN") == 1
    assert first.pop("FLUSH") == 1
    assert first == {"READ": EVERY}
    mounted.python(READ_ALL)
    assert without_reclaimed(mounted.new_messages()) == {}
    mounted.run("find", ".", "-printf", "%s\\n")
    again = mounted.new_messages()
    assert again.pop("STATFS", 0) <= 1
    assert again.pop("GETATTR") <= EVERY + DIRECTORIES + 1
    assert again == {}
    mounted.run("find", ".", "-printf", "%s\\n")
    mounted.python(READ_ALL)
    last = without_reclaimed(mounted.new_messages())
    assert last.pop("STATFS", 0) <= 1
    assert last == {}


def without_reclaimed(messages: dict[str, int]) -> dict[str, int]:
    """A machine may take back pages of its cache at any time, a few here and there: those are read again."""
    assert messages.pop("READ", 0) <= EVERY // 100
    return messages


@pytest.mark.parametrize("watch", [False, True])
def test_creating(layers: list[Path], mount: Callable[..., Mount], watch: bool) -> None:
    """Watching the branches sees all of this happen, and knows who did it."""
    mounted = mount(*layers, watch=watch)
    mounted.run("stat", ".")
    mounted.new_messages()
    mounted.python(CREATE)
    new = mounted.new_messages()
    for once in ("CREATE", "OPEN", "FLUSH", "MKDIR"):
        assert new.pop(once) == 1
    assert new.pop("LOOKUP") == 5001
    assert new.pop("MKNOD") == 5000
    assert new.pop("WRITE") == 5000
    # The directory's attributes, which making an entry has changed, to see whether the next one may be made.
    assert new.pop("GETATTR") <= 5001
    # Whether there are file capabilities for the first write to clear.
    assert new.pop("GETXATTR") == 5000
    assert new == {}
    mounted.python("import os\nassert len(os.listdir('new')) == 5000")
    mounted.python(CHANGE)
    assert mounted.ask("sent") == "0\n"


def test_lookups_of_missing_names(mounted: Mount) -> None:
    mounted.run("stat", ".", "d1")
    mounted.new_messages()
    mounted.python(MISSING)
    assert mounted.new_messages() == {"LOOKUP": 1000}
    mounted.python(MISSING)
    assert mounted.new_messages() == {}


def test_warm_files_take_no_message(mounted: Mount) -> None:
    """open, fstat, read, seek, close of what was read before. isatty() asks, which `open` calls before Python 3.14."""
    code = (
        "import os\nfd = os.open('d1/f1', os.O_RDONLY)\nos.fstat(fd)\nos.read(fd, 9)\nos.lseek(fd, 0, 0)\nos.close(fd)"
    )
    mounted.python(code)
    mounted.python(code)
    mounted.new_messages()
    mounted.python(code)
    assert mounted.new_messages() == {}
    mounted.python("import os\nos.isatty(os.open('d1/f1', os.O_RDONLY))")
    assert mounted.new_messages() == {"IOCTL": 1}


def test_symlinks_are_remembered(mounted: Mount) -> None:
    mounted.python("import os\nos.symlink('d1', 'link')")
    mounted.new_messages()
    mounted.python("import os\nos.stat('link/f1')")
    assert mounted.new_messages()["READLINK"] == 1
    mounted.python("import os\nos.stat('link/f1')")
    assert mounted.new_messages() == {}


def test_birth_times_are_asked_once(mounted: Mount) -> None:
    """stat(1) asks for them, and they are remembered with the rest."""
    mounted.run("stat", "d1/f1")
    mounted.new_messages()
    mounted.run("stat", "d1/f1")
    assert mounted.new_messages() == {}


def test_birth_times_are_the_branches(layers: list[Path], mounted: Mount) -> None:
    """A copied-up file was born when it was copied, as with `cp -a`. The kernel believes an old birth time until it is
    asked for something that has changed, too."""
    name = "d1/f3"  # 3 is a multiple of the number of layers: it is in the topmost one
    born = run(["stat", "-c", "%W %w %s", str(layers[0] / name)]).stdout
    assert mounted.run("stat", "-c", "%W %w %s", name) == born
    mounted.run("sh", "-c", f"echo more >> {name}")
    copied = run(["stat", "-c", "%W %w %s", str(mounted.path.parent / "upper" / name)]).stdout
    assert mounted.run("stat", "-c", "%W %w %s", name) == copied != born

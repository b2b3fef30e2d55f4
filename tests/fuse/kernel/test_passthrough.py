"""Passthrough: the kernel reads and writes the branches' files itself, and everything else is as without it.

The conformance suite and the random system calls run on such a mount, too (tests/mounted); here are the messages that
it saves, and what happens when a lower file that is open is copied up.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.kernel.engine_process import Mount, Plan, serving
from tests.mounted.libc import link_fd
from tests.support import machine
from tests.support.timing import limit

pytestmark = [
    pytest.mark.skipif(machine.lacks_passthrough() != "", reason=machine.lacks_passthrough()),
    pytest.mark.usefixtures("kept_caches"),
]

BIG = 3 << 20
"""More than the core copies up without a thread."""


@pytest.fixture
def lower(scratch: Path) -> Path:
    lower = scratch / "lower"
    lower.mkdir()
    (lower / "f").write_bytes(b"as it was")
    (lower / "g").write_bytes(b"other")
    (lower / "big").write_bytes(b"B" * BIG)
    (lower / "one").write_bytes(b"of two names")
    os.link(lower / "one", lower / "two")
    for path in lower.iterdir():
        os.utime(path, ns=(10**9, 2 * 10**9))  # an access time that relatime would move
    return lower


@pytest.fixture
def mounted(lower: Path, mount: Callable[..., Mount]) -> Mount:
    return mount(lower, passthrough=True)


def state_of(lower: Path) -> dict[str, tuple[bytes, int, int]]:
    """Content, access and modification time; the times are taken first."""
    found = {}
    for path in lower.iterdir():
        st = path.stat()
        fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
        found[path.name] = os.read(fd, 2 * BIG), st.st_atime_ns, st.st_mtime_ns
        os.close(fd)
    return found


def test_data_takes_no_messages(mounted: Mount) -> None:
    mounted.run("stat", "f")
    mounted.new_messages()
    mounted.python("import os\nfd = os.open('f', os.O_RDONLY)\nassert os.read(fd, 99) == b'as it was'\nos.close(fd)")
    messages = mounted.new_messages()
    assert messages.pop("FLUSH") == 1  # ENOSYS, once
    assert messages == {"OPEN": 1, "RELEASE": 1}
    code = (
        "import mmap, os\nfd = os.open('big', os.O_RDWR)\nfor at in range(0, 1 << 20, 4096):\n"
        "    os.pwrite(fd, b'w' * 4096, at)\n    assert os.pread(fd, 4096, at) == b'w' * 4096\n"
        "with mmap.mmap(fd, 0) as mapped:\n    mapped[:4] = b'mmap'\nassert os.pread(fd, 4, 0) == b'mmap'\nos.close(fd)"
    )
    mounted.run("stat", "big")
    mounted.new_messages()
    mounted.python(code)
    messages = mounted.new_messages()
    assert messages.keys() <= {"LOOKUP", "OPEN", "RELEASE", "GETATTR", "GETXATTR", "SETATTR"}
    assert (messages["OPEN"], messages["RELEASE"]) == (1, 1)


def test_lowers_are_never_written(lower: Path, mounted: Mount) -> None:
    before = state_of(lower)
    top = mounted.path
    for name in ("f", "big", "one"):
        assert (top / name).read_bytes() == before[name][0]
    with (top / "f").open("rb") as reader, (top / "f").open("r+b") as writer:
        writer.write(b"AS")
        writer.flush()
        assert reader.read() == b"as it was"
    (top / "big").write_bytes(b"short")
    os.truncate(top / "g", 2)
    assert state_of(lower) == before
    assert [(top / name).read_bytes() for name in ("f", "big", "g")] == [b"AS it was", b"short", b"ot"]


def test_a_descriptor_from_before_the_copy_up_keeps_the_lowers_data(mounted: Mount) -> None:
    """As on the kernel's overlay. All opens after it see the new data."""
    path = mounted.path / "f"
    early = os.open(path, os.O_RDONLY)
    ino = os.fstat(early).st_ino
    writer = os.open(path, os.O_RDWR)
    assert os.pwrite(writer, b"AS IT IS!", 0) == 9
    late = os.open(path, os.O_RDONLY)
    assert os.pread(early, 99, 0) == b"as it was"
    assert os.pread(late, 99, 0) == os.pread(writer, 99, 0) == path.read_bytes() == b"AS IT IS!"
    assert {os.fstat(fd).st_ino for fd in (early, late, writer)} == {ino} == {path.stat().st_ino}
    os.ftruncate(writer, 2)
    assert os.pread(early, 99, 0) == b"as it was"
    assert path.stat().st_size == 2
    os.close(early)
    assert path.read_bytes() == b"AS"
    os.close(late)
    os.close(writer)
    assert path.read_bytes() == b"AS"
    path.write_bytes(b"again")
    assert path.read_bytes() == b"again"


def test_changes_without_an_open_reach_later_opens(mounted: Mount) -> None:
    """truncate(2) copies up while a reader has the lower's file."""
    path = mounted.path / "g"
    with path.open("rb") as early:
        os.truncate(path, 3)
        with path.open("rb") as late:
            assert late.read() == b"oth"
        assert early.read() == b"other"
        assert path.stat().st_size == 3


def test_a_large_file_is_copied_up_behind_an_open(mounted: Mount) -> None:
    path = mounted.path / "big"
    with path.open("rb") as early, path.open("r+b") as writer:
        writer.seek(BIG)
        writer.write(b"end")
        writer.flush()
        assert path.stat().st_size == BIG + 3
        assert len(early.read()) == BIG
    with path.open("rb") as late:
        late.seek(BIG)
        assert late.read() == b"end"


def test_every_name_of_a_file_leads_to_the_copy(mounted: Mount) -> None:
    one, two = mounted.path / "one", mounted.path / "two"
    with two.open("rb") as early, one.open("rb") as other:
        two.stat()
        with one.open("r+b") as writer:
            writer.write(b"OF")
        assert early.read() == other.read() == b"of two names"
        assert one.read_bytes() == two.read_bytes() == b"OF two names"
        os.truncate(one, 2)
        assert one.stat().st_size == two.stat().st_size == 2
        assert one.stat().st_ino == two.stat().st_ino


def test_a_reopened_descriptor_of_the_lower_is_stale(mounted: Mount) -> None:
    """Without a name the kernel cannot look the file up again."""
    with (mounted.path / "f").open("rb") as early:
        os.truncate(mounted.path / "f", 1)
        with pytest.raises(OSError) as caught:
            os.close(os.open(f"/proc/self/fd/{early.fileno()}", os.O_RDONLY))
        assert caught.value.errno == errno.ESTALE
    assert (mounted.path / "f").read_bytes() == b"a"


AT_ONCE = """
import os, sys
role = sys.argv[1]
early = {}
for turn in range(3):
    for number in range(60):
        name = f"many/f{number}"
        if role == "write":
            with open(name, "ab") as file:
                file.write(b"more")
        else:
            fd = os.open(name, os.O_RDONLY)
            seen = os.pread(fd, 99, 0)
            assert seen in [b"lower" + b"more" * count for count in range(7)], seen
            if role == "hold":
                early[fd] = seen
            else:
                os.close(fd)
for fd, seen in early.items():
    assert os.pread(fd, 99, 0).startswith(seen)
"""


def test_files_that_are_opened_and_copied_up_at_once(lower: Path, mount: Callable[..., Mount]) -> None:
    """No open fails, nothing that was written is lost, and all see the same in the end."""
    (lower / "many").mkdir()
    for number in range(60):
        (lower / f"many/f{number}").write_bytes(b"lower")
    mounted = mount(lower, passthrough=True)
    roles = ("hold", "write", "read", "hold", "write", "read")
    running = [subprocess.Popen([sys.executable, "-c", AT_ONCE, role], cwd=mounted.path) for role in roles]
    assert [child.wait(limit(60)) for child in running] == [0] * len(roles)
    for number in range(60):
        path = mounted.path / f"many/f{number}"
        assert path.read_bytes() == b"lower" + b"more" * 6
        assert path.stat().st_size == 29
    assert mounted.new_messages().get("READ", 0) == 0


def test_truncating_opens_copy_nothing(mounted: Mount) -> None:
    mounted.run("stat", "big")
    mounted.new_messages()
    mounted.python("import os\nos.close(os.open('big', os.O_WRONLY | os.O_TRUNC))")
    messages = mounted.new_messages()
    assert messages.pop("FLUSH") == 1
    assert messages.pop("GETXATTR") == 1  # whether there are file capabilities to clear
    assert messages == {"OPEN": 1, "RELEASE": 1}
    assert (mounted.path / "big").stat().st_size == 0
    assert (mounted.path.parent / "upper/big").stat().st_blocks == 0


def test_mapped_writes_move_the_time(mounted: Mount) -> None:
    path = mounted.path / "f"
    before = path.stat().st_mtime_ns
    code = (
        "import mmap, os\nfd = os.open('f', os.O_RDWR)\nmapped = mmap.mmap(fd, 0)\nmapped[0:1] = b'A'\n"
        "mapped.flush()\nprint(os.fstat(fd).st_mtime_ns)"
    )
    assert int(mounted.python(code)) > before
    assert path.stat().st_mtime_ns > before
    assert path.read_bytes() == b"As it was"


def test_appending_and_offsets(mounted: Mount) -> None:
    path = mounted.path / "f"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b" 1")
    with path.open("ab") as other:
        other.write(b" 2")
    os.write(fd, b" 3")
    assert os.lseek(fd, 0, os.SEEK_CUR) == os.fstat(fd).st_size == 15
    os.close(fd)
    assert path.read_bytes() == b"as it was 1 2 3"


def test_copies_space_and_syncs_of_open_files(mounted: Mount) -> None:
    source, target = os.open(mounted.path / "big", os.O_RDONLY), os.open(mounted.path / "f", os.O_RDWR)
    assert os.copy_file_range(source, target, 5, 0, 2) == 5
    assert os.pread(target, 99, 0) == b"asBBBBBas"
    os.posix_fallocate(target, 0, 100)
    assert os.fstat(target).st_size == 100
    os.fsync(target)
    os.fdatasync(target)
    os.ftruncate(target, 4)
    assert os.pread(target, 99, 0) == b"asBB"
    os.close(source)
    os.close(target)


def test_without_a_name(mounted: Mount) -> None:
    """Renamed, removed and unnamed while open."""
    path, renamed = mounted.path / "f", mounted.path / "renamed"
    reader = os.open(path, os.O_RDONLY)
    path.rename(renamed)
    writer = os.open(renamed, os.O_RDWR)
    os.pwrite(writer, b"!", 0)
    renamed.unlink()
    os.pwrite(writer, b"?", 1)
    assert os.pread(writer, 99, 0) == b"!? it was"
    assert os.pread(reader, 99, 0) == b"as it was"
    assert os.fstat(writer).st_nlink == 0
    os.close(reader)
    os.close(writer)
    unnamed = os.open(mounted.path, os.O_TMPFILE | os.O_RDWR)
    os.write(unnamed, b"no name")
    mounted.new_messages()
    assert os.pread(unnamed, 99, 0) == b"no name"
    assert "READ" not in mounted.new_messages()
    link_fd(unnamed, str(mounted.path / "named"))
    os.close(unnamed)
    assert (mounted.path / "named").read_bytes() == b"no name"


def test_programs_run_and_cannot_be_written_meanwhile(lower: Path, mount: Callable[..., Mount]) -> None:
    program = lower / "sleep"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    mounted = mount(lower, passthrough=True)
    with subprocess.Popen([mounted.path / "sleep", "60"]) as child:
        with pytest.raises(OSError) as caught:
            os.open(mounted.path / "sleep", os.O_WRONLY)
        assert caught.value.errno == errno.ETXTBSY
        child.kill()


def test_pages_are_shared_with_the_lower(lower: Path, mounted: Mount) -> None:
    """The mount has no pages of its own: mincore(2) is answered by those of the lower's file, which are dropped."""
    (mounted.path / "big").read_bytes()
    mounted.run("stat", "big")
    mounted.new_messages()
    fd = os.open(lower / "big", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    assert (mounted.path / "big").read_bytes() == b"B" * BIG
    assert "READ" not in mounted.new_messages()


def test_a_branch_on_a_stacked_filesystem_is_read_by_messages(lower: Path, scratch: Path) -> None:
    for name in ("o-upper", "o-work", "o-merged", "upper", "work", "mnt"):
        (scratch / name).mkdir()
    merged, upper, work, mnt = (str(scratch / name) for name in ("o-merged", "upper", "work", "mnt"))
    options = f"lowerdir={lower},upperdir={scratch / 'o-upper'},workdir={scratch / 'o-work'}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
    try:
        with (
            pytest.raises(AssertionError, match="files are opened without passthrough"),  # said once, in the log
            serving(Plan(mnt, [merged], upper, work, passthrough=True)) as mounted,
        ):
            _use_stacked(mounted)
    finally:
        subprocess.run(["umount", "-l", merged], check=True)


def _use_stacked(mounted: Mount) -> None:
    path = mounted.path / "f"
    with path.open("rb") as early, path.open("r+b") as writer:
        writer.write(b"AS")
        writer.flush()
        assert early.read() == path.read_bytes() == b"AS it was"
    assert mounted.new_messages()["READ"] >= 1
    path.write_bytes(b"anew")  # the copy is on a filesystem that is not stacked
    assert path.read_bytes() == b"anew"

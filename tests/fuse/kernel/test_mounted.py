"""Properties that need a mount: which requests wait for which, interrupts, coherence of descriptors, the end of the
mount."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.core.trees import tree
from tests.fuse.kernel.engine_process import Mount
from tests.support import process
from tests.support.timing import limit, wait_until

BIG = 3 << 20
"""More than is copied up within a request."""

APPEND = "import os\nfd = os.open('big', os.O_WRONLY | os.O_APPEND)\nos.write(fd, b'appended')\nos.close(fd)\n"


@pytest.fixture
def lower(scratch: Path) -> Path:
    """A layer with a file that takes long to copy up."""
    layer = tree(scratch / "lower", "f=hello d/a=1 other=2")
    (layer / "big").write_bytes(b"B" * BIG)
    return layer


def start(mount: Mount, code: str) -> subprocess.Popen[str]:
    """A program on the mount that may have to wait."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code],
        cwd=mount.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(mount: Mount, name: str, count: int) -> None:
    """Until so many messages of a kind have come (since the mount was made)."""

    def has_come() -> bool:
        mount.new_messages()
        return mount._before.get(name, 0) >= count

    wait_until(has_come, f"{count} of {name}")


def test_a_copy_up_does_not_delay_other_requests(lower: Path, scratch: Path, mount: Callable[..., Mount]) -> None:
    """While the bytes of one file are copied, others are listed, read, written; and so is that file read."""
    union = mount(lower, slow=True)
    writer = start(union, APPEND)
    try:
        wait_for(union, "WRITE", 1)
        union.python(
            "import os\n"
            "assert sorted(os.listdir('.')) == ['big', 'd', 'f', 'other']\n"
            "assert open('f').read() == 'hello'\n"
            "open('f', 'a').write(' world')\n"
            "assert open('f').read() == 'hello world'\n"
            "os.mkdir('d/new')\n"
            "assert os.stat('d/a').st_size == 1\n"
        )
        assert writer.poll() is None
        assert not (scratch / "upper" / "big").exists()
        union.ask("go")
        assert writer.wait(timeout=limit(60)) == 0
    finally:
        process.kill_group(writer)
        writer.communicate()
    assert (scratch / "upper" / "big").read_bytes() == b"B" * BIG + b"appended"


def test_an_interrupted_copy_up_stops_and_leaves_nothing(
    lower: Path, scratch: Path, mount: Callable[..., Mount]
) -> None:
    union = mount(lower, slow=True)
    writer = start(union, APPEND)
    try:
        wait_for(union, "WRITE", 1)
        assert list(filter(Path.is_file, (scratch / "work").rglob("*")))
        writer.send_signal(signal.SIGINT)
        _, complaint = writer.communicate(timeout=limit(60))
        assert "KeyboardInterrupt" in complaint
    finally:
        process.kill_group(writer)
        writer.communicate()
    assert not (scratch / "upper" / "big").exists()
    assert union.new_messages()["INTERRUPT"] == 1
    union.ask("go")
    union.python(APPEND)
    assert (scratch / "upper" / "big").stat().st_size == BIG + 8


def test_the_next_one_in_line(lower: Path, scratch: Path, mount: Callable[..., Mount]) -> None:
    """The kernel lets one at a time change a file: when the first is killed, the second begins a copy-up of its own."""
    union = mount(lower, slow=True)
    first, second = start(union, APPEND), None
    try:
        wait_for(union, "WRITE", 1)
        second = start(union, "import os\nos.chmod('big', 0o600)\nos.truncate('big', 7)\n")
        first.kill()
        wait_for(union, "SETATTR", 1)
        assert second.poll() is None
        union.ask("go")
        assert second.wait(timeout=limit(60)) == 0
        # Not waited for before "go": closing its file may take the inode's lock (fuse_flush), which the second holds.
        assert first.wait(timeout=limit(60)) == -signal.SIGKILL
    finally:
        for writer in filter(None, (first, second)):
            process.kill_group(writer)
            writer.communicate()
    assert (scratch / "upper" / "big").stat().st_size == 7
    assert (scratch / "upper" / "big").stat().st_mode & 0o777 == 0o600


def test_unmounting_while_a_copy_up_waits(lower: Path, scratch: Path, mount: Callable[..., Mount]) -> None:
    """The mount is taken away under the writer: the daemon ends, and tidies up."""
    if os.geteuid() != 0:
        pytest.skip("needs root: umount --force")
    union = mount(lower, slow=True)
    writer = start(union, APPEND)
    try:
        wait_for(union, "WRITE", 1)
        process.run(["umount", "--force", "--lazy", str(union.path)])
        assert writer.wait(timeout=limit(60)) == 1
        _, complaint = writer.communicate()
        assert "Error" in complaint
    finally:
        process.kill_group(writer)
        writer.communicate()
    assert not (scratch / "upper" / "big").exists()


def test_descriptors_opened_before_and_after_copy_up_agree(lower: Path, mount: Callable[..., Mount]) -> None:
    union = mount(lower)
    union.python(
        "import mmap, os\n"
        "before = os.open('f', os.O_RDONLY)\n"
        "seen = mmap.mmap(before, 5, prot=mmap.PROT_READ)\n"
        "assert seen[:] == b'hello'\n"
        "after = os.open('f', os.O_RDWR)\n"
        "os.write(after, b'HE')\n"
        "assert os.pread(before, 9, 0) == b'HEllo'\n"
        "assert seen[:] == b'HEllo'\n"
        "os.unlink('f')\n"
        "os.write(after, b'LLO, and more')\n"
        "assert os.pread(before, 99, 0) == b'HELLO, and more'\n"
        "assert os.fstat(before).st_nlink == 0\n"
        "os.rename('other', 'f')\n"
        "assert os.pread(before, 5, 0) == b'HELLO'\n"
        "assert open('f').read() == '2'\n"
    )


def test_a_write_clears_set_id_bits_also_in_cached_attributes(scratch: Path, mount: Callable[..., Mount]) -> None:
    """A write by somebody without CAP_FSETID clears them, and an exec right afterwards must know."""
    if os.geteuid() != 0:
        pytest.skip("needs root: another user writes")
    layer = tree(scratch / "lower", "s=x:6777,1,1")
    union = mount(layer)
    union.python(
        "import os\n"
        "assert os.stat('s').st_mode & 0o7777 == 0o6777\n"
        "fd = os.open('s', os.O_WRONLY)\n"
        "os.setgid(2), os.setuid(2)\n"
        "os.write(fd, b'y')\n"
        "assert os.stat('s').st_mode & 0o7777 == 0o777\n"
    )


def test_terminal_questions_are_answered_with_no(lower: Path, mount: Callable[..., Mount]) -> None:
    union = mount(lower)
    union.python("import os\nassert not os.isatty(os.open('f', 0))")
    union.python(
        "import errno, fcntl\n"
        "try:\n    fcntl.ioctl(open('f'), 0x80086699, bytes(8))\n"
        "except OSError as exc:\n    assert exc.errno == errno.ENOTTY\n"
        "else:\n    raise AssertionError\n"
    )


def test_flags_of_files_and_directories(lower: Path, scratch: Path, mount: Callable[..., Mount]) -> None:
    """lsattr(1) and chattr(1), compared with what they do to the branch."""
    if subprocess.run(["lsattr", "-d", lower], capture_output=True, check=False).returncode != 0:
        pytest.skip("the filesystem of the branches keeps no flags")
    union = mount(lower)
    before = flags_of(lower / "f")
    for name in ("f", "d"):
        assert flags_of(union.path / name) == flags_of(lower / name)
        subprocess.run(["chattr", "+d", union.path / name], check=True)
        assert "d" in flags_of(union.path / name)
        assert "d" in flags_of(scratch / "upper" / name)
    assert flags_of(lower / "f") == before


def flags_of(path: Path) -> str:
    return subprocess.run(["lsattr", "-d", path], capture_output=True, text=True, check=True).stdout.split()[0]


def test_names_that_are_too_long(lower: Path, mount: Callable[..., Mount]) -> None:
    union = mount(lower)
    union.python(
        "import errno, os\n"
        "os.mkdir('n' * 255)\n"
        "for act in os.stat, os.mkdir, os.unlink, lambda n: os.rename('f', n), lambda n: os.symlink('x', n), "
        "lambda n: os.link('f', n):\n"
        "    try:\n        act('n' * 256)\n"
        "    except OSError as exc:\n        assert exc.errno == errno.ENAMETOOLONG, exc\n"
        "    else:\n        raise AssertionError(act)\n"
        "assert os.pathconf('.', 'PC_NAME_MAX') == 255\n"
    )


def test_cold_files_come_from_threads(lower: Path, mount: Callable[..., Mount]) -> None:
    """Reads that miss the page cache of the branch, many at once."""
    for number in range(40):
        (lower / f"cold{number}").write_bytes(bytes([number]) * 300_000)
    fd = os.open(lower, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    os.sync()
    for path in lower.glob("cold*"):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    union = mount(lower)
    union.python(
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def check(n):\n    assert open(f'cold{n}', 'rb').read() == bytes([n]) * 300_000\n"
        "list(ThreadPoolExecutor(8).map(check, range(40)))\n"
    )


_DIRECT_WRITES = r"""
import ctypes, mmap, os, platform, struct, threading
SETUP, GETEVENTS, SUBMIT = (206, 208, 209) if platform.machine() == 'x86_64' else (0, 4, 2)
libc = ctypes.CDLL(None, use_errno=True)
SIZE = 65536
context = ctypes.c_ulong()
assert libc.syscall(SETUP, 1, ctypes.byref(context)) == 0
open('shared', 'wb').write(bytes(SIZE))
direct, cached = os.open('shared', os.O_RDWR | os.O_DIRECT), os.open('shared', os.O_RDONLY)
memory = mmap.mmap(-1, SIZE)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
is_over = False

def read():
    while not is_over:
        os.pread(cached, SIZE, 0)

readers = [threading.Thread(target=read) for _ in range(2)]
for reader in readers:
    reader.start()
stale = 0
for turn in range(300):
    memory[:] = bytes([turn & 255]) * SIZE
    block = ctypes.create_string_buffer(struct.pack('=QIiHhIQQqQII', 0, 0, 0, 1, 0, direct, address, SIZE, 0, 0, 0, 0))
    blocks = (ctypes.c_void_p * 1)(ctypes.addressof(block))
    assert libc.syscall(SUBMIT, context, ctypes.c_long(1), blocks) == 1
    event = (ctypes.c_int64 * 4)()
    assert libc.syscall(GETEVENTS, context, ctypes.c_long(1), ctypes.c_long(1), event, None) == 1
    assert event[2] == SIZE, event[2]
    stale += os.pread(cached, SIZE, 0) != memory[:]
is_over = True
for reader in readers:
    reader.join()
print(stale)
"""


def test_what_is_read_beside_an_asynchronous_direct_write_is_not_stale(
    lower: Path, mount: Callable[..., Mount]
) -> None:
    """io_submit(2): once the write has ended, read(2) shows it, although others read the file all the time."""
    assert mount(lower).python(_DIRECT_WRITES) == "0\n"

"""All bytes are written to any descriptor: short writes, non-blocking pipes, readers that stop or close."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from unionfs.write_all import Outlet, write_all

_DATA = os.urandom(1 << 18)  # four times what a pipe holds


def _read_later(fd: int, found: list[bytes], count: int = -1) -> threading.Thread:
    """Read `fd` in another thread, to its end or `count` bytes, beginning when the pipe is full."""

    def read() -> None:
        with open(fd, "rb") as file:
            found.append(file.read(count))

    return threading.Thread(target=read)


@pytest.mark.parametrize("blocking", [True, False])
def test_everything_is_written(blocking: bool) -> None:
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, blocking)
    found: list[bytes] = []
    reader = _read_later(read_fd, found)
    reader.start()
    write_all(write_fd, _DATA)
    os.close(write_fd)
    reader.join()
    assert found == [_DATA]


@pytest.mark.parametrize("blocking", [True, False])
def test_an_outlet_does_not_wait(blocking: bool) -> None:
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, blocking)
    outlet = Outlet(write_fd)
    outlet.send(_DATA)  # nobody reads: this returns all the same
    assert outlet.is_behind()
    outlet.go_on()
    assert outlet.is_behind()
    found: list[bytes] = []
    reader = _read_later(read_fd, found)
    reader.start()
    outlet.finish()
    assert not outlet.is_behind()
    os.close(write_fd)
    reader.join()
    assert found == [_DATA]


def test_an_outlet_reports_a_closed_reader() -> None:
    read_fd, write_fd = os.pipe()
    outlet = Outlet(write_fd)
    outlet.send(_DATA)
    os.close(read_fd)
    with pytest.raises(BrokenPipeError):
        outlet.go_on()
    os.close(write_fd)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_standard_output(unbuffered: str) -> None:
    """A non-blocking pipe, and a reader that begins when it is full."""
    script = (
        "import sys; from unionfs.write_all import replace_standard_streams; replace_standard_streams()\n"
        "sys.stdout.buffer.write(b'x' * 1_000_000); print('e' * 1_000_000); sys.stderr.write('é' * 100_000)"
    )
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONIOENCODING": "utf-8"}
    program = subprocess.Popen([sys.executable, "-c", script], stdout=write_fd, stderr=write_fd, env=env)
    os.close(write_fd)
    with open(read_fd, "rb") as file:
        assert len(file.read()) == 2_000_001 + 200_000
    assert program.wait() == 0

"""`layers explore` in a real terminal, which tmux is: keys, Ctrl-C, Ctrl-Z, a resize, and how the terminal is left."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.layers import images, trees
from tests.layers.explore.building import Member
from tests.support.timing import limit

if shutil.which("tmux") is None:
    pytest.skip("tmux is not installed", allow_module_level=True)

BASE: tuple[Member, ...] = (("etc/passwd", {}, b"root"), ("old/big", {}, b"z" * 9000))
TOP: tuple[Member, ...] = (("etc/passwd", {}, b"toor"), (".wh.old", {}, b""), ("bad\x1b[31m", {}, b"!"))
WAIT_S = 30.0


class Terminal:
    """A tmux server of its own with one window, in which a shell runs."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._socket = directory / "tmux"
        self._tmux("new-session", "-d", "-x", "110", "-y", "30", *(f"-e{name}={value}" for name, value in
                   environment.items()), "env PS1='ready> ' sh")  # fmt: skip
        self.wait_for("ready>")

    def _tmux(self, *words: str) -> str:
        command = ["tmux", "-f", os.devnull, "-S", os.fspath(self._socket), *words]
        clean = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ} | {"LANG": "C.UTF-8"}
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=limit(20), env=clean)
        return done.stdout

    def type(self, *keys: str) -> None:
        self._tmux("send-keys", *keys)

    def resize(self, width: int, height: int) -> None:
        self._tmux("resize-window", "-x", str(width), "-y", str(height))

    def screen(self) -> str:
        return self._tmux("capture-pane", "-p")

    def wait_for(self, pattern: str) -> str:
        """The screen as soon as it has a match of `pattern`."""
        deadline = time.monotonic() + limit(WAIT_S)
        while not re.search(pattern, text := self.screen(), re.MULTILINE):
            assert time.monotonic() < deadline, f"no {pattern!r} on the screen:\n{text}"
            time.sleep(0.05)
        return text

    def is_right(self) -> None:
        """Fail unless the terminal is as a shell needs it: echo, line by line, no mouse, the ordinary screen."""
        state = self._tmux("display-message", "-p", "#{alternate_on} #{mouse_any_flag} #{cursor_flag}").split()
        assert state == ["0", "0", "1"]
        self.type("C-u", "stty -a | tr ';' '\\n' | grep -cE '(^| )(icanon|echo|isig)( |$)'", "Enter")
        self.wait_for(r"^[1-3]$")

    def pid_of(self, program: str) -> int:
        """The process id of a program on the terminal."""
        tty = self._tmux("display-message", "-p", "#{pane_tty}").strip()
        listed = subprocess.run(
            ["ps", "-t", tty.removeprefix("/dev/"), "-o", "pid=,args="], check=True, capture_output=True, text=True
        )
        (found,) = (line.split()[0] for line in listed.stdout.splitlines() if line.split()[1] == program)
        return int(found)

    def close(self) -> None:
        self._tmux("kill-server")


@pytest.fixture
def terminal(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    root = scratch / "store"
    images.layout(root / "images", [trees.tar_of(list(one)) for one in (BASE, TOP)], name="docker.io/library/app:1")
    made = Terminal(scratch, {"UNIONFS_ROOT": os.fspath(root)})
    yield made
    made.close()


def start(terminal: Terminal, environment: str = "") -> str:
    command = f"{sys.executable} -c 'import sys; from unionfs.cli.layers import main; sys.exit(main())' explore app:1"
    terminal.type(f"clear; {environment} {command}; echo ended $?", "Enter")
    return terminal.wait_for("/passwd|etc/") if not environment else ""


def test_keys_ctrl_z_resize_and_ctrl_c_leave_the_terminal_right(terminal: Terminal) -> None:
    text = start(terminal)
    assert "old/" in text
    assert r"bad\x1b[31m" in text
    terminal.type("/passwd", "Enter")  # at once: the dialog gets what is typed before it is drawn
    terminal.wait_for("hidden: layer 1 replaces it")
    terminal.resize(70, 20)
    terminal.wait_for("^╭.{68}╮$")
    terminal.resize(40, 8)
    terminal.wait_for("too small")
    terminal.resize(110, 30)
    terminal.wait_for("hidden: layer 1 replaces it")
    terminal.type("C-z")
    terminal.wait_for("ready> *$")
    terminal.is_right()
    terminal.type("clear; fg; echo ended $?", "Enter")
    terminal.wait_for("hidden: layer 1 replaces it")
    terminal.type("/")
    terminal.wait_for("find a name")
    terminal.type("C-c")
    terminal.wait_for("^ended 0")
    terminal.is_right()


def test_sigterm_leaves_the_terminal_right(terminal: Terminal) -> None:
    start(terminal)
    os.kill(terminal.pid_of(sys.executable), signal.SIGTERM)
    terminal.wait_for("^ended 143")
    terminal.is_right()


def test_a_shell_sees_the_merged_view_and_changes_nothing(terminal: Terminal, fuse_device: Path) -> None:
    del fuse_device
    start(terminal)
    terminal.type("s")
    terminal.wait_for("a read-only view of docker.io/library/app:1, layers 0 to 1")
    terminal.type("cat etc/passwd; touch new; ls; exit", "Enter")
    terminal.wait_for("▸ old/")
    terminal.type("q")
    text = terminal.wait_for("^ended 0")
    assert "toor" in text
    assert "Read-only file system" in text
    assert "old" not in text.partition("Read-only file system")[2]
    terminal.is_right()


def test_without_colours_the_letters_tell(terminal: Terminal) -> None:
    start(terminal, "NO_COLOR=1")
    text = terminal.wait_for(r"-\s+9.0 kB ▸ old/")
    assert re.search(r"\.\s+4 B ▸ etc/", text)
    terminal.type("q")
    terminal.wait_for("^ended 0")
    terminal.is_right()


def test_a_dumb_terminal_gets_words(terminal: Terminal) -> None:
    start(terminal, "TERM=dumb")
    text = terminal.wait_for("^ended 0")
    assert "wasted, removed later: 9.0 kB in 1 files" in text
    assert "/old/big  in layer 0: removed by layer 1" in text

"""`unionfs run -it` at a real terminal: size, keys, job control, and our own terminal afterwards."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.launcher.terminals import Terminal, terminal
from tests.support.users import User
from unionfs.fuse.options import DEFAULT_TRANSPORT

pytestmark = pytest.mark.transport(DEFAULT_TRANSPORT)

_SLEEPER = (
    "import os, signal; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    'signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCONT}); os.write(1, b"go\\n"); '
    'signal.sigwait({signal.SIGCONT}); os.write(1, b"awake\\n"); signal.pause()'
)
"""Says when it runs, and when it runs again."""

AtTerminal = Callable[..., AbstractContextManager[Terminal]]


@pytest.fixture
def at_terminal(user: User, debian: Path, tidy: None) -> AtTerminal:
    """`with at_terminal(COMMAND, ...) as user_side`: `unionfs run --rm -it` on the Debian; `flags` instead of -it."""

    @contextmanager
    def run(*command: str, flags: str = "-it") -> Iterator[Terminal]:
        argv = [*user.unionfs_cmd, "run", "--rm", flags, os.fspath(debian), *command]
        with terminal(user, argv, rows=33, columns=99) as user_side:
            yield user_side

    return run


def test_a_shell(at_terminal: AtTerminal) -> None:
    with at_terminal("bash", "--norc") as user_side:
        before = user_side.settings()
        user_side.expect("# ")
        assert user_side.settings() != before, "our terminal should be raw"
        user_side.type("tty; stty size; echo $TERM\n")
        user_side.expect(r"/dev/pts/0\s+33 99\s+xterm\s")
        user_side.type("test -t 0 -a -t 1 -a -t 2 && ls -l /dev/console; ps 2>/dev/null; echo text > /dev/tty\n")
        user_side.expect(r"root +tty +136, +0 .*/dev/console")
        user_side.expect(r"text\s")
        user_side.type("exit 42\n")
        assert user_side.end() == 42
        assert user_side.settings() == before
        assert "job control" not in user_side.screen


def test_keys_and_jobs(at_terminal: AtTerminal) -> None:
    with at_terminal("bash", "--norc") as user_side:
        user_side.expect("# ")
        user_side.type("sh -c 'echo begin; exec sleep 1000'\n")
        user_side.expect(r"begin\s+$")
        user_side.type("\x03")
        user_side.expect(r"\^C[\s\S]*# ")
        # A shell would not do: stopped within a vfork(2), it is not stopped at all.
        user_side.type(f"echo $?; python3 -c '{_SLEEPER}'\n")
        user_side.expect(r"130\s+go\s")
        user_side.type("\x1a")
        user_side.expect(r"Stopped +python3 -c [\s\S]*# ")
        user_side.type("fg\n")
        user_side.expect(r"\sawake\s")
        user_side.type("\x03")
        user_side.expect("# ")
        user_side.type("sleep 1001 & jobs\n")
        user_side.expect(r"Running +sleep 1001 &[\s\S]*# ")
        user_side.type("sh -c 'echo reading; exec cat'\n")
        user_side.expect(r"reading\s+$")
        user_side.type("some words\n")
        user_side.expect(r"some words\s+some words\s")
        user_side.type("\x04")
        user_side.expect("# ")
        user_side.type("\x04")
        assert user_side.end() == 0


def test_the_window_changes_its_size(at_terminal: AtTerminal) -> None:
    script = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
print(os.get_terminal_size(), flush=True)
for _ in range(2):
    signal.sigwait({signal.SIGWINCH})
    print(os.get_terminal_size(), flush=True)"""
    with at_terminal("python3", "-c", script) as user_side:
        user_side.expect(r"columns=99, lines=33\)")
        user_side.resize(20, 50)
        user_side.expect(r"columns=50, lines=20\)")
        user_side.resize(100, 200)
        user_side.expect(r"columns=200, lines=100\)")
        assert user_side.end() == 0


@pytest.mark.parametrize(
    ("command", "status"),
    [(("false",), 1), (("sh", "-c", "kill -KILL $$"), 137), (("nosuch",), 127), (("/etc",), 126)],
)
def test_exit_codes_and_settings(at_terminal: AtTerminal, command: tuple[str, ...], status: int) -> None:
    with at_terminal(*command) as user_side:
        before = user_side.settings()
        assert user_side.end() == status
        assert user_side.settings() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_reaches_the_command_and_the_terminal_is_given_back(at_terminal: AtTerminal, number: int) -> None:
    with at_terminal("sh", "-c", "echo ready; exec sleep 1000") as user_side:
        before = user_side.settings()
        user_side.expect("ready")
        user_side.child.send_signal(number)
        assert user_side.end() == 128 + number
        assert user_side.settings() == before


def test_stopped_from_outside_and_continued(at_terminal: AtTerminal) -> None:
    with at_terminal("bash", "--norc") as user_side:
        before = user_side.settings()
        user_side.expect("# ")
        raw = user_side.settings()
        user_side.child.send_signal(signal.SIGTSTP)
        _, status = os.waitpid(user_side.child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert user_side.settings() == before
        user_side.resize(11, 22)
        user_side.child.send_signal(signal.SIGCONT)
        user_side.type("stty size; exit\n")
        user_side.expect(r"11 22\s")
        assert user_side.end() == 0
        assert user_side.settings() == before != raw


def test_more_data_than_buffers_hold_passes_both_ways(at_terminal: AtTerminal) -> None:
    # The command does not read while it writes, and we must not wait for it to read.
    script = "stty raw -echo; echo ready; head -c 300000 /dev/zero | tr '\\0' x; head -c 100000 | wc -c; echo over"
    with at_terminal("sh", "-c", script) as user_side:
        user_side.expect("ready")
        writer = os.fork()
        if writer == 0:
            try:
                user_side.type("y" * 100_000)
            finally:
                os._exit(0)
        assert user_side.end() == 0
        assert user_side.screen.count("x") == 300_000
        assert user_side.screen.strip("x\r\n").endswith("100000\nover")
        os.waitpid(writer, 0)


def test_the_last_words_are_shown(at_terminal: AtTerminal) -> None:
    with at_terminal("seq", "1", "30000") as user_side:
        assert user_side.end() == 0
        shown = user_side.screen.split()
        assert (len(shown), shown[-1]) == (30000, "30000")


def test_a_terminal_without_input(at_terminal: AtTerminal) -> None:
    with at_terminal("sh", "-c", "tty; exec sleep 1000", flags="-t") as user_side:
        before = user_side.settings()
        user_side.expect("/dev/pts/0")
        assert user_side.settings() == before, "nobody reads from our terminal: it stays as it is"
        user_side.type("\x03")
        assert user_side.end() == 130


def test_ctrl_c_without_a_terminal_of_its_own(at_terminal: AtTerminal) -> None:
    # A shell that waits for its foreground job ends only if the job gets the signal as well. The job says itself when
    # it is ready: what a shell is told while it starts one is lost on the job.
    job = "import signal; signal.signal(2, signal.SIG_DFL); print('ready', flush=True); signal.pause()"
    with at_terminal("sh", "-c", f'/usr/bin/python3 -c "{job}"; echo not reached', flags="-i") as user_side:
        user_side.expect("ready")
        user_side.type("\x03")
        assert user_side.end() == 130
        assert "not reached" not in user_side.screen


def test_input_from_a_pipe(user: User, debian: Path, tidy: None) -> None:
    script = "echo 'echo $((6 * 7)); tty; exit 9' | \"$@\""
    command = [*user.unionfs_cmd, "run", "--rm", "-it", os.fspath(debian), "sh"]
    ended = user.run(["sh", "-c", script, "sh", *command], check=False)
    assert ended.returncode == 9
    assert "42\n/dev/pts/0" in ended.stdout
    ended = user.run(["sh", "-c", "printf 'no newline' | \"$@\"", "sh", *command[:-1], "cat"])
    assert ended.stdout.count("no newline") == 2  # the echo, and cat


def test_output_without_a_reader(user: User, debian: Path, tidy: None) -> None:
    command = [*user.unionfs_cmd, "run", "--rm", "-t", os.fspath(debian), "yes"]
    assert user.run(["sh", "-c", '"$@" | head -2', "sh", *command]).stdout.split() == ["y", "y"]

"""The helpers of the tests work: users, time limits, removal of remains, and the check of the log."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support import mountinfo, process, share, turns
from tests.support import scratch as scratch_dirs
from tests.support.timing import limit
from tests.support.users import CHECKOUT, User, processes_of


def test_an_ordinary_user_has_no_privileges_and_can_run_the_command(ordinary_user: User, scratch: Path) -> None:
    assert ordinary_user.uid != 0
    status = ordinary_user.run(["cat", "/proc/self/status"]).stdout
    assert "CapEff:\t0000000000000000" in status
    secret = scratch / "secret"
    secret.touch(mode=0o600)
    secret.chmod(0o000)
    assert ordinary_user.run(["cat", secret], check=False).returncode == 1
    assert ordinary_user.unionfs("--version").stdout.startswith("unionfs ")


def test_own_changes_the_owner(user: User, scratch: Path) -> None:
    (scratch / "tree").mkdir()
    (scratch / "tree" / "link").symlink_to("/etc/passwd")
    user.own(scratch / "tree")
    assert os.lstat(scratch / "tree" / "link").st_uid == user.uid
    assert user.run(["mkdir", scratch / "tree" / "mine"]).returncode == 0
    assert os.stat("/etc/passwd").st_uid == 0


def test_a_hanging_child_is_killed_with_its_children_and_its_output_is_reported(ordinary_user: User) -> None:
    with pytest.raises(process.ChildError, match=r"did not end within \d+ s(.|\n)*before the hang"):
        ordinary_user.run(["sh", "-c", "echo before the hang; sleep 1000 & wait"], timeout_s=1)
    assert "sleep 1000" not in processes_of(ordinary_user.name).values()


def test_a_child_that_fails_is_an_error_unless_asked_otherwise(ordinary_user: User) -> None:
    with pytest.raises(process.ChildError, match="ended with 7"):
        ordinary_user.run(["sh", "-c", "exit 7"])
    assert ordinary_user.run(["sh", "-c", "exit 7"], check=False).returncode == 7


def test_output_that_is_not_utf8_is_returned_whole(ordinary_user: User) -> None:
    assert os.fsencode(ordinary_user.run(["printf", "%b", r"a\0377b"]).stdout) == b"a\xffb"


@pytest.mark.parametrize(
    ("arguments", "stdin"), [(["--version"], None), (["nosuch"], None), (["import", "-", "x"], "x")]
)
def test_a_command_server_runs_commands_as_programs_do(
    user: User, scratch: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], stdin: str | None
) -> None:
    def run() -> tuple[int, str, str]:
        done = user.run([*user.unionfs_cmd, *arguments], stdin=stdin, env=env, check=False)
        return done.returncode, done.stdout, done.stderr

    user.own(scratch)
    env = {"UNIONFS_ROOT": os.fspath(scratch / "store")}
    by_server = run()
    monkeypatch.setenv("UNIONFS_TESTS_EXECUTE", "1")
    assert by_server == run()


def test_turns_select_each_combination_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    group: list[Any] = [object() for _ in range(5)]
    taken: list[object] = []
    for number in range(5):
        monkeypatch.setattr(share, "NUMBER", number)
        dropped = turns._dropped("test", group)
        taken += [one for one in group if one not in dropped]
    assert [taken.count(one) for one in group] == [2] * 5


_IGNORING = """
import os, signal, sys
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


_SETTABLE = sum(1 << (number - 1) for number in signal.valid_signals())
"""As /proc/PID/status has them; the C library keeps 32 and 33 to itself, so they stay as they were inherited."""


def test_ignored_and_blocked_signals_are_not_inherited_by_the_tests(scratch: Path) -> None:
    """As under `nohup make test &` of a script, which ignores SIGHUP, SIGINT and SIGQUIT."""
    look = "from tests.support import dispositions, process\ndispositions.reset_ignored()\n"
    look += "print(process.run(['grep', '^Sig[BI]', '/proc/self/status']).stdout)"
    shown = process.run([sys.executable, "-c", _IGNORING, "-c", look], cwd=CHECKOUT).stdout
    blocked, ignored = (int(word, 16) & _SETTABLE for word in shown.split()[1::2])
    assert (blocked, ignored) == (0, 0)
    (scratch / "test_it.py").write_text("import os, signal\ndef test(): os.kill(os.getpid(), signal.SIGINT)\n")
    code = f"{look.rpartition('print')[0]}import pytest\npytest.main(['-c', '/dev/null', {os.fspath(scratch)!r}])"
    ended = process.run([sys.executable, "-c", _IGNORING, "-c", code], cwd=CHECKOUT, check=False)
    assert "KeyboardInterrupt" in ended.stdout


def test_limits_have_a_factor(scratch: Path) -> None:
    """Those of waits, and pytest-timeout's."""
    look = "from tests.support import timing\nprint(timing.limit(2))"
    env = {**os.environ, "UNIONFS_TEST_TIME_FACTOR": "1.5"}
    assert process.run([sys.executable, "-c", look], cwd=CHECKOUT, env=env).stdout == "3.0\n"
    shown = process.run([sys.executable, "-m", "pytest", "--collect-only", __file__], cwd=CHECKOUT, env=env).stdout
    assert "timeout: 450.0s" in shown


def test_without_mounts_nothing_can_be_mounted() -> None:
    """The guard of `make test-quick` holds for the process and its children."""
    tries = (
        "import os, subprocess\n"
        "from tests.support import without_mounts\n"
        "without_mounts.refuse_mounts()\n"
        "for argv in (['unshare', '--user', 'true'], ['unshare', '--mount', 'true'], ['true']):\n"
        "    print(subprocess.run(argv, stderr=subprocess.DEVNULL).returncode)\n"
        "try:\n"
        "    open('/dev/fuse', 'rb')\n"
        "except PermissionError as error:\n"
        "    print(error)\n"
    )
    said = process.run([sys.executable, "-c", tries], cwd=CHECKOUT).stdout.splitlines()
    assert said == ["1", "1", "0", "a test without mounts opens /dev/fuse"]


_LIMIT_AT = {"wait": 0, "settimeout": 0, "alarm": 0, "select": 3}
"""Methods of the standard library -> which positional argument is a limit."""
_TOO_SHORT_TO_MATTER_S = 1


def test_every_limit_has_the_factor() -> None:
    """No literal number and no constant limits a wait, only `timing.limit` of it (or what calls that: process.run)."""
    found = []
    for path in sorted((CHECKOUT / "tests").rglob("*.py")):
        if path == CHECKOUT / "tests/support/timing.py":
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            found += [f"{path}:{given.lineno}" for given in _limits(node) if not _has_factor(given)]
    assert found == []


def _limits(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and ast.unparse(node.left) == "time.monotonic()":
        return [node.right]
    if not isinstance(node, ast.Call):
        return []
    given = [keyword.value for keyword in node.keywords if keyword.arg == "timeout"]
    if isinstance(node.func, ast.Attribute) and node.func.attr in _LIMIT_AT:
        given += node.args[_LIMIT_AT[node.func.attr] :][:1]
    return given


def _has_factor(given: ast.expr) -> bool:
    """Names are taken to be limits already where they are not constants (CAPITALS)."""
    if isinstance(given, ast.Constant):
        return not isinstance(given.value, int | float) or given.value <= _TOO_SHORT_TO_MATTER_S
    return isinstance(given, ast.Call) or not ast.unparse(given).rpartition(".")[2].isupper()


def test_remains_of_an_aborted_run_are_removed_and_a_live_run_is_kept(root_user: User, run_dir: Path) -> None:
    dead = Path(tempfile.mkdtemp(prefix="run-", dir=scratch_dirs.base_dir()))
    (dead / "mnt").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", dead / "mnt"], check=True)
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", f"{dead}/x"])
    while f"{dead}/x".encode() not in Path(f"/proc/{left.pid}/cmdline").read_bytes():
        time.sleep(0.001)  # an exec closes what tells of it before it has its arguments
    dead.with_name(dead.name + ".lock").touch()
    swept = scratch_dirs.sweep_dead_runs()
    assert f"{dead} (1 mounts, 1 processes)" in swept
    assert left.wait(limit(30)) == -signal.SIGKILL
    assert not dead.exists()
    assert not dead.with_name(dead.name + ".lock").exists()
    assert mountinfo.mount_at(dead / "mnt") is None
    assert run_dir.is_dir()


def test_a_tree_deeper_than_a_path_may_be_long_is_removed(scratch: Path) -> None:
    top = scratch / "deep"
    top.mkdir()
    directory_fd = os.open(top, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d" * 50, dir_fd=directory_fd)
        below_fd = os.open("d" * 50, os.O_RDONLY, dir_fd=directory_fd)
        os.close(directory_fd)
        directory_fd = below_fd
    os.close(directory_fd)
    scratch_dirs.remove(top)
    assert not top.exists()


def test_mountpoints_with_odd_names_are_found(root_user: User, scratch: Path) -> None:
    odd = scratch / "a b\n\\c\udcff"
    odd.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "odd", odd], check=True)
    found = mountinfo.mount_at(odd)
    assert found is not None
    assert found.fstype == "tmpfs"
    assert mountinfo.unmount_below(scratch) == [odd]
    assert mountinfo.mount_at(odd) is None


def test_an_unexpected_warning_fails_a_test_and_an_announced_one_does_not(scratch: Path) -> None:
    (scratch / "test_it.py").write_text(
        "import logging\n"
        "def test_loud(): logging.getLogger('a').warning('nobody said so')\n"
        "def test_announced(expect_log):\n"
        "    with expect_log('said [s]o'): logging.getLogger('a').error('somebody said so')\n"
        "def test_announced_in_vain(expect_log):\n"
        "    with expect_log('said so'): logging.getLogger('a').info('said so')\n"
        "def test_quiet(): logging.getLogger('a').info('nobody minds')\n"
    )
    said = _pytest_with("tests.support.logcheck", scratch).stdout
    assert "2 failed, 2 passed" in said
    assert "a WARNING: nobody said so" in said
    assert "no log record of level WARNING or above matches 'said so'" in said


def test_the_report_counts_by_transport_and_user(scratch: Path) -> None:
    (scratch / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.fixture(params=['root', 'ordinary'])\n"
        "def user(request): return request.param\n"
        "@pytest.mark.transport('pyfuse3')\n"
        "def test_both(user): assert user\n"
        "@pytest.mark.transport('pyfuse3')\n"
        "@pytest.mark.runs_as('ordinary')\n"
        "@pytest.mark.xfail(reason='a known gap')\n"
        "def test_gap(): assert False\n"
        "@pytest.mark.runs_as('ordinary')\n"
        "def test_skipped(): pytest.skip('no reason at all')\n"
    )
    report = _pytest_with("tests.support.report", scratch).stdout
    rows = [line.split() for line in report.splitlines()]
    assert ["pyfuse3", "root", "1", "0", "0", "0"] in rows
    assert ["pyfuse3", "ordinary", "1", "0", "1", "0"] in rows
    assert ["no", "mount", "ordinary", "0", "0", "0", "1"] in rows
    assert "skipped 1: no reason at all" in report
    assert "xfailed 1: a known gap" in report


def _pytest_with(plugin: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """A pytest of its own over `directory`, with no settings of ours and one of our plugins."""
    options = ["-p", plugin, "-p", "no:cacheprovider", "-c", "/dev/null", "-q", "--color=no"]
    return process.run([sys.executable, "-m", "pytest", *options, directory], cwd=CHECKOUT, check=False)

"""The command's entry: help, version, unknown words, exit codes, and that nothing heavy is imported."""

from __future__ import annotations

import keyword
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support import process
from tests.support.users import CHECKOUT
from unionfs.cli import entry, errors
from unionfs.cli.errors import CommandError, failed, format_failure


def _unionfs(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "unionfs", *args]
    return process.run(argv, cwd=CHECKOUT, env={**os.environ, **(env or {})}, check=False)


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_lists_every_verb_and_exit_code(word: str) -> None:
    done = _unionfs(word)
    assert (done.returncode, done.stderr) == (0, "")
    for verb in entry.VERBS:
        assert f"\n  {verb} " in done.stdout
    codes = (0, errors.FAILED, errors.USAGE, errors.OWN_FAILURE, errors.NOT_EXECUTABLE, errors.NOT_FOUND)
    for code in codes:
        assert f"\n  {code} " in done.stdout


def test_no_arguments_show_the_help_as_an_error() -> None:
    done = _unionfs()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: unionfs VERB")


def test_version_is_the_one_of_the_project() -> None:
    wanted = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    for word in ("--version", "-V"):
        said = _unionfs(word).stdout
        assert said.startswith(
            (f"unionfs {wanted}, compiled\n", f"unionfs {wanted}, Python (", "unionfs (not installed")
        )


def test_an_unknown_verb_is_refused_with_the_nearest_known() -> None:
    done = _unionfs("unmount", "/x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "unionfs: there is no command 'unmount'\n  did you mean `unionfs umount`?\n"
    assert "`unionfs --help` lists the commands" in _unionfs("zzz").stderr


@pytest.mark.parametrize("verb", entry.VERBS)
def test_every_verb_has_a_module_and_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{verb}_" if keyword.iskeyword(verb) else verb
    assert (Path(entry.__file__).parent / f"{name}.py").exists()
    status: object
    try:
        status = entry.run([verb, "--help"])
    except SystemExit as ended:
        status = ended.code
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: unionfs {verb}")


def test_the_command_called_as_fuse_overlayfs_is_the_mount_helper(tmp_path: Path) -> None:
    other_name = tmp_path / "fuse-overlayfs"
    other_name.write_text(f"#!{sys.executable}\nimport sys\nfrom unionfs.__main__ import main\nsys.exit(main())\n")
    other_name.chmod(0o755)
    done = process.run([other_name, "mount"], cwd=CHECKOUT, env={**os.environ, "PYTHONPATH": "."}, check=False)
    assert done.stderr.startswith("unionfs: mount failed: lowerdir not specified\n")


def test_a_bug_shows_a_line_and_with_debug_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(verb: str, arguments: list[str]) -> int:
        raise KeyError(verb, arguments)

    monkeypatch.setattr(entry, "_dispatch", broken)
    monkeypatch.delenv("UNIONFS_DEBUG", raising=False)
    assert entry.main(["mount"]) == errors.FAILED
    said = capsys.readouterr().err
    assert said.startswith("unionfs: internal error: KeyError")
    assert "Traceback" not in said
    assert entry.main(["run", "x"]) == errors.OWN_FAILURE
    monkeypatch.setenv("UNIONFS_DEBUG", "1")
    assert entry.main(["mount"]) == errors.FAILED
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(verb: str, arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "_dispatch", interrupted)
    assert entry.main(["mount"]) == errors.INTERRUPTED


_INTERRUPTED_IN_A_DESTRUCTOR = """
import signal
from unionfs.cli import entry

class Dropping:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def run(arguments):
    del arguments[0]  # the destructor runs, and Python drops the exception
    return 0

entry.run = run
entry.main([Dropping()])
"""


def test_an_interrupt_in_a_destructor_is_not_lost() -> None:
    done = process.run([sys.executable, "-c", _INTERRUPTED_IN_A_DESTRUCTOR], cwd=CHECKOUT, check=False)
    assert (done.returncode, done.stderr) == (130, "")


def test_a_reader_that_leaves_early_is_no_error() -> None:
    shell = 'set -o pipefail; "$0" -m unionfs --help | true; echo "${PIPESTATUS[0]}"'
    done = process.run(["bash", "-c", shell, sys.executable], cwd=CHECKOUT, check=False)
    assert int(done.stdout) in (0, errors.BROKEN_PIPE)
    assert done.stderr == ""


_IMPORTED = """
import sys
before = set(sys.modules)
from unionfs import __main__
import os
own, leave = os.getpid(), os._exit
def end(status):
    if os.getpid() != own:  # a process that the command has forked
        leave(status)
    print(*sorted({*sys.modules} - before))
    sys.exit(status)
os._exit = end
sys.argv = ["unionfs", *sys.argv[1:]]
__main__.main()
"""


def _imported(*argv: str) -> set[str]:
    done = process.run([sys.executable, "-c", _IMPORTED, *argv], cwd=CHECKOUT)
    return set(done.stdout.splitlines()[-1].split())


def test_the_version_imports_few_modules() -> None:
    ours = ("", ".__main__", ".cli", ".cli.mount_forms", ".compiled", ".standard_descriptors", ".version")
    found = {name for name in _imported("--version") if not name.startswith(("importlib", "xxhash"))}
    assert found - {"__future__", "warnings"} == {f"unionfs{name}" for name in ours}


def test_listing_containers_imports_neither_the_union_nor_a_daemon(tmp_path: Path) -> None:
    """Nor what comes of the standard library's `secrets` and `random`."""
    heavy = {
        "unionfs.core.options",
        "unionfs.daemon.process",
        "unionfs.changes",
        "random",
        "hashlib",
        "logging",
        "trio",
    }
    assert heavy & _imported("ps", "--root", os.fspath(tmp_path)) == set()
    assert heavy & _imported("--help") == set()


def test_running_a_container_imports_neither_the_union_nor_a_daemon(tmp_path: Path, fuse_device: Path) -> None:
    """Nor what fetching an image takes, or comparing what it changed."""
    heavy = {
        "unionfs.core.union",
        "unionfs.daemon.process",
        "unionfs.changes.listing",
        "layers.image",
        "random",
        "hashlib",
    }
    found = _imported("run", "--root", os.fspath(tmp_path), "--rm", "/", "true")
    assert "unionfs.launcher.run" in found
    assert (heavy | {"logging", "trio"}) & found == set()


def test_starting_a_daemon_imports_no_transport() -> None:
    """They are imported by the daemon, after the mount is up."""
    code = (
        "import sys; import unionfs.cli.mount, unionfs.cli.mount_helper, unionfs.cli.umount; "
        "heavy = {'trio', 'pyfuse3', 'rich', 'httpx', 'asyncio', 'subprocess'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert process.run([sys.executable, "-c", code], cwd=CHECKOUT).stdout == "[]\n"


def test_failures_are_printed_in_one_form() -> None:
    error = CommandError.of("opening the log", OSError(2, "No such file or directory", b"/a/b"), hint="one\ntwo")
    assert format_failure(error) == "unionfs: opening the log failed: /a/b: No such file or directory\n  one\n  two"
    assert error.status == errors.FAILED
    assert failed("mount", None, "because") == "mount failed: because"
    assert str(CommandError.of("mount", OSError("text alone"))) == "mount failed: text alone"

"""The command line of `unionfs run`: what it refuses, what it says, what it keeps."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from tests.launcher.conftest import Run, containers, wait_until_gone
from tests.support.users import User
from unionfs.fuse.options import DEFAULT_TRANSPORT

pytestmark = pytest.mark.transport(DEFAULT_TRANSPORT)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "run: no root filesystem given"),
        (["/"], "run: no command given"),
        (["--nosuch", "/", "true"], "run: unrecognized arguments: --nosuch"),
        (["/no/such", "true"], "run failed: cannot use /no/such as a lower directory: No such file or directory"),
        (["/etc/passwd", "true"], "run failed: cannot use /etc/passwd as a lower directory: Not a directory"),
        (["--lower", "/", "--lower", "/no/such", "true"], "run failed: cannot use /no/such as a lower directory"),
        (["--network", "nosuch", "/", "true"], "run: argument --network: invalid choice"),
        (["-v", "/no/such:/x", "/", "true"], "binding the volume failed: /no/such: No such file or directory"),
        (["-v", "/etc:", "/", "true"], "run: bad volume: /etc:"),
        (["-v", "/etc:relative", "/", "true"], "run: bad volume: relative"),
        (["-v", "/etc:/", "/", "true"], "run: bad volume: /etc:/"),
        (["-v", "/etc:/x:nosuch", "/", "true"], "run: bad volume: /etc:/x:nosuch"),
        (["-v", "/etc/passwd:/x:O", "/", "true"], "binding the volume failed: /etc/passwd: only a directory"),
        (["-w", "relative", "/", "true"], "run: bad working directory: relative"),
        (["-e", "=x", "/", "true"], "run: bad environment variable: =x"),
        (["--cap-add", "fly", "/", "true"], "run: bad capability: fly"),
        (["--ulimit", "fuel=3", "/", "true"], "run: bad limit: fuel=3: expected NAME=SOFT[:HARD]"),
        (["--ulimit", "nofile=3:2", "/", "true"], "run: bad limit: nofile=3:2: the soft limit is above"),
        (["--ulimit", "nofile=x", "/", "true"], "run: bad limit: nofile=x: 'x' is neither"),
        (["--hostname", "x" * 65, "/", "true"], "run: bad hostname"),
        (["--name", "a b", "/", "true"], "bad name: a b"),
    ],
)
def test_bad_command_lines(user: User, tidy: None, arguments: list[str], told: str) -> None:
    ended = user.unionfs("run", *arguments, check=False)
    assert (ended.returncode, ended.stdout) == (125, "")
    assert ended.stderr.startswith(f"unionfs: {told}")
    assert "Traceback" not in ended.stderr
    assert containers(user) == []


def test_dry_run_prints_the_steps_and_does_nothing(user: User, debian: Path, tidy: None) -> None:
    told = user.unionfs("run", "--dry-run", "--name", "dry", "--network", "none", debian, "sh", "-c", "touch /x")
    lines = told.stdout.splitlines()
    assert lines[0].startswith("make a container dry in ")
    kinds = "mount, cgroup" if user.kind == "root" else "user, mount, cgroup"
    assert f"make namespaces: {kinds}" in lines
    assert "make namespaces: pid, uts, ipc, network" in lines
    assert any(line.startswith(f"mount the union of {debian} at ") for line in lines)
    assert lines[-1] == "execute sh -c touch /x"
    assert containers(user) == []


def test_names_are_unique_and_records_kept(user: User, debian: Path, tidy: None) -> None:
    assert (
        user.unionfs("run", "--name", "kept", debian, "sh", "-c", "echo x > /new; exit 5", check=False).returncode == 5
    )
    ended = user.unionfs("run", "--name", "kept", debian, "true", check=False)
    assert (ended.returncode, ended.stderr.startswith("unionfs: name taken: kept")) == (125, True)
    (directory,) = containers(user)
    assert (directory / "upper/new").read_text() == "x\n"
    assert os.listdir(directory / "merged") == []
    user.unionfs("rm", "kept")
    assert containers(user) == []


def test_a_container_whose_command_was_not_found_is_not_kept(user: User, debian: Path, tidy: None) -> None:
    assert user.unionfs("run", "--name", "gone", debian, "nosuch", check=False).returncode == 127
    assert containers(user) == []


def test_a_directory_taken_for_the_command_is_explained(user: User, debian: Path, tidy: None) -> None:
    ended = user.unionfs("run", "--lower", debian, os.fspath(debian), "true", check=False)
    assert ended.returncode == 127
    assert "name it as the last --lower" in ended.stderr


def test_detached(user: User, debian: Path, tidy: None) -> None:
    script = "echo out; echo err >&2; while ! test -e /x/stop; do sleep 0.05; done; exit 4"
    flag = user.home / "flag"
    flag.mkdir()
    user.own(flag)
    told = user.unionfs("run", "-d", "--name", "apart", "-v", f"{flag}:/x", debian, "sh", "-c", script)
    (directory,) = containers(user)
    assert told.stdout == f"{directory.name}\n"
    assert "apart" in user.unionfs("ps").stdout
    (flag / "stop").touch()
    assert wait_until_gone(user) == {}
    logs = user.unionfs("logs", "apart")
    assert (logs.stdout, logs.stderr) == ("out\n", "err\n")
    assert '"exit_code": 4' in (directory / "container.json").read_text()
    user.unionfs("rm", "apart")
    (flag / "stop").unlink()
    flag.rmdir()
    ended = user.unionfs("run", "-d", debian, "nosuch", check=False)
    assert (ended.returncode, "nosuch: no such command" in ended.stderr, containers(user)) == (127, True, [])


@pytest.mark.parametrize("user", ["root"], indirect=True)
def test_advice_fits(user: User, run: Run, debian: Path) -> None:
    """-h is docker's hostname; a place that cannot be written is told with the flag for another one; a full disk is
    the output's own."""
    assert run("-h", "box", debian, "cat", "/proc/sys/kernel/hostname").stdout == "box\n"
    elsewhere = {"XDG_DATA_HOME": "/sys"}
    refused = user.run([*user.unionfs_cmd, "run", "--rm", "--lower", debian, "true"], env=elsewhere, check=False)
    assert (refused.returncode, "--root DIR" in refused.stderr) == (125, True)
    user.run([*user.unionfs_cmd, "run", "--name", "c", "--lower", debian, "true"])
    exporting = ["sh", "-c", f"{shlex.join(user.unionfs_cmd)} export c >/dev/full"]
    full = user.run(exporting, check=False)
    assert (full.returncode, full.stderr) == (1, "unionfs: export failed: stdout: No space left on device\n")
    user.run([*user.unionfs_cmd, "rm", "c"])

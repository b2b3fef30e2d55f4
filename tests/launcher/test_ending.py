"""How a container's command ends, and what that means for everything else in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launcher.conftest import Run
from tests.support.users import User
from unionfs.fuse.options import DEFAULT_TRANSPORT

pytestmark = pytest.mark.transport(DEFAULT_TRANSPORT)


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["false"], 1),
        (["sh", "-c", "exit 77"], 77),
        (["sh", "-c", "exit 255"], 255),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["sh", "-c", "kill -KILL $$"], 137),
        (["sh", "-c", "kill -SEGV $$"], 139),
    ],
)
def test_exit_codes_are_passed_on(run: Run, debian: Path, command: list[str], status: int) -> None:
    assert run(debian, *command, check=False).returncode == status


@pytest.mark.parametrize(
    ("command", "status", "told"),
    [
        (["nosuch"], 127, "executing failed: nosuch: no such command in PATH of the container"),
        (["/no/such"], 127, "executing failed: /no/such: no such file in the container"),
        (["/etc/passwd/x"], 127, "executing failed: /etc/passwd/x: Not a directory"),
        (["/etc/passwd"], 126, "executing failed: /etc/passwd: Permission denied"),
        (["/etc"], 126, "executing failed: /etc: is a directory"),
        (["./etc"], 126, "executing failed: ./etc: is a directory"),
        ([""], 127, 'executing failed: "": the command has no name'),
    ],
)
def test_commands_that_cannot_be_executed(run: Run, debian: Path, command: list[str], status: int, told: str) -> None:
    ended = run(debian, *command, check=False)
    assert (ended.returncode, ended.stdout) == (status, "")
    assert ended.stderr.startswith(f"unionfs: {told}")


def test_a_missing_interpreter_and_a_strange_file(run: Run, debian: Path, scratch: Path) -> None:
    for name, content in (("script", "#!/no/such/interpreter\n"), ("data", "\0\1\2\3")):
        (scratch / name).write_text(content)
        (scratch / name).chmod(0o755)
    ended = run("-v", f"{scratch}:/x", debian, "/x/script", check=False)
    assert (ended.returncode, "interpreter or loader" in ended.stderr) == (127, True)
    ended = run("-v", f"{scratch}:/x", debian, "/x/data", check=False)
    assert (ended.returncode, "Exec format error" in ended.stderr) == (126, True)


def test_what_still_runs_ends_with_the_command(run: Run, debian: Path, user: User) -> None:
    told = run(debian, "sh", "-c", "setsid sleep 987654 & setsid sleep 987654 & sleep 0.1; echo done")
    assert told.stdout == "done\n"


def test_zombies_are_reaped(run: Run, debian: Path) -> None:
    # Orphans of orphans: their parents end at once, so that init inherits them.
    script = """
        for i in 1 2 3 4 5 6 7 8 9; do sh -c '(sleep 0.2; exit 3) & (true) &' ; done
        python3 -c '
import glob, time
def states():
    found = []
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            found.append(open(path).read().rpartition(")")[2].split()[0])
        except OSError:
            pass  # it ended, and was reaped, just now
    return found
while len(states()) > 3:
    time.sleep(0.05)
print(sorted(set(states()) - {"S", "R"}))'"""
    assert run(debian, "sh", "-c", script).stdout == "[]\n"

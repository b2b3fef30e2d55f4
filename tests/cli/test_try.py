"""`unionfs try` and `apply`, end to end, as root and as an ordinary user: the machine changes when asked, only then."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import select
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.marks import as_ordinary_user
from tests.support.timing import limit
from tests.support.users import User

pytestmark = pytest.mark.usefixtures("fuse_device")

TIMEOUT_S = 120
CTRL_C = b"\x03"


@pytest.fixture
def place(user: User) -> Iterator[Path]:
    """An empty directory of the user that a view of the machine shows."""
    directory = user.home / "place"
    directory.mkdir()
    user.own(directory)
    if directory.stat().st_dev != Path("/").stat().st_dev:
        pytest.skip("the tests' directory is on another filesystem than /")
    yield directory
    subprocess.run(["rm", "-rf", directory], check=True)


def unionfs(
    user: User, *args: str | Path, stdin: str = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return user.run([*user.unionfs_cmd, *args], stdin=stdin, cwd=cwd, timeout_s=TIMEOUT_S, check=False)


@pytest.fixture(autouse=True)
def tidy(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that fails leaves nothing that the next one could find."""
    users: list[User] = [
        request.getfixturevalue(name) for name in ("user", "ordinary_user", "root_user") if name in request.fixturenames
    ]
    yield
    for user in users:
        for left in containers(user):
            unionfs(user, "rm", left)


def containers(user: User) -> list[str]:
    return [container["name"] for container in json.loads(unionfs(user, "ps", "-a", "--json").stdout)]


def shown(done: subprocess.CompletedProcess[str], below: Path) -> list[str]:
    """The listed changes below a directory, sizes left out."""
    lines = [re.fullmatch(r"([ACD]) +(-|\d+) (/.*)", line) for line in done.stdout.splitlines()]
    return [f"{line[1]} {line[3]}" for line in lines if line and line[3].startswith(f"{below}/")]


def tree_of(directory: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(directory.rglob("*")):
        st = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(st.st_mode) else None
        found[str(path.relative_to(directory))] = (st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, data)
    return found


# -- looking -----------------------------------------------------------------------------------------------------------


def test_changes_of_the_command_do_not_reach_the_machine(user: User, place: Path) -> None:
    (place / "old").write_text("old")
    (place / "gone").write_text("gone")
    before = tree_of(place)
    script = "echo new > old; rm gone; mkdir d; echo x > d/f; cat old d/f; exit 7"
    done = unionfs(user, "try", "sh", "-c", script, cwd=place)
    assert done.returncode == 7, done.stderr
    assert done.stdout.startswith("new\nx\n")
    assert shown(done, place) == [f"A {place}/d", f"A {place}/d/f", f"D {place}/gone", f"C {place}/old"]
    assert tree_of(place) == before
    assert containers(user) == []


def test_the_command_runs_as_if_here(user: User, place: Path) -> None:
    script = 'pwd; echo "$HOME"; echo "$WORD"; id -u; cat; hostname; ls /proc/self/fd | wc -l'
    done = user.run(
        [*user.unionfs_cmd, "try", "sh", "-c", script],
        stdin="from a pipe\n",
        cwd=place,
        env={"WORD": "two words"},
        timeout_s=TIMEOUT_S,
    )
    where, home, word, uid, piped, host, fds = done.stdout.splitlines()[:7]
    assert (where, home, word, uid, piped) == (str(place), str(user.home), "two words", "0", "from a pipe")
    assert host == os.uname().nodename
    assert int(fds) <= 4  # the three, and the one that lists them


@as_ordinary_user
def test_json_is_the_last_line(user: User, place: Path) -> None:
    (place / "a").write_text("12345")
    done = unionfs(user, "try", "--json", "sh", "-c", "echo out; echo 1 > a; printf 2 > $(printf 'b\\377')", cwd=place)
    first, last = done.stdout.splitlines()
    report = json.loads(last)
    changes = {change["path"]: change for change in report.pop("changes")}
    assert first == "out"
    assert (report["exit_code"], report["done"], report["command"][0]) == (0, "dropped", "sh")
    assert changes[f"{place}/a"] == {
        "kind": "C",
        "path": f"{place}/a",
        "type": "file",
        "size": 2,
        "old_size": 5,
        "changed": ["content", "mtime"],
        "mode": f"{(place / 'a').stat().st_mode & 0o7777:04o}",
        "digest": "sha256:4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865",
    }
    odd = changes[f"{place}/b\N{REPLACEMENT CHARACTER}"]
    assert (odd["kind"], odd["size"]) == ("A", 1)
    assert odd["path_base64"]


def test_what_only_was_opened_for_writing_is_no_change(user: User, place: Path) -> None:
    (place / "a").write_text("1")
    done = unionfs(user, "try", "--json", "sh", "-c", ": >> a", cwd=place)
    report = json.loads(done.stdout)
    assert (report["changes"], report["done"]) == ([], "nothing")


@as_ordinary_user
@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        (["no-such-command"], 127, "no-such-command"),
        (["/etc/passwd"], 126, "/etc/passwd"),
        ([], 125, "no command given"),
        (["--volume", "x", "true"], 125, "volume"),
        (["sh", "-c", "kill -9 $$"], 137, ""),
    ],
)
def test_exit_codes(user: User, place: Path, command: list[str], code: int, told: str) -> None:
    done = unionfs(user, "try", *command, cwd=place)
    assert done.returncode == code
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert containers(user) == []


@as_ordinary_user
def test_a_directory_outside_of_the_view_is_an_error(user: User) -> None:
    if not os.path.ismount("/dev/shm"):
        pytest.skip("/dev/shm is no mount of its own")
    done = unionfs(user, "try", "ls", cwd=Path("/dev/shm"))
    assert done.returncode == 125
    assert "-w DIR names another working directory" in done.stderr
    assert unionfs(user, "try", "-w", "/", "true", cwd=Path("/dev/shm")).returncode == 0


def test_another_filesystem_is_empty_and_can_be_shown(root_user: User) -> None:
    place = root_user.home / "place"
    place.mkdir()
    command = " ".join(root_user.unionfs_cmd)
    script = f"""
mount -t tmpfs none {place}; echo 1 > {place}/a; cd {place}
{command} try ls; echo $?
cd /
{command} try ls {place} | wc -l
cd {place}
{command} try -v {place}:{place}:O sh -c 'cat a; echo 2 > a'; cat a
"""
    try:
        done = root_user.run(["unshare", "--mount", "sh", "-c", script], timeout_s=TIMEOUT_S)
    finally:
        place.rmdir()
    assert done.stdout.split() == ["125", "0", "1", "1"]
    assert f"{place} is on another filesystem than /" in done.stderr
    assert f"-v {place}:{place}:O" in done.stderr


@as_ordinary_user
def test_the_view_shows_neither_itself_nor_the_state(user: User, place: Path) -> None:
    state = user.home / ".local/share/unionfs"
    done = unionfs(user, "try", "sh", "-c", f"ls -A {state} | wc -l; find {user.home}/.local -name merged", cwd=place)
    assert done.stdout.splitlines()[0] == "0"
    assert "merged" not in done.stdout


@as_ordinary_user
def test_two_at_once_do_not_see_each_others_changes(user: User, place: Path) -> None:
    children = [
        user.popen(
            [*user.unionfs_cmd, "try", "sh", "-c", "echo $0 > who; echo started; read go; cat who", name], cwd=place
        )
        for name in ("a", "b")
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "started\n"
    for name, child in zip("ab", children, strict=True):
        out, err = child.communicate("go\n", timeout=limit(TIMEOUT_S))
        assert out.splitlines()[0] == name, err
    assert not (place / "who").exists()


# -- applying ----------------------------------------------------------------------------------------------------------


def test_apply_puts_everything_in_place(user: User, place: Path) -> None:
    (place / "old").write_text("old")
    (place / "gone/deep").mkdir(parents=True)
    (place / "moved").mkdir()
    (place / "moved/file").write_text("moved")
    (place / "link").symlink_to("old")
    user.own(place)
    script = """
set -e
echo new > old; chmod 600 old; rm -r gone; mkdir -p d/e; echo x > d/e/f; ln d/e/f d/hard; ln -s f d/e/soft; mkfifo d/p
mv moved elsewhere; echo y > elsewhere/more; rm link; mkdir link; touch -d @5 d/e/f; setfattr -n user.x -v 1 old || true
find . -printf '%P %m %s %T@ %l\\n' | sort
"""
    done = unionfs(user, "try", "--apply", "sh", "-c", script, cwd=place)
    assert done.returncode == 0, done.stderr
    inside = [line for line in done.stdout.splitlines() if not re.match(r"[ACD] +(-|\d+) /", line)]
    outside = user.run(["sh", "-c", "find . -printf '%P %m %s %T@ %l\\n' | sort"], cwd=place).stdout.splitlines()
    directory = re.compile(r"(\S*) (\d+) \d+ (\S+) ")  # the sizes of directories are the filesystem's own
    assert [directory.sub(r"\1 \2 \3 ", line) for line in inside] == [
        directory.sub(r"\1 \2 \3 ", line) for line in outside
    ]
    assert (place / "d/hard").stat().st_ino == (place / "d/e/f").stat().st_ino
    assert {path.lstat().st_uid for path in place.rglob("*")} == {user.uid}
    assert containers(user) == []


def test_apply_of_a_hard_link_changed_through_one_of_its_names(user: User, place: Path) -> None:
    (place / "d").mkdir()
    (place / "g").write_text("old")
    os.link(place / "g", place / "d/f")
    user.own(place)
    done = unionfs(user, "try", "--apply", "sh", "-c", "echo new >g; chmod 640 g", cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert (place / "d/f").read_text() == "new\n"
    assert (place / "d/f").stat().st_ino == (place / "g").stat().st_ino
    assert (place / "d/f").stat().st_mode & 0o777 == 0o640


@as_ordinary_user
def test_apply_waits_for_success(user: User, place: Path) -> None:
    done = unionfs(user, "try", "--apply", "--json", "sh", "-c", "echo 1 > a; exit 3", cwd=place)
    assert done.returncode == 3
    report = json.loads(done.stdout)
    assert report["done"] == "kept"
    assert "exit code 3" in report["error"]
    assert not (place / "a").exists()
    (name,) = containers(user)
    assert name == report["name"]
    assert f"unionfs apply {name}" in done.stderr
    unionfs(user, "rm", name)


def test_keep_then_look_then_apply(user: User, place: Path) -> None:
    done = unionfs(user, "try", "--keep", "mine", "sh", "-c", "mkdir d; echo 1 > d/a", cwd=place)
    assert done.returncode == 0, done.stderr
    assert not (place / "d").exists()
    assert [line for line in unionfs(user, "diff", "mine").stdout.splitlines() if line.startswith("A")] == [
        f"A {place}/d",
        f"A {place}/d/a",
    ]
    assert unionfs(user, "try", "--keep", "mine", "true").returncode == 125
    dry = unionfs(user, "apply", "--dry-run", "mine")
    assert f"A {place}/d/a" in dry.stdout.splitlines()
    assert not (place / "d").exists()
    applied = unionfs(user, "apply", "mine")
    assert applied.returncode == 0, applied.stderr
    assert applied.stdout == dry.stdout
    assert (place / "d/a").read_text() == "1\n"
    assert containers(user) == []


def test_a_directory_that_its_owner_locked(user: User, place: Path) -> None:
    """As Go keeps its modules: unlocked, changed and locked again. Nothing but the change is left on this machine."""
    for name in ("same", "locked", "opened"):
        (place / name).mkdir()
        for file in "ab":
            (place / name / file).write_text("old\n")
        (place / name).chmod(0o555)
    user.own(place)
    script = "chmod u+w locked opened; echo new >locked/a; rm locked/b; echo new >opened/a; chmod 555 locked"
    done = unionfs(user, "try", "--apply", "sh", "-c", script, cwd=place)
    assert done.returncode == 0, done.stderr
    assert [stat.S_IMODE((place / name).stat().st_mode) for name in ("same", "locked", "opened")] == [
        *(0o555, 0o555, 0o755)
    ]
    assert {name: (place / "locked" / name).read_text() for name in os.listdir(place / "locked")} == {"a": "new\n"}
    assert sorted(os.listdir(place / "opened")) == ["a", "b"]
    assert (place / "opened/a").read_text() == "new\n"


def test_strict_breaks_no_hard_link(user: User, place: Path) -> None:
    (place / "a").write_text("old")
    os.link(place / "a", place / "b")
    user.own(place)
    unionfs(user, "try", "--keep", "mine", "sh", "-c", "rm a; echo new > a", cwd=place)
    for flags in (("--strict", "--dry-run"), ("--strict",)):
        refused = unionfs(user, "apply", *flags, "mine")
        assert (refused.returncode, "1 more names on this machine" in refused.stderr) == (1, True)
    assert (place / "a").read_text() == "old"
    applied = unionfs(user, "apply", "mine")
    assert (applied.returncode, (place / "a").read_text(), (place / "b").read_text()) == (0, "new\n", "old")


@as_ordinary_user
def test_what_changed_meanwhile_is_not_overwritten(user: User, place: Path) -> None:
    for name in "abc":
        (place / name).write_text("old")
    user.own(place)
    unionfs(user, "try", "--keep", "mine", "sh", "-c", "echo 1 > a; rm b; echo 1 > new", cwd=place)
    (place / "a").write_text("theirs")
    (place / "b").write_text("theirs")
    (place / "c").write_text("theirs, and none of ours")
    (place / "new").write_text("theirs")
    user.own(place)
    before = tree_of(place)
    done = unionfs(user, "apply", "mine")
    assert done.returncode == 1
    for name in ("a", "b", "new"):
        assert f"{place}/{name}: was" in done.stderr
    assert f"{place}/c" not in done.stderr
    assert "nothing was done" in done.stderr
    assert tree_of(place) == before
    done = unionfs(user, "apply", "--force", "mine")
    assert done.returncode == 0, done.stderr
    found = {path.name: path.read_text() for path in place.iterdir()}
    assert found == {"a": "1\n", "c": "theirs, and none of ours", "new": "1\n"}


def test_without_permission_nothing_is_done_and_nothing_is_lost(ordinary_user: User) -> None:
    done = unionfs(ordinary_user, "try", "--apply", "sh", "-c", "echo 1 > ~/mine; echo 2 > /etc/theirs; rm /etc/passwd")
    assert done.returncode == 125
    assert not (ordinary_user.home / "mine").exists()
    assert Path("/etc/passwd").exists()
    assert "/etc/theirs: no permission to write in /etc" in done.stderr
    assert "sudo unionfs apply --root" in done.stderr
    (name,) = containers(ordinary_user)
    assert f"D {'/etc/passwd'}" in unionfs(ordinary_user, "diff", name).stdout.splitlines()
    assert unionfs(ordinary_user, "rm", name).returncode == 0
    assert containers(ordinary_user) == []


def test_root_applies_kept_changes_of_an_ordinary_user(ordinary_user: User, root_user: User, scratch: Path) -> None:
    """Whose the files are then: the directory's owner's; a number that was given away in the view is that number."""
    (scratch / "old").write_text("root's")
    place = ordinary_user.home / "place"
    place.mkdir()
    ordinary_user.own(place)
    script = f"""
set -e
cd {scratch}; echo 1 > new; echo 2 >> old; mkdir d; echo 3 > d/f; chown -R 33:34 d; chmod 2750 d
cd {place}; echo 4 > mine; mkdir -m 700 closed; echo 5 > closed/f; chown -R 33 closed
"""
    done = unionfs(ordinary_user, "try", "--keep", "given", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    if "one user id only" in done.stderr:
        pytest.skip("the ordinary user has no subordinate ids")
    listed = unionfs(ordinary_user, "diff", "given").stdout.splitlines()
    assert f"A {place}/closed/f" in listed
    root = str(ordinary_user.home / ".local/share/unionfs")
    assert "would belong to 33" in unionfs(ordinary_user, "apply", "given").stderr
    done = unionfs(root_user, "apply", "--root", root, "given")
    assert done.returncode == 0, done.stderr
    owners = {
        str(path): (path.stat().st_uid, path.stat().st_gid) for top in (scratch, place) for path in top.rglob("*")
    }
    mine = (ordinary_user.uid, ordinary_user.gid)
    assert owners == {
        f"{scratch}/new": (0, 0),
        f"{scratch}/old": (0, 0),
        f"{scratch}/d": (33, 34),
        f"{scratch}/d/f": (33, 34),
        f"{place}/mine": mine,
        f"{place}/closed": (33, mine[1]),
        f"{place}/closed/f": (33, mine[1]),
    }
    assert stat.S_IMODE((scratch / "d").stat().st_mode) == 0o2750
    assert containers(ordinary_user) == []
    assert unionfs(ordinary_user, "try", "true").returncode == 0  # root left nothing that is in the way
    subprocess.run(["rm", "-rf", place], check=True)


def test_files_of_other_ids_are_listed_and_removed(ordinary_user: User) -> None:
    script = "mkdir -m 700 ~/closed; touch ~/closed/f; chown 1:1 ~/closed/f ~/closed || exit 77"
    done = unionfs(ordinary_user, "try", "--keep", "closed", "sh", "-c", script)
    if done.returncode == 77:
        unionfs(ordinary_user, "rm", "closed")
        pytest.skip("the ordinary user has no subordinate ids")
    assert f"A {ordinary_user.home}/closed/f" in unionfs(ordinary_user, "diff", "closed").stdout.splitlines()
    done = unionfs(ordinary_user, "rm", "closed")
    assert done.returncode == 0, done.stderr
    assert os.listdir(ordinary_user.home / ".local/share/unionfs/containers") == [".lock"]


def test_killed_while_applying_is_completed_by_applying_again(user: User, place: Path) -> None:
    script = "for i in $(seq 400); do mkdir d$i; echo $i > d$i/f; done; rm -r old"
    (place / "old").mkdir()
    user.own(place)
    unionfs(user, "try", "--keep", "many", "sh", "-c", script, cwd=place)
    (container,) = (user.home / ".local/share/unionfs/containers").glob("[0-9a-f]*")
    rounds = 0
    while container.exists() and rounds < 20:
        rounds += 1
        child = user.popen([*user.unionfs_cmd, "apply", "many"], cwd=place)
        deadline = time.monotonic() + limit(TIMEOUT_S)
        while child.poll() is None and time.monotonic() < deadline:
            done = len([name for name in os.listdir(place) if name.startswith("d")])
            building = len([name for name in os.listdir(place) if name.startswith(".unionfs-apply")])
            if (rounds == 1 and building > 50) or (rounds == 2 and done > 50) or (rounds == 3 and done > 200):
                os.killpg(child.pid, signal.SIGKILL)
                break
        child.communicate(timeout=limit(TIMEOUT_S))
        for path in place.glob("d*"):
            assert (path / "f").read_text() == f"{path.name[1:]}\n"
    assert sorted(os.listdir(place)) == sorted(f"d{number}" for number in range(1, 401))
    assert containers(user) == []


@as_ordinary_user
def test_a_killed_try_leaves_a_container_that_has_ended(user: User, place: Path) -> None:
    child = user.popen(
        [*user.unionfs_cmd, "try", "--keep", "victim", "sh", "-c", "echo 1 > a; echo up; sleep 600"], cwd=place
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    assert unionfs(user, "diff", "victim").stdout.splitlines()[-1] == f"A {place}/a"
    assert unionfs(user, "rm", "victim").returncode == 1
    assert unionfs(user, "apply", "victim").returncode == 1
    child.kill()
    child.communicate(timeout=limit(TIMEOUT_S))
    deadline = time.monotonic() + limit(TIMEOUT_S)
    while json.loads(unionfs(user, "ps", "--json").stdout) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert containers(user) == ["victim"]
    assert f"A {place}/a" in unionfs(user, "diff", "victim").stdout.splitlines()
    assert unionfs(user, "apply", "victim").returncode == 0
    assert (place / "a").read_text() == "1\n"


# -- a terminal --------------------------------------------------------------------------------------------------------


def at_terminal(user: User, argv: list[str], cwd: Path, answer: Callable[[bytes], bytes]) -> tuple[str, int]:
    """Run a command on a terminal of its own; `answer` is asked what to type whenever a question has been printed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        command = [*user.prefix, *argv]
        os.execvpe(command[0], command, {**user.env})
    said, mark, deadline = b"", 0, time.monotonic() + limit(TIMEOUT_S)
    typed = b""
    try:
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 1)[0]:
                if typed == CTRL_C:  # one that comes between the question and the wait for an answer is seen after that
                    os.write(terminal, typed)
                continue
            try:
                piece = os.read(terminal, 65536)
            except OSError:  # EIO: nobody has it open any more
                break
            said += piece
            if said[mark:].endswith(b"? "):
                typed = answer(said[mark:])
                os.write(terminal, typed)
                mark = len(said)
        else:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(terminal)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return said.decode(errors="replace"), code


@as_ordinary_user
def test_on_a_terminal_the_user_is_asked(user: User, place: Path) -> None:
    answers = [b"what\n", b"list\n", b"apply\n"]
    script = "test -t 0 && test -t 1 && stty size >/dev/null && touch 'esc\033[31mape' && exit 5"
    said, code = at_terminal(user, [*user.unionfs_cmd, "try", "sh", "-c", script], place, lambda _: answers.pop(0))
    assert code == 5, said
    assert answers == []
    assert "esc\\x1b[31mape" in said
    assert "esc\x1b[31mape" not in said
    assert (place / "esc\033[31mape").exists()
    assert containers(user) == []


@as_ordinary_user
def test_on_a_terminal_drop_and_keep(user: User, place: Path) -> None:
    argv = [*user.unionfs_cmd, "try", "touch", "a"]
    assert at_terminal(user, argv, place, lambda _: b"d\n")[1] == 0
    assert containers(user) == []
    said, code = at_terminal(user, argv, place, lambda _: b"\x04")  # end of input: nobody has decided
    assert code == 0
    (name,) = containers(user)
    assert f"kept as {name}" in said
    unionfs(user, "rm", name)
    said, code = at_terminal(user, argv, place, lambda _: CTRL_C)
    assert code == 130
    (name,) = containers(user)
    assert f"kept as {name}" in said
    unionfs(user, "rm", name)
    assert os.listdir(place) == []


# -- package managers --------------------------------------------------------------------------------------------------


@pytest.fixture
def package(scratch: Path) -> Path:
    """A small package with files, a directory of its own and a script that makes a user's file."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        pytest.skip("no apt-get or dpkg-deb on this machine")
    root = scratch / "package"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "usr/share/unionfs-try").mkdir(parents=True)
    (root / "usr/share/unionfs-try/data").write_text("data\n")
    (root / "DEBIAN/control").write_text(
        "Package: unionfs-try\nVersion: 1.0\nArchitecture: all\nMaintainer: Nobody <nobody@localhost>\n"
        "Description: something to install\n"
    )
    script = root / "DEBIAN/postinst"
    script.write_text("#!/bin/sh\nset -e\ninstall -d -o www-data -g www-data -m 750 /var/lib/unionfs-try\n")
    script.chmod(0o755)
    for path in root.rglob("*"):
        path.chmod(0o755 if path.is_dir() or path == script else 0o644)
    root.chmod(0o755)
    made = scratch / "unionfs-try.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", root, made], check=True, capture_output=True)
    return made


def test_a_package_is_installed_in_the_view_only(user: User, package: Path) -> None:
    status = Path("/var/lib/dpkg/status")
    before = hashlib.sha256(status.read_bytes()).digest()
    script = f"apt-get install -y {package} && dpkg -s unionfs-try && cat /usr/share/unionfs-try/data"
    done = unionfs(user, "try", "sh", "-c", script)
    if "one user id only" in done.stderr:
        pytest.skip("the ordinary user has no subordinate ids")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Status: install ok installed" in done.stdout
    lines = [re.sub(r" +(-|\d+) ", " ", line) for line in done.stdout.splitlines()]
    for line in (
        "A /usr/share/unionfs-try",
        "A /usr/share/unionfs-try/data",
        "A /var/lib/unionfs-try",
        "A /var/lib/dpkg/info/unionfs-try.list",
        "C /var/lib/dpkg/status",
    ):
        assert line in lines
    assert not Path("/usr/share/unionfs-try").exists()
    assert hashlib.sha256(status.read_bytes()).digest() == before
    assert containers(user) == []

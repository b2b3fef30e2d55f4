"""`unionfs upgrade`: a mount continues in the version that was installed meanwhile, and no program on it sees an error.

Two installations are two copies of the package, which take turns in one directory as `pip install --upgrade` has it.
"""

from __future__ import annotations

import json
import marshal
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.mounted import trees
from tests.mounted.agent import command
from tests.mounted.checking import read, same, write
from tests.mounted.mounted_subject import MountedSubject
from tests.mounted.subjects import Subject, unavailable
from tests.mounted.test_keeper import transactions, use_across
from tests.support import chaos, share
from tests.support.timing import limit
from tests.support.users import CHECKOUT, User
from unionfs import compiled

_SUBJECTS = [
    pytest.param(one, id=str(one), marks=[pytest.mark.transport(one.transport), pytest.mark.runs_as(one.runs_as)])
    for one in (Subject("kernel", "root", "scattered"), Subject("kernel", "user", "scattered"))
]

_as_ordinary_user = pytest.mark.parametrize("stand", _SUBJECTS[1:], indirect=True)

Edits = dict[str, tuple[str, str]]


class Installed:
    """A directory with the package that daemons are started from, and others beside it that may take its place."""

    def __init__(self, top: Path, user: User) -> None:
        self._top = top
        self._user = user
        self.place = top / "installed"
        top.mkdir()
        self.make("1.0").rename(self.place)

    def make(self, version: str, edits: Edits | None = None) -> Path:
        """Make an installation aside. `edits`: in the file, what is replaced by what; such a one is not compiled."""
        made = self._top / version
        shutil.copytree(CHECKOUT / "unionfs", made / "unionfs")  # with bytecode, which is not valid for what is edited
        (made / f"unionfs-{version}.dist-info").mkdir()
        for name, (old, new) in (edits or {}).items():
            text = (made / name).read_text()
            assert text.count(old) == 1, (name, old)
            (made / name).write_text(text.replace(old, new))
        if not edits and not compiled.why_not_usable():
            shutil.copytree(CHECKOUT / compiled.COMPILED_DIR, made, dirs_exist_ok=True)
        self._user.own(self._top)
        return made


def exchange(place: str, other: str) -> None:
    """Put another installation in place, and this one where that was."""
    os.rename(place, f"{place}.old")
    os.rename(other, place)
    os.rename(f"{place}.old", other)


class Stand(MountedSubject):
    """A union whose daemon is started from an installation of its own."""

    installed: Installed
    _more: Sequence[str] = ()

    def mount_argv(self) -> list[str]:
        """As MountedSubject's, with more options."""
        return [*super().mount_argv(), *self._more]

    def upgrade(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `unionfs upgrade` as the subject's user."""
        argv = [*self.user.unionfs_cmd, "upgrade", *(words or (str(self.merged),))]
        done: subprocess.CompletedProcess[str] = self.agent.call(command, argv, self._env, timeout_s=120)
        return done

    def stats(self) -> dict[str, object]:
        """What `unionfs stats --json` says."""
        done = self.agent.call(command, [*self.user.unionfs_cmd, "stats", "--json", str(self.merged)], self._env)
        found: dict[str, object] = json.loads(done.stdout)
        return found

    def wait_until_loaded(self) -> None:
        """Wait until keeper and daemon have loaded what they need: later their files may be replaced."""
        self.stats()
        time.sleep(0.6)

    def keeper(self) -> dict[str, object]:
        """What it says of the keeper."""
        found = self.stats()["keeper"]
        assert isinstance(found, dict)
        return found

    def install(self, version: str, edits: Edits | None = None) -> None:
        """Install a version, over the one that is there."""
        made = self.installed.make(version, edits)
        self.agent.call(exchange, str(self.installed.place), str(made))


@pytest.fixture(params=_SUBJECTS)
def stand(request: pytest.FixtureRequest, scratch: Path) -> Iterator[Stand]:
    """A union of two lowers and an upper, mounted from an installation; as root and as an ordinary user."""
    subject: Subject = request.param
    if reason := unavailable(subject):
        pytest.skip(reason)
    request.getfixturevalue("fuse_device")
    user: User = request.getfixturevalue("root_user" if subject.who == "root" else "ordinary_user")
    with Stand(subject, user, scratch / "stand", lowers=2, mounted=False) as built:
        assert isinstance(built, Stand)
        built.installed = Installed(scratch / "stand" / "versions", user)
        built._env = {"PYTHONPATH": str(built.installed.place), "UNIONFS_LINGER": "0"}  # with a keeper of its own
        built.agent.call(trees.make, trees.parse("f=hello d/g=1 d/e/x=2 h1=link h2==h1"), built.lowers[0])
        built.agent.call(write, f"{built.lowers[0]}/big", b"z" * 300_000)
        built.agent.call(trees.make, trees.parse("low=beneath d/low=3"), built.lowers[1])
        built.mount()
        built.wait_until_loaded()
        yield built


def _upgrade_in_turns(argv: list[str], env: dict[str, str], place: str, other: str) -> None:
    """Put the other version in place, and have the mount continue in it. Runs as the daemon's user."""
    exchange(place, other)
    done = command(argv, env, limit(60))
    same((done.returncode, done.stderr), (0, ""))


def _use_across_upgrades(argv: list[str], env: dict[str, str], place: str, other: str) -> None:
    use_across(partial(_upgrade_in_turns, argv, env, place, other))


def _turns(stand: Stand) -> tuple[list[str], dict[str, str], str, str]:
    """The arguments of _upgrade_in_turns; the other version is 2.0."""
    other = stand.installed.make("2.0")
    argv = [*stand.user.unionfs_cmd, "upgrade", str(stand.merged)]
    return argv, {**stand.user.env, **stand._env}, str(stand.installed.place), str(other)


def test_open_files_stay_open_in_another_version(stand: Stand) -> None:
    before = stand.stats()
    assert before["version"] == "1.0"
    stand.run(_use_across_upgrades, *_turns(stand), timeout_s=240)
    after, keeper = stand.stats(), stand.keeper()
    assert (keeper["upgrades"], keeper["replaced"], keeper["alive"]) == (4, 0, True)
    assert (after["version"], keeper["version_before"], keeper["not_upgraded"]) == ("1.0", "2.0", "")
    assert after["mountpoint"] == before["mountpoint"]
    assert after["compiled"] == before["compiled"]
    stand.unmount()


_NEW_RECORD: Edits = {
    "unionfs/core/record_version.py": (
        '_READABLE: Final = (2, 3)\n"""Versions that this program reads and continues with."""\n\n'
        "WRITTEN: Final = _NAME | 3 << _SHIFT",
        "_READABLE: Final = (2, 3, 4)\n\nWRITTEN: Final = _NAME | 4 << _SHIFT",
    )
}
"""A version whose new records have another version; it reads those of before, too."""


def test_the_new_version_is_kept_and_replaced_as_the_old_one(stand: Stand) -> None:
    """The record of nodes stays in the older version, which the version before can read again."""
    mount = chaos.mount(f"{stand.base}/")
    keeper = chaos.keeper_of(mount)
    places = str(stand.installed.place), str(stand.installed.make("2.0", _NEW_RECORD))
    stand.agent.call(exchange, *places)
    assert stand.upgrade().returncode == 0
    assert stand.keeper()["pid"] == keeper
    for _ in range(3):
        before = chaos.wait_for_daemon(mount)
        stand.agent.call(os.kill, before, signal.SIGKILL)
        chaos.wait_for_daemon(mount, after=before)
        assert stand.run(read, "f") == b"hello"
    found = stand.stats()
    assert (found["version"], stand.keeper()["replaced"]) == ("2.0", 3)
    replacements = stand.keeper()["replacements"]
    assert isinstance(replacements, list)
    assert [each["reason"] for each in replacements] == ["an upgrade", *["killed by signal 9 (Killed)"] * 3]
    assert all(each["waited_s"] > 0 for each in replacements)
    assert sum(each["waited_s"] for each in replacements) == pytest.approx(stand.keeper()["waited_total_s"])
    stand.wait_until_loaded()
    stand.agent.call(exchange, *places)
    assert stand.upgrade().returncode == 0
    assert stand.stats()["version"] == "1.0"
    assert len(stand.daemons()) == 2  # nothing else is left
    stand.unmount()


def _work_through_upgrades(argv: list[str], env: dict[str, str], place: str, other: str) -> int:
    """Run a database while versions take turns. Returns how often they did."""
    upgrades, over = 0, threading.Event()
    errors: list[BaseException] = []

    def take_turns() -> None:
        nonlocal upgrades
        try:
            while not over.is_set() or upgrades < 3:
                _upgrade_in_turns(argv, env, place, other)
                upgrades += 1
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    thread = threading.Thread(target=take_turns)
    thread.start()
    try:
        transactions()
    finally:
        over.set()
        thread.join()
    if errors:
        raise errors[0]
    return upgrades


def test_a_database_through_upgrades(stand: Stand) -> None:
    upgrades = stand.run(_work_through_upgrades, *_turns(stand), timeout_s=240)
    assert stand.keeper()["upgrades"] == upgrades >= 3
    stand.unmount()


_REFUSALS: dict[str, tuple[Edits, str]] = {
    "its record of nodes is another one": (
        {"unionfs/core/record_version.py": ("_READABLE: Final = (2, 3)", "_READABLE: Final = (8, 9)")},
        "the new version refuses: DamagedError: its version is 3, and this program reads 8 and 9",
    ),
    "its values have another format": (
        {"unionfs/fuse/keeper_channel.py": ("FORMAT: Final = 1", "FORMAT: Final = 2")},
        "the values of the mount have format 1; this version reads 2",
    ),
    "it lacks an option": (
        {"unionfs/fuse/options.py": ("    busy_poll: str = BUSY_POLL_AUTO", "    poll_busily: str = BUSY_POLL_AUTO")},
        "unexpected keyword argument 'busy_poll'",
    ),
    "it crashes at import": (
        {"unionfs/daemon/upgrade.py": ("from unionfs.daemon.mounted_union import Service", "import absent")},
        "ModuleNotFoundError: No module named 'absent'",
    ),
    "it is killed": (
        {"unionfs/upgrade_entry.py": ("import sys\n\n\n", "import sys\n\nos.kill(os.getpid(), 9)\n\n")},
        "the new version: killed by signal 9 (Killed)",
    ),
    "it ends without a word": (
        {"unionfs/upgrade_entry.py": ("import sys\n\n\n", "import sys\n\nos._exit(3)\n\n")},
        "the new version: exit status 3",
    ),
}


@_as_ordinary_user
@pytest.mark.parametrize("case", share.of(_REFUSALS))
def test_a_version_that_cannot_continue_is_refused(stand: Stand, case: str) -> None:
    edits, why = _REFUSALS[case]
    before = stand.stats()
    stand.install("2.0", edits)
    done = stand.upgrade()
    assert done.returncode == 1
    assert why in done.stderr
    assert done.stderr.startswith(f"unionfs: upgrade failed: {stand.merged}: ")
    assert "not upgraded" in done.stdout
    # The command is of the new version, and so is what it prints of `stats`; the daemon is the same.
    after, keeper = stand.stats(), stand.keeper()
    assert (after["pid"], after["version"]) == (before["pid"], "1.0")
    assert (keeper["upgrades"], keeper["replaced"], keeper["alive"]) == (0, 0, True)
    assert why in str(keeper["not_upgraded"])
    assert stand.run(read, "f") == b"hello"
    stand.unmount()


_FAILURES: dict[str, tuple[Edits, str]] = {
    "it raises": (
        {"unionfs/daemon/keeper_process.py": ("    began = time.perf_counter()\n", "    began = 1 / 0\n")},
        "the new version refuses: ZeroDivisionError: division by zero; the previous version continues",
    ),
    "it is killed": (
        {"unionfs/daemon/keeper_process.py": ("    began = time.perf_counter()\n", "    os.kill(os.getpid(), 9)\n")},
        "the new version: killed by signal 9 (Killed); the previous version continues",
    ),
    "it is killed when it has taken over": (
        {"unionfs/fuse/keeper_channel.py": ("        self.send(SERVES)\n", "        os.kill(os.getpid(), 9)\n")},
        "the new version: killed by signal 9 (Killed); the previous version continues",
    ),
}


def _rename_and_write(argv: list[str], env: dict[str, str], code: int) -> str:
    """Use the mount while an upgrade is tried that fails after the daemon before has ended. Returns what was said."""
    held = os.open("held", os.O_RDWR | os.O_CREAT)
    os.write(held, b"1")
    os.unlink("held")
    done = command(argv, env, limit(60))
    same(done.returncode, code)
    os.write(held, b"2")
    same(os.pread(held, 9, 0), b"12")
    os.rename("f", "g")
    same(read("g"), b"hello")
    return done.stderr


@_as_ordinary_user
@pytest.mark.parametrize("case", _FAILURES)
def test_a_version_that_fails_during_the_takeover_is_replaced_by_the_old_one(stand: Stand, case: str) -> None:
    edits, why = _FAILURES[case]
    before = stand.stats()
    argv, env, *_ = _turns(stand)
    stand.install("3.0", edits)
    said = stand.run(_rename_and_write, argv, env, 1, timeout_s=120)
    assert why in said
    after, keeper = stand.stats(), stand.keeper()
    assert after["pid"] != before["pid"]
    assert after["version"] == "1.0"
    assert (keeper["upgrades"], keeper["replaced"], keeper["alive"]) == (0, 0, True)
    assert why in str(keeper["not_upgraded"])
    stand.unmount()


@_as_ordinary_user
@pytest.mark.parametrize("case", ["starting", "taking over"])
def test_a_version_that_hangs_is_not_waited_for(stand: Stand, case: str) -> None:
    """The version that runs waits for a second only, here."""
    stand.unmount()
    name, old = {"starting": ("_START_S", "30.0"), "taking over": ("_TAKEOVER_S", "60.0")}[case]
    stand.install("1.1", {"unionfs/fuse/upgrade.py": (f"{name}: Final = {old}", f"{name}: Final = 1.0")})
    stand.mount()
    stand.wait_until_loaded()
    argv, env, *_ = _turns(stand)
    sleeps: Edits = {
        "unionfs/upgrade_entry.py": ("import sys\n\n\n", "import sys, time\n\ntime.sleep(99)\n\n"),
        "unionfs/daemon/keeper_process.py": ("    began = time.perf_counter()\n", "    began = time.sleep(99)\n"),
    }
    hanging = "unionfs/upgrade_entry.py" if case == "starting" else "unionfs/daemon/keeper_process.py"
    stand.install("3.0", {hanging: sleeps[hanging]})
    said = stand.run(_rename_and_write, argv, env, 1, timeout_s=120)
    assert "the new version did not answer within 1 s" in said
    assert stand.keeper()["upgrades"] == 0
    stand.unmount()


@_as_ordinary_user
def test_the_daemon_continues_if_the_keeper_cannot_be_replaced(stand: Stand) -> None:
    argv, env, *_ = _turns(stand)
    edits: Edits = {"unionfs/daemon/upgrade.py": ("    channel.kept()\n", "    os._exit(1)\n")}
    stand.install("3.0", edits)
    said = stand.run(_rename_and_write, argv, env, 0, timeout_s=120)
    assert "upgraded, but its keeper was killed" in said
    found = stand.stats()
    assert (found["version"], stand.keeper()["alive"]) == ("3.0", False)
    assert stand.run(read, "g") == b"hello"
    stand.unmount()


_SLOW: Edits = {"unionfs/upgrade_entry.py": ("import sys\n\n\n", "import sys\nimport time\n\ntime.sleep(0.8)\n\n")}


def _kill_meanwhile(argv: list[str], env: dict[str, str], mount: str, victim: str) -> tuple[int, str]:
    """Kill a process during an upgrade to a version that is slow to start. Returns the exit code and what was said."""
    daemon, keeper = chaos.wait_for_daemon(mount), chaos.keeper_of(mount)
    asking = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{keeper}/task/{keeper}/children")
    deadline = time.monotonic() + limit(20)
    while len(found := children.read_text().split()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    successor = next(int(pid) for pid in found if int(pid) != daemon)
    os.kill({"daemon": daemon, "successor": successor, "keeper": keeper}[victim], signal.SIGKILL)
    _, said = asking.communicate(timeout=limit(60))
    same(read("f"), b"hello")
    write("made", b"data")
    return asking.returncode, said


_KILLED = {
    "daemon": "the daemon ended before the new version could continue",
    "successor": "the new version: killed by signal 9 (Killed)",
    "keeper": "the keeper does not answer",
}


@_as_ordinary_user
@pytest.mark.parametrize("victim", _KILLED)
def test_a_process_is_killed_meanwhile(stand: Stand, victim: str) -> None:
    mount = chaos.mount(f"{stand.base}/")
    stand.install("2.0", _SLOW)
    argv = [*stand.user.unionfs_cmd, "upgrade", str(stand.merged)]
    code, said = stand.run(_kill_meanwhile, argv, {**stand.user.env, **stand._env}, mount, victim, timeout_s=120)
    assert code == 1
    assert _KILLED[victim] in said
    found = stand.keeper()
    assert (found["upgrades"], found["alive"]) == (0, victim != "keeper")
    assert found["replaced"] == (victim == "daemon")
    assert stand.stats()["version"] == "1.0"
    stand.unmount()


@_as_ordinary_user
def test_an_upgrade_while_one_is_under_way_is_refused(stand: Stand) -> None:
    stand.install("2.0", _SLOW)
    argv = [*stand.user.unionfs_cmd, "upgrade", str(stand.merged)]
    codes = stand.run(_both, argv, {**stand.user.env, **stand._env}, timeout_s=120)
    assert sorted(codes) == [(0, ""), (1, f"unionfs: upgrade failed: {stand.merged}: an upgrade is under way\n")]
    assert stand.keeper()["upgrades"] == 1
    stand.unmount()


def _both(argv: list[str], env: dict[str, str]) -> list[tuple[int, str]]:
    both = [
        subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    return [(one.returncode, said) for one in both for said in [one.communicate(timeout=limit(60))[1]]]


@_as_ordinary_user
def test_an_unmount_meanwhile_ends_everything(stand: Stand) -> None:
    stand.install("2.0", _SLOW)
    argv = [*stand.user.unionfs_cmd, "upgrade", str(stand.merged)]
    code = stand.agent.call(_unmount_meanwhile, argv, {**stand.user.env, **stand._env}, chaos.mount(f"{stand.base}/"))
    assert code == 1
    assert stand.wait_for_daemons() == {}
    assert not stand.is_mounted()


def _unmount_meanwhile(argv: list[str], env: dict[str, str], mount: str) -> int:
    keeper = chaos.keeper_of(mount)
    asking = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{keeper}/task/{keeper}/children")
    deadline = time.monotonic() + limit(20)
    while len(children.read_text().split()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    done = command([*argv[:-2], "umount", argv[-1]], env, limit(60))
    same((done.returncode, done.stderr), (0, ""))
    return asking.wait(limit(60))


@_as_ordinary_user
def test_mounts_that_cannot_be_handed_over_are_refused(stand: Stand) -> None:
    stand.unmount()
    stand._more = ["--no-keeper"]
    stand.mount()
    done = stand.upgrade()
    assert done.returncode == 1
    why = "it has no keeper: it was mounted with --no-keeper"
    assert done.stderr == f"unionfs: upgrade failed: {stand.merged}: {why}\n"
    stand.unmount()


@pytest.mark.parametrize("option", ["--watch", "--passthrough"])
def test_a_mount_with_this_option_continues_in_another_version(stand: Stand, option: str) -> None:
    if option == "--passthrough" and stand.user.uid != 0:
        pytest.skip("passthrough needs root of the machine")
    stand.unmount()
    stand._more = [option]
    stand.mount()
    stand.wait_until_loaded()
    stand.run(_write_across_upgrades, *_turns(stand), timeout_s=240)
    assert (stand.keeper()["upgrades"], stand.keeper()["alive"]) == (3, True)
    if option == "--watch":
        stand.agent.call(write, f"{stand.lowers[1]}/from outside", b"1")
        stand._lowers_as_made = stand._look_at_lowers()
        deadline = time.monotonic() + limit(20)
        while stand.run(os.path.exists, "from outside") is False:
            assert time.monotonic() < deadline
    else:
        assert stand.stats()["passthrough"] == {"open": 0, "plain": 0}
    stand.unmount()


def _write_across_upgrades(argv: list[str], env: dict[str, str], place: str, other: str) -> None:
    opened, removed = os.open("f", os.O_RDWR), os.open("removed", os.O_RDWR | os.O_CREAT)
    os.write(removed, b"removed")
    os.unlink("removed")
    for turn in range(3):
        _upgrade_in_turns(argv, env, place, other)
        os.pwrite(opened, b"%05d" % turn, 0)
        same(read("f"), b"%05d" % turn)
        same(os.pread(removed, 99, 0), b"removed")
        write(f"made{turn}", b"made")
        same(read(f"made{turn}"), b"made")


def test_a_stranger_gets_no_upgrade(stand: Stand, root_user: User, ordinary_user: User) -> None:
    """Another user may not ask; and a process that asks can name no program, since a question has no other field."""
    before = stand.stats()
    pid = before["pid"]
    connection = Path(f"/proc/{pid}/comm").read_text().strip().partition(":")[2]
    question = b'{"ask": "upgrade", "program": "/bin/false", "arguments": ["x"], "descriptor": 5}'
    stranger = ordinary_user if stand.user is root_user else None
    if stranger is not None:
        said = _ask(stranger, connection, question)
        assert said == {"error": "only its own user and root may ask this daemon"}
        assert stand.stats()["pid"] == pid
    said = _ask(stand.user, connection, question)
    assert said == {"upgrades": 0}
    deadline = time.monotonic() + limit(20)
    while stand.stats()["pid"] == pid:
        assert time.monotonic() < deadline
    after = stand.stats()
    assert (after["version"], stand.keeper()["upgrades"]) == ("1.0", 1)
    stand.unmount()


_ASK = """
import socket, sys
end = socket.socket(socket.AF_UNIX)
end.connect(chr(0) + "unionfs/" + sys.argv[1])
end.sendall(sys.argv[2].encode() + b"\\n")
print(end.makefile().readline())
"""


def _ask(user: User, connection: str, question: bytes) -> dict[str, object]:
    """What a daemon answers to a question on its control socket."""
    done = user.run([sys.executable, "-c", _ASK, connection, question.decode()])
    said: dict[str, object] = json.loads(done.stdout)
    return said


def test_all_unions_of_a_user(ordinary_user: User, scratch: Path, fuse_device: Path) -> None:
    """Also one that a parent of mounts has forked; not those of others. As an ordinary user: root has other unions."""
    del fuse_device
    installed = Installed(scratch / "versions", ordinary_user)
    env = {"PYTHONPATH": str(installed.place), "UNIONFS_LINGER": "1"}

    def unionfs(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return ordinary_user.run([*ordinary_user.unionfs_cmd, *words], env=env, timeout_s=limit(60))

    mountpoints = []
    for number in range(2):
        top = scratch / f"union{number}"
        for name in ("lower", "upper", "work", "merged"):
            (top / name).mkdir(parents=True)
        ordinary_user.own(top)
        branches: list[str | Path] = ["--lower", top / "lower", "--upper", top / "upper", "--work", top / "work"]
        unionfs("mount", *branches, top / "merged")
        mountpoints.append(str(top / "merged"))
    try:
        before = [json.loads(unionfs("stats", "--json", one).stdout) for one in mountpoints]
        assert before[1]["started_by"].startswith("parent ")
        time.sleep(0.6)  # see Stand.wait_until_loaded
        made = installed.make("2.0")
        exchange(str(installed.place), str(made))
        done = unionfs("upgrade", "--all", "--json")
        upgraded = {"upgraded": True, "version_before": "1.0", "version": "2.0", "why": "", "kept": True}
        assert json.loads(done.stdout) == [{"mountpoint": one, **upgraded} for one in mountpoints]
        table = unionfs("upgrade", "--all").stdout.splitlines()
        assert [line.split() for line in table] == [
            ["MOUNTPOINT", "BEFORE", "NOW", "RESULT"],
            *([one, "2.0", "2.0", "upgraded"] for one in mountpoints),
        ]
        after = [json.loads(unionfs("stats", "--json", one).stdout) for one in mountpoints]
        assert [one["keeper"]["upgrades"] for one in after] == [2, 2]
        assert [one["started_by"] for one in after] == [one["started_by"] for one in before]
    finally:
        for one in mountpoints:
            unionfs("umount", one)
    nothing = unionfs("upgrade", "--all")
    assert (nothing.stdout, nothing.stderr) == ("", "no union of this user is mounted\n")


@pytest.mark.parametrize("arguments", [[], ["x"], ["0"], ["99"]])
def test_the_executed_file_does_nothing_by_itself(arguments: list[str]) -> None:
    entry = CHECKOUT / "unionfs/upgrade_entry.py"
    done = subprocess.run(
        [sys.executable, "-P", str(entry), *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit(30), check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("unionfs: upgrade failed: ")
    assert done.stderr.endswith("; this is executed by the keeper of a mount\n")


@pytest.mark.parametrize("data", [b"", b"junk", marshal.dumps(5), marshal.dumps({"format": 1})])
def test_malformed_values_are_refused(data: bytes) -> None:
    fd = os.memfd_create("values", 0)
    os.write(fd, data)
    entry = CHECKOUT / "unionfs/upgrade_entry.py"
    done = subprocess.run(
        [sys.executable, "-P", str(entry), str(fd)],
        pass_fds=[fd], capture_output=True, text=True, timeout=limit(30), check=False,
    )  # fmt: skip
    os.close(fd)
    assert done.returncode == 2
    assert done.stderr.startswith("unionfs: upgrade failed: ")

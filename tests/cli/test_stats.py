"""`unionfs stats` and `unionfs trace`: what a daemon tells about a mount, to whom, and what it counts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.marks import as_ordinary_user
from tests.support.mounts import mounted
from tests.support.timing import limit
from tests.support.users import User
from unionfs.control import server
from unionfs.syscalls.mountinfo import topmost_at


@pytest.fixture
def lower(user: User, scratch: Path, fuse_device: Path) -> Path:
    del fuse_device
    (scratch / "lower/d").mkdir(parents=True)
    (scratch / "lower/d/file").write_bytes(b"content" * 1000)
    (scratch / "lower/link").symlink_to("nowhere")
    (scratch / "lower/big").write_bytes(os.urandom(3 << 20))
    for name in ("upper", "mnt"):
        (scratch / name).mkdir()
    user.own(scratch)
    return scratch / "lower"


@pytest.fixture
def mountpoint(user: User, lower: Path, transport: str) -> Iterator[Path]:
    """A union of a few files, served by each transport."""
    where = lower.parent
    with mounted([lower], where / "mnt", user=user, transport=transport, upper=where / "upper") as mnt:
        yield mnt


def stats(user: User, mountpoint: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(user.unionfs("stats", "--json", mountpoint).stdout)
    return found


def test_one_object_with_everything(user: User, mountpoint: Path, lower: Path, transport: str) -> None:
    found = stats(user, mountpoint)
    assert found["mountpoint"] == str(mountpoint)
    assert found["transport"] == transport
    assert found["lowers"] == [str(lower)]
    assert found["upper"] == str(lower.parent / "upper")
    assert Path(f"/proc/{found['pid']}/comm").read_text().startswith("unionfs:")
    assert found["protocol"] == "libfuse" or found["protocol"].startswith("7.")
    memory = found["memory_bytes"]
    assert memory["own"] > 1 << 20
    assert memory["own"] < memory["pss"] < memory["resident"] == memory["own"] + memory["shared"]
    assert found["uptime_s"] >= 0
    assert found["cpu_s"] > 0
    assert found["copy_ups"]["files"] == 0
    assert found["nodes"] >= 1


@pytest.mark.usefixtures("kept_caches")
def test_messages_are_counted_exactly(user: User, mountpoint: Path) -> None:
    before = stats(user, mountpoint)["messages"]
    user.run(["sh", "-c", f"[ -e {mountpoint}/missing ]; mkdir {mountpoint}/new; readlink {mountpoint}/link"])
    after = stats(user, mountpoint)["messages"]
    grown = {opcode: count - before.get(opcode, 0) for opcode, count in after.items() if count != before.get(opcode)}
    # `missing` and `new` are looked up in vain, `link` is found.
    assert grown.pop("LOOKUP") == 3
    assert grown.pop("MKDIR") == 1
    assert grown.pop("READLINK") == 1
    assert set(grown) <= {"GETATTR", "FORGET", "GETXATTR"}


def test_what_was_copied_up(user: User, mountpoint: Path) -> None:
    user.run(["sh", "-c", f"cd {mountpoint}; echo x >> d/file; chmod 600 big; touch -h link; chmod 600 big"])
    copied = stats(user, mountpoint)["copy_ups"]
    assert (copied["files"], copied["directories"], copied["others"]) == (2, 1, 1)
    assert copied["bytes"] == 7000 + (0 if copied["reflinked"] else 3 << 20)
    assert copied["seconds"] > 0
    text = user.unionfs("stats", mountpoint).stdout
    assert "2 files" in text
    assert "SETATTR" in text


def test_a_trace_names_the_file_the_request_and_the_process(user: User, mountpoint: Path, lower: Path) -> None:
    with tracing(user, mountpoint) as (trace, lines):
        user.run(["sh", "-c", f"cd {mountpoint}; chmod 600 d/file; chmod 600 big"])
        entries = [next(lines) for _ in range(3)]
        trace.terminate()
    assert [(entry["kind"], entry["path"]) for entry in entries] == [
        ("directory", "/d"),
        ("file", "/d/file"),
        ("file", "/big"),
    ]
    for entry in entries:
        assert entry["request"] == "SETATTR"
        assert entry["command"] == "chmod"
        assert entry["branch"] == str(lower)
        assert entry["ms"] > 0
    assert entries[1]["bytes"] == entries[1]["size"] == 7000
    assert entries[2]["reflinked"] or entries[2]["bytes"] == 3 << 20
    assert stats(user, mountpoint)["copy_ups"]["files"] == 2, "the daemon continues when a reader has gone"


_TRIGGERS = """
import os, sys
os.chdir(sys.argv[1])
fd = os.open("append", os.O_WRONLY | os.O_APPEND)
os.write(fd, b"x")
fd = os.open("reserve", os.O_RDWR)
os.posix_fallocate(fd, 0, 20)
os.truncate("truncate", 5)
os.chmod("chmod", 0o600)
os.chown("chown", os.getuid(), os.getgid())
os.utime("utime")
os.setxattr("setxattr", "user.x", b"1")
os.rename("rename", "renamed")
os.link("source", "linked")
os.close(os.open("empty", os.O_WRONLY | os.O_TRUNC))
"""


@as_ordinary_user
def test_every_trigger_is_laid_at_its_door(user: User, lower: Path, transport: str) -> None:
    names = ["append", "truncate", "chmod", "chown", "utime", "setxattr", "rename", "source", "empty"]
    wanted = dict.fromkeys(names, "SETATTR")
    wanted |= {"append": "WRITE", "setxattr": "SETXATTR", "rename": "RENAME", "source": "LINK"}
    if transport == "kernel":
        wanted["reserve"] = "FALLOCATE"
    else:  # pyfuse3 has no fallocate, and the C library writes instead; libfuse truncates when a file is opened
        wanted |= {"reserve": "WRITE", "empty": "OPEN"}
    for name in wanted:
        (lower / name).write_bytes(b"0123456789")
    user.own(lower)
    where = lower.parent
    with (
        mounted([lower], where / "mnt", user=user, transport=transport, upper=where / "upper") as mnt,
        tracing(user, mnt) as (_, lines),
    ):
        user.run([sys.executable, "-I", "-S", "-c", _TRIGGERS, mnt])
        entries = {entry["path"].lstrip("/"): entry for entry in (next(lines) for _ in wanted)}
        assert {name: entry["request"].removesuffix("2") for name, entry in entries.items()} == wanted
        for name, entry in entries.items():
            assert entry["pid"] > 1
            assert entry["command"].startswith("python")
            assert (entry["branch"], entry["kind"], entry["size"]) == (str(lower), "file", 10)
            assert entry["bytes"] == {"truncate": 5, "empty": 0}.get(name, 10)
            assert entry["ms"] > 0
            assert entry["reflinked"] is False
        copied = stats(user, mnt)["copy_ups"]
        assert copied["files"] == len(wanted)
        assert copied["bytes"] == sum(entry["bytes"] for entry in entries.values())
        assert copied["seconds"] == pytest.approx(sum(entry["ms"] for entry in entries.values()) / 1000, abs=1e-4)


@as_ordinary_user
def test_a_trace_ends_with_the_union(user: User, lower: Path) -> None:
    where = lower.parent
    with mounted([lower], where / "mnt", user=user, transport="kernel", upper=where / "upper") as mnt:
        trace = user.popen([*user.unionfs_cmd, "trace", "--json", mnt])
        assert trace.stderr is not None
        assert "waiting for copy-ups" in trace.stderr.readline()
    with trace:
        assert trace.wait(limit(30)) == 0


class tracing:  # noqa: N801  reads as a verb
    """`unionfs trace --json` beside what is traced: the process and its lines."""

    def __init__(self, user: User, mountpoint: Path) -> None:
        self._process = user.popen([*user.unionfs_cmd, "trace", "--json", mountpoint])

    def __enter__(self) -> tuple[subprocess.Popen[str], Iterator[dict[str, Any]]]:
        assert self._process.stderr is not None
        assert self._process.stdout is not None
        assert "waiting for copy-ups" in self._process.stderr.readline()
        return self._process, map(json.loads, self._process.stdout)

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.kill()


def test_other_users_get_no_statistics(root_user: User, ordinary_user: User, scratch: Path, fuse_device: Path) -> None:
    del fuse_device
    for name in ("lower", "mnt"):
        (scratch / name).mkdir()
    with mounted([scratch / "lower"], scratch / "mnt", user=root_user, transport="kernel") as mnt:
        done = ordinary_user.unionfs("stats", mnt, check=False)
        assert done.returncode == 1
        assert "only its own user and root may ask this daemon" in done.stderr


@as_ordinary_user
def test_where_no_union_is(user: User, scratch: Path) -> None:
    for verb in ("stats", "trace"):
        done = user.unionfs(verb, scratch, check=False)
        assert done.returncode == 1
        assert "no union is mounted there" in done.stderr
        assert "Traceback" not in done.stderr


@as_ordinary_user
def test_nonsense_does_not_hurt_the_daemon(user: User, mountpoint: Path) -> None:
    code = """
import socket, sys
for said in (b"", b"\\n", b"[]\\n", b"{\\n", b"x" * 100000, b'{"ask": "nothing"}\\n', b'{"ask": ["stats"]}\\n'):
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(sys.argv[1].replace("@", "\\0"))
        try:
            end.sendall(said)
            end.shutdown(socket.SHUT_WR)
            end.recv(4096)
        except OSError:
            pass
"""
    there = topmost_at(str(mountpoint))
    assert there is not None
    user.run([sys.executable, "-I", "-S", "-c", code, f"@unionfs/{there.minor}"])
    assert stats(user, mountpoint)["pid"]


_RING = """
import socket, sys
ends = [socket.socket(socket.AF_UNIX) for _ in range(int(sys.argv[2]))]
for end in ends:
    end.connect("\\0" + sys.argv[1])
print("rung", flush=True)
input()
for end in ends:
    end.setblocking(False)
    try:
        print(len(end.recv(1)))
    except BlockingIOError:
        print("open")
    except ConnectionResetError:
        print(0)
"""


def _name_of_bell(mountpoint: Path) -> str:
    there = topmost_at(str(mountpoint))
    assert there is not None
    return f"unionfs/{there.minor}"


@contextmanager
def _ringing(user: User, mountpoint: Path, times: int) -> Iterator[subprocess.Popen[str]]:
    """A process of `user` that has connected so often and says nothing."""
    with user.popen([sys.executable, "-I", "-S", "-c", _RING, _name_of_bell(mountpoint), str(times)]) as ringing:
        try:
            assert ringing.stdout is not None
            assert ringing.stdout.readline() == "rung\n"
            yield ringing
        finally:
            ringing.kill()


@as_ordinary_user
def test_a_question_right_after_mounting_is_answered(user: User, lower: Path, transport: str) -> None:
    """The first connection is taken, by a daemon that has not come to answer yet, too."""
    where = lower.parent
    for _ in range(3):
        with (
            mounted([lower], where / "mnt", user=user, transport=transport) as mnt,
            socket.socket(socket.AF_UNIX) as end,
        ):
            end.connect(f"\0{_name_of_bell(mnt)}")
            end.sendall(b'{"ask": "stats"}\n')
            assert json.loads(end.makefile().readline())["transport"] == transport


@as_ordinary_user
def test_a_silent_client_does_not_delay_others(user: User, mountpoint: Path) -> None:
    """All but one place taken by silent askers, stats are told at once; and the silent lose their places."""
    with _ringing(user, mountpoint, server._CLIENTS - 1) as silent:
        assert stats(user, mountpoint)["pid"]
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(f"\0{_name_of_bell(mountpoint)}")
            assert end.recv(1) == b"", "told to go in the end, without an answer"
        out, _ = silent.communicate("\n", timeout=limit(30))
        assert out.split() == ["0"] * (server._CLIENTS - 1)


def test_strangers_cannot_take_the_places_of_others(
    root_user: User, ordinary_user: User, scratch: Path, fuse_device: Path
) -> None:
    del fuse_device
    for name in ("lower", "mnt"):
        (scratch / name).mkdir()
    with (
        mounted([scratch / "lower"], scratch / "mnt", user=root_user, transport="kernel") as mnt,
        _ringing(ordinary_user, mnt, 3 * server._CLIENTS) as silent,
    ):
        assert stats(root_user, mnt)["pid"]
        out, _ = silent.communicate("\n", timeout=limit(30))
        assert out.split().count("open") <= server._STRANGERS

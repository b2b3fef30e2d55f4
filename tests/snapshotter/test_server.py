"""The snapshotter as containerd meets it: gRPC's codes, many calls at once, signals, kill -9, what it says."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.snapshotter.serving import Client, Snapshotter, code_of
from tests.support.timing import limit
from tests.support.users import User
from unionfs.snapshotter.wire import message

FieldMask = message("FieldMask")
Info = message("Info")
_THREADS = 8


@pytest.fixture
def snapshotter(scratch: Path) -> Iterator[Snapshotter]:
    with Snapshotter(scratch) as made:
        yield made


@pytest.fixture
def client(snapshotter: Snapshotter) -> Iterator[Client]:
    with snapshotter.client() as made:
        yield made


def test_a_snapshots_life(client: Client, snapshotter: Snapshotter) -> None:
    (mount,) = client("Prepare", key="ns/1/a", labels={"x": "1"}).mounts
    assert (mount.type, mount.source, list(mount.options)) == (
        "bind",
        f"{snapshotter.root}/snapshots/1/fs",
        ["rw", "rbind"],
    )
    assert client("Mounts", key="ns/1/a").mounts[0] == mount
    client("Commit", name="ns/2/sha256:1", key="ns/1/a", labels={"y": "2"})
    info = client("Stat", key="ns/2/sha256:1").info
    assert (info.kind, dict(info.labels), info.parent) == (3, {"y": "2"}, "")
    assert info.created_at.ToNanoseconds() > 1_600_000_000_000_000_000
    (mount,) = client("Prepare", key="ns/3/b", parent="ns/2/sha256:1").mounts
    assert mount.type == "fuse3.unionfs"
    assert mount.source == "overlay"
    assert client("View", key="ns/4/v", parent="ns/2/sha256:1").mounts[0].options[0] == "ro"
    assert {found.name: found.kind for found in client("List")} == {"ns/2/sha256:1": 3, "ns/3/b": 2, "ns/4/v": 1}
    assert [found.name for found in client("List", filters=["kind==view", "labels.y==2"])] == [
        "ns/2/sha256:1",
        "ns/4/v",
    ]
    usage = client("Usage", key="ns/3/b")
    assert (usage.inodes, usage.size) == (1, os.stat(f"{snapshotter.root}/snapshots/2/fs").st_blocks * 512)
    changed = client(
        "Update", info=Info(name="ns/3/b", labels={"z": "3"}), update_mask=FieldMask(paths=["labels.z"])
    ).info
    assert dict(changed.labels) == {"z": "3"}
    for key in ("ns/4/v", "ns/3/b", "ns/2/sha256:1"):
        client("Remove", key=key)
    client("Cleanup")
    assert client("List") == []
    assert snapshotter.directories == set()


def test_codes(client: Client) -> None:
    client("Prepare", key="a")
    client("Commit", name="one", key="a")
    client("Prepare", key="b", parent="one")
    update = {"info": Info(name="b"), "update_mask": FieldMask(paths=["kind"])}
    codes = {
        "AlreadyExists": code_of(client, "Prepare", key="b"),
        "no parent": code_of(client, "View", key="c", parent="missing"),
        "parent active": code_of(client, "Prepare", key="c", parent="b"),
        "no name": code_of(client, "Prepare"),
        "mounts of committed": code_of(client, "Mounts", key="one"),
        "no key": code_of(client, "Commit", name="x", key="missing"),
        "commit twice": code_of(client, "Commit", name="x", key="one"),
        "has children": code_of(client, "Remove", key="one"),
        "missing": code_of(client, "Stat", key="missing"),
        "mask": code_of(client, "Update", **update),
        "filter": code_of(client, "List", filters=["name=="]),
    }
    assert codes == {
        "AlreadyExists": "ALREADY_EXISTS",
        "no parent": "NOT_FOUND",
        "parent active": "INVALID_ARGUMENT",
        "no name": "INVALID_ARGUMENT",
        "mounts of committed": "FAILED_PRECONDITION",
        "no key": "NOT_FOUND",
        "commit twice": "FAILED_PRECONDITION",
        "has children": "FAILED_PRECONDITION",
        "missing": "NOT_FOUND",
        "mask": "INVALID_ARGUMENT",
        "filter": "INVALID_ARGUMENT",
    }


def test_a_long_list_comes_in_pieces(client: Client) -> None:
    label = "v" * 4000
    names = {f"key-{number}" for number in range(250)}
    for name in names:
        client("Prepare", key=name, labels={"l": label})
    assert {info.name for info in client("List")} == names


def test_many_at_once(snapshotter: Snapshotter) -> None:
    """Of many who want the same name one gets it; all others' snapshots are right."""
    won: list[str] = []
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with snapshotter.client() as client:
                if code_of(client, "Prepare", key="same") == "OK":
                    won.append(f"{number}")
                parent = ""
                for depth in range(5):
                    client("Prepare", key=f"{number}/k", parent=parent)
                    name = f"{number}/{depth}"
                    client("Commit", name=name, key=f"{number}/k")
                    parent = name
                client("Remove", key=parent)
                client("Cleanup")
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(won) == 1
    expected = {"same"} | {f"{number}/{depth}" for number in range(_THREADS) for depth in range(4)}
    assert {info.name for info in snapshotter.call("List")} == expected
    assert len(snapshotter.directories) == len(expected)


class _Busy:
    """Threads that make, commit and remove snapshots until a call fails, and what they know of the outcome."""

    def __init__(self, snapshotter: Snapshotter, turn: int) -> None:
        self._snapshotter = snapshotter
        self._calls = threading.Semaphore(0)
        self.confirmed: dict[str, int] = {}  # name -> kind: told to exist, and not asked to change since
        self.asked: set[str] = set()  # names that may exist
        self._threads = [threading.Thread(target=self._work, args=(f"{turn}/{number}",)) for number in range(4)]
        for thread in self._threads:
            thread.start()

    def wait_for_calls(self, number: int) -> None:
        for _ in range(number):
            assert self._calls.acquire(timeout=limit(60))

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _work(self, prefix: str) -> None:
        with self._snapshotter.client() as client:
            for step in range(1000):
                key, name = f"{prefix}/{step}/key", f"{prefix}/{step}"
                self.asked.update((key, name))
                if code_of(client, "Prepare", key=key) != "OK":
                    return
                self.confirmed[key] = 2
                self._calls.release()
                del self.confirmed[key]
                if code_of(client, "Commit", name=name, key=key) != "OK":
                    return
                self.confirmed[name] = 3
                if step % 3 == 0:
                    del self.confirmed[name]
                    if code_of(client, "Remove", key=name) != "OK":
                        return
                    self.asked.difference_update((key, name))


def test_a_killed_snapshotter_keeps_confirmed_snapshots(snapshotter: Snapshotter) -> None:
    """Again and again: what a client was told is there afterwards, and nothing without a name is."""
    chance = random.Random(1)
    before: dict[str, int] = {}
    for turn in range(5):
        busy = _Busy(snapshotter, turn)
        busy.wait_for_calls(chance.randint(4, 30))
        snapshotter.kill()
        busy.join()
        snapshotter.start()
        found = {info.name: info.kind for info in snapshotter.call("List")}
        assert (before | busy.confirmed).items() <= found.items()
        assert found.keys() <= before.keys() | busy.asked
        assert len(snapshotter.directories) == len(found)
        before = found


def test_a_full_disk_is_an_error_and_leaves_no_trace(scratch: Path, root_user: User) -> None:
    del root_user  # only root mounts
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs", scratch], check=True)
    with Snapshotter(scratch) as snapshotter, snapshotter.client() as client:
        client("Prepare", key="a")
        with (scratch / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))
        label = {"l": "v" * 4000}
        codes = [code_of(client, "Prepare", key=f"{number}", labels=label) for number in range(40)]
        assert {"RESOURCE_EXHAUSTED"} <= set(codes) <= {"OK", "RESOURCE_EXHAUSTED"}
        made = {f"{number}" for number, code in enumerate(codes) if code == "OK"} | {"a"}
        assert {info.name for info in client("List")} == made
        (scratch / "filler").unlink()
        client("Prepare", key="after")
        client("Remove", key="a")
        assert {info.name for info in client("List")} == made - {"a"} | {"after"}
        client("Cleanup")
        assert len(snapshotter.directories) == len(made)


def test_a_stopped_server_removes_its_socket(snapshotter: Snapshotter) -> None:
    snapshotter.call("Prepare", key="a")
    assert stat.S_IMODE(snapshotter.address.stat().st_mode) == 0o600
    assert snapshotter.stop() == 0
    assert not snapshotter.address.exists()
    assert "leaving: SIGTERM" in snapshotter.log.read_text()
    snapshotter.start()
    assert [info.name for info in snapshotter.call("List")] == ["a"]


def test_the_server_notifies_systemd_when_it_is_ready_and_when_it_stops(scratch: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"unionfs-test-{os.urandom(6).hex()}"
        manager.bind(f"\0{name}")
        manager.settimeout(limit(60))
        argv = [sys.executable, "-m", "unionfs", "snapshotter", "--address", f"{scratch}/s", "--root", f"{scratch}/r"]
        with subprocess.Popen(argv, env={**os.environ, "NOTIFY_SOCKET": f"@{name}"}, stderr=subprocess.PIPE) as process:
            assert manager.recv(100) == b"READY=1"
            process.send_signal(signal.SIGINT)
            assert manager.recv(100) == b"STOPPING=1"
            assert process.wait(limit(60)) == 0
            assert process.stderr is not None
            assert b"serving" in process.stderr.read()


def _refused(*words: str | Path) -> str:
    argv = [sys.executable, "-m", "unionfs", "snapshotter", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=limit(60), check=False)
    assert done.returncode == (2 if not words else 1)
    return done.stderr


def test_a_server_that_cannot_start_reports_why(snapshotter: Snapshotter, scratch: Path) -> None:
    other = scratch / "other"
    assert "required: --address" in _refused()
    assert f"another process listens at {snapshotter.address} already" in _refused(
        "--address", snapshotter.address, "--root", other
    )
    assert "in use by another snapshotter" in _refused("--address", scratch / "t.sock", "--root", snapshotter.root)
    (scratch / "file").write_text("mine")
    assert "is not a socket" in _refused("--address", scratch / "file", "--root", other)
    assert (scratch / "file").read_text() == "mine"
    assert "longer than 107 bytes" in _refused("--address", scratch / ("x" * 100), "--root", other)
    (other / "snapshots").mkdir(parents=True, exist_ok=True)
    (other / "snapshots.db").write_text("this is no database, whatever its name says" * 100)
    assert "file is not a database" in _refused("--address", scratch / "t.sock", "--root", other)
    assert not (scratch / "t.sock").exists()

"""The records of containers: found by name or id, believed only as far as the process table agrees, removed whole."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.core.trees import tree
from tests.support.timing import limit
from unionfs.containers import images, record
from unionfs.containers.config import ContainerConfig, RootFilesystem
from unionfs.containers.errors import BrokenRecordError, ContainerError
from unionfs.containers.record import Container, process_started
from unionfs.containers.remove import remove, remove_broken
from unionfs.containers.store import ContainerStore
from unionfs.launcher import userns
from unionfs.launcher.spec import Process
from unionfs.trees.remove import remove_path


@pytest.fixture
def store(tmp_path: Path) -> ContainerStore:
    return ContainerStore(str(tmp_path / "root"))


def config(*lowers: str) -> ContainerConfig:
    return ContainerConfig(Process(("true",)), RootFilesystem(lowers or ("/",)))


def create(store: ContainerStore, name: str = "") -> Container:
    return store.add(record.new(store.root, config(), name))


def test_an_added_container_is_found_and_has_its_directories(store: ContainerStore) -> None:
    made = create(store, "web")
    assert store.load(made.id) == store.find("web") == made
    assert all(os.path.isdir(path) for path in (made.upper, made.work, made.merged))


def test_nothing_is_left_of_a_container_for_which_the_disk_has_no_space(store: ContainerStore) -> None:
    def fill(upper: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), upper)

    with pytest.raises(OSError, match="No space left"):
        store.add(record.new(store.root, config("/")), fill)
    assert os.listdir(store.containers) == [".lock"]


def test_the_upper_gets_the_mode_of_the_lower(store: ContainerStore, tmp_path: Path) -> None:
    lower = tree(tmp_path / "lower", "./:0711")
    made = store.add(record.new(store.root, config(str(lower))))
    assert os.stat(made.upper).st_mode & 0o7777 == 0o711


def test_found_by_name_id_and_beginning_of_an_id(store: ContainerStore) -> None:
    first, second = create(store, "one"), create(store)
    assert first.name != second.name
    assert store.find("one") == store.find(first.id) == first
    assert store.find(second.id[:20]) == second
    with pytest.raises(ContainerError, match="no such container"):
        store.find("nobody")
    with pytest.raises(ContainerError, match="no such container"):
        store.find("")


def test_an_ambiguous_beginning_is_refused(store: ContainerStore) -> None:
    made = [create(store) for _ in range(17)]
    firsts = [one.id[0] for one in made]
    common = next(char for char in firsts if firsts.count(char) > 1)
    with pytest.raises(ContainerError, match="ambiguous id"):
        store.find(common)


def test_a_name_is_taken_once_and_must_be_one(store: ContainerStore) -> None:
    create(store, "web")
    with pytest.raises(ContainerError, match="name taken: web"):
        create(store, "web")
    for bad in ("-a", ".a", "a/b", "a b", "a\n"):
        with pytest.raises(ContainerError, match="bad name"):
            create(store, bad)


def test_running_is_believed_only_while_that_very_process_lives(store: ContainerStore) -> None:
    made = create(store)
    assert made.status == "created"
    with subprocess.Popen(["sleep", "60"]) as child:
        running = store.started(made, child.pid)
        assert running.status == store.load(made.id).status == "running"
        with pytest.raises(ContainerError, match="still running"):
            store.remove(running, remove_path)
        child.kill()
    assert store.load(made.id).status == "exited"
    assert store.load(made.id).state.exit_code is None
    # Another process has got the number since.
    reused = store.update(made, status="running", pid=os.getpid(), pid_started=running.state.pid_started)
    assert reused.status == "exited"
    assert store.exited(made, 3).state.exit_code == 3


def test_the_exit_code_that_was_noted_and_not_recorded(store: ContainerStore) -> None:
    """The disk was full: the record still says that it runs."""
    made = store.claim(create(store))
    with subprocess.Popen(["true"]) as child:
        store.started(made, child.pid)
    assert (store.load(made.id).status, store.load(made.id).state.exit_code) == ("exited", None)
    store.note_outcome(made, 3)
    ended = store.find(made.id)
    noted = os.stat(os.path.join(made.directory, "outcome"))
    assert (ended.status, ended.state.exit_code, ended.state.ended) == ("exited", 3, noted.st_mtime)
    store.unclaim(store.claim(ended), ended.state.exit_code)  # as `cp` does
    assert store.load(made.id).state.exit_code == 3


def test_a_zombie_does_not_live() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert process_started(pid) is None
    os.waitpid(pid, 0)


def test_an_update_keeps_concurrent_updates(store: ContainerStore) -> None:
    made = create(store)
    store.update(made, began_ns=7)
    store.exited(made, 1)  # of the value that does not know
    assert store.load(made.id).state.began_ns == 7


def test_removed_is_gone_even_if_deleting_stops(store: ContainerStore) -> None:
    made = create(store, "web")
    tree(Path(made.upper), "a/b=1")

    def fail(_path: str) -> None:
        raise PermissionError(13, "no")

    with pytest.raises(PermissionError):
        store.remove(made, fail)
    assert store.list() == []
    other = create(store, "web")
    store.remove(other, remove_path)
    assert [name for name in os.listdir(store.containers) if not name.startswith(".lock")] == []


def test_remains_of_a_killed_creation_are_removed(store: ContainerStore) -> None:
    create(store)
    half = Path(store.containers, ".new")
    tree(half, "upper/ work/ container.json")
    assert len(store.list()) == 1
    create(store)
    assert not half.exists()


def test_a_name_of_a_process_that_was_killed_is_free(store: ContainerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    web = create(store, "web")

    def die(_directory: str, _container: Container) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "_write", die)
        with pytest.raises(KeyboardInterrupt):
            store.rename(web, "mail")
        with pytest.raises(KeyboardInterrupt):
            create(store, "news")
    assert store.list() == [web]
    with pytest.raises(ContainerError, match="name taken: web"):
        create(store, "web")
    assert [create(store, name).name for name in ("mail", "news")] == ["mail", "news"]
    with pytest.raises(ContainerError, match="name taken: mail"):
        store.rename(web, "mail")


def test_names_in_a_store_of_an_older_program(store: ContainerStore) -> None:
    create(store, "web")
    remove_path(os.path.join(store.root, "container-names"))
    half = tree(Path(store.containers, ".new-0123"), "upper/ work/")
    with pytest.raises(ContainerError, match="name taken: web"):
        create(store, "web")
    assert not half.exists()
    create(store, "mail")
    assert sorted(os.listdir(os.path.join(store.root, "container-names"))) == ["mail", "web"]


_WATCHED = """
import os, re, sys
from tests.containers import test_store as t
store = t.ContainerStore(sys.argv[1])
t.create(store, "first")  # imports what it needs
def hook(event, args):
    if event.startswith(("open", "os.")) and isinstance(args[0], str):
        path = re.sub("[0-9a-f]{32}", "ID", args[0].removeprefix(store.root)).replace(sys.argv[2], "NAME")
        seen.append(event + " " + path.replace(str(os.getpid()), "PID"))
seen = []
sys.addaudithook(hook)
t.create(store, sys.argv[2])
print(*seen, sep="\\n")
"""


def test_making_one_opens_the_same_files_beside_many_as_beside_few(store: ContainerStore) -> None:
    def events(name: str) -> list[str]:
        words = [sys.executable, "-c", _WATCHED, store.root, name]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, timeout=limit(60))
        return done.stdout.splitlines()

    few = events("few")
    store.remove(store.find("first"), remove_path)
    for number in range(30):
        create(store, f"box{number}")
    assert events("many") == few
    opened = [event for event in few if event.startswith(("open", "os.listdir", "os.scandir"))]
    record = "/containers/.new/.container.json.PID"
    assert opened == ["open /containers/.lock", f"open {record}"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "it is not JSON: Expecting property name"),
        ("[]", "it has version None, and this unionfs reads version 1"),
        ('{"lowers": ["/"], "job": {}}', "it has version None"),
        ('{"version": 2}', "it has version 2, and this unionfs reads version 1"),
    ],
)
def test_a_broken_record_is_reported_and_does_not_hide_the_others(store: ContainerStore, text: str, why: str) -> None:
    good, bad = create(store), create(store)
    path = Path(bad.directory, "container.json")
    path.write_text(text)
    told: list[str] = []
    assert store.list(lambda error: told.append(str(error))) == [good]
    with pytest.raises(BrokenRecordError, match=re.escape(why)) as caught:
        store.find(bad.id[:20])
    assert told == [str(caught.value)]
    assert told[0].startswith(f"reading the record failed: {path}: ")
    assert f"unionfs rm --force {bad.id[:12]}" in caught.value.hint
    with pytest.raises(BrokenRecordError):
        images.layers_in_use(store.root)  # nobody knows which layers must not be freed


def test_only_what_has_files_of_other_ids_is_removed_in_another_process(
    store: ContainerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = []

    def call(_id_map: object, body: Callable[[], bytes]) -> bytes:
        entered.append(True)
        monkeypatch.undo()
        return body()

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(userns, "call", call)
    plain, mixed = create(store), create(store)
    remove(store, plain)
    assert not entered
    monkeypatch.setattr("unionfs.containers.remove.remove_path", refuse)
    remove(store, mixed)
    assert entered
    assert os.listdir(store.containers) == [".lock"]


def test_a_container_with_a_broken_record_can_be_removed(store: ContainerStore) -> None:
    good, bad = create(store), create(store)
    tree(Path(bad.upper), "a/b=1")
    Path(bad.directory, "container.json").write_text("{")
    remove_broken(store, bad.id)
    assert sorted(os.listdir(store.containers)) == [".lock", good.id]


def test_many_at_once_get_different_names(store: ContainerStore) -> None:
    code = "import sys; from tests.containers import test_store as t; t.create(t.ContainerStore(sys.argv[1]))"
    children = [subprocess.Popen([sys.executable, "-c", code, store.root]) for _ in range(8)]
    assert [child.wait(limit(60)) for child in children] == [0] * 8
    assert len({one.name for one in store.list()}) == 8


def test_what_is_left_of_another_container_does_not_fail_a_removal(store: ContainerStore) -> None:
    stuck, other = create(store, "stuck"), create(store, "other")

    def remove(path: str) -> None:
        if path.endswith(stuck.id):
            raise PermissionError(1, "Operation not permitted", path)
        remove_path(path)

    with pytest.raises(PermissionError):
        store.remove(stuck, remove)
    store.remove(other, remove)
    assert [name for name in os.listdir(store.containers) if other.id in name] == []
    store.remove(create(store, "third"), remove_path)  # takes up what was left
    assert [name for name in os.listdir(store.containers) if stuck.id in name] == []

"""A daemon dies before any step of any operation, and the next one continues from its record as the kernel asks again.

Each scenario of test_crash is a verb. A keeper forks a child that knows what the kernel knows and dies in the verb; a
second one takes over, is asked for the same once more, and everything is as if nothing had happened: the tree, open
files, ids, and nothing is left when the kernel has forgotten all.
"""

from __future__ import annotations

import errno
import os
import pickle
import time
from functools import partial
from pathlib import Path
from typing import Any, cast

from tests.core.children import KILLED, expect, in_child
from tests.core.faults import Faults
from tests.core.snapshots import Snapshot, differences, shape, snapshot
from tests.core.stack import Stack, Whiteout, litter
from tests.core.test_crash import LIMIT_S, Trial, in_turns, run_trial
from tests.core.union_driver import UnionDriver
from tests.mounted.agent import Agent
from unionfs.core import takeover
from unionfs.core.attrs import ROOT, Attrs
from unionfs.core.node_record import NodeRecord
from unionfs.core.union import Union

_AGAIN = {
    **dict.fromkeys(("mknod", "mkdir", "symlink", "link"), errno.EEXIST),
    **dict.fromkeys(("unlink", "rmdir", "rename"), errno.ENOENT),
    "setxattr": errno.EEXIST,
    "removexattr": errno.ENODATA,
}
"""What a verb says the second time (see fuse.kernel.dispatch)."""


_UNIQUE = 42


class _AskedAgain:
    """A union of which the first verb may have been done already, as the dispatcher answers it."""

    def __init__(self, union: Union, *, done: bool) -> None:
        self._union = union
        self._done = done  # known to be done

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._union, name)
        if name not in _AGAIN:
            return method

        def again(*args: Any) -> Any:
            try:
                if not self._done:
                    return method(*args)
                raise OSError(_AGAIN[name], "done")
            except OSError as exc:
                if exc.errno != _AGAIN[name]:
                    raise
                if name in ("mknod", "mkdir", "symlink"):
                    return self._union.lookup(args[0], args[1])
                return self._union.lookup(args[1], args[2]) if name == "link" else None

        return again


def _kernel_of(driver: UnionDriver) -> bytes:
    """What the kernel knows."""
    state = {name: value for name, value in vars(driver).items() if name not in ("union", "caller")}
    return pickle.dumps(state)


def _kept(stack: Stack) -> NodeRecord:
    record = NodeRecord()
    takeover.keep_record(stack.union, record)
    return record


def _live(trial: Trial, stack: Stack, record: NodeRecord, pipe: int, at: int) -> None:
    """The first life: until it dies before step `at` of the verb."""
    driver = trial._prepare(stack)
    for path in trial.scenario.verb[1:3]:
        if isinstance(path, str) and driver.exists(path):
            driver.node(path)
    if trial.scenario.opened is not None:
        driver.open(trial.scenario.opened)
    os.write(pipe, _kernel_of(driver))
    os.close(pipe)
    faults = Faults()
    faults.install()
    record.begin(_UNIQUE)
    faults.arm("kill", at)
    trial.apply(stack)
    os._exit(KILLED)


def _continue(
    trial: Trial, stack: Stack, record: NodeRecord, kernel: bytes, deaths: int
) -> tuple[Snapshot, bytes | None, list[str], int]:
    """Take over and ask for the verb again. Returns the tree, the content of the open file, the files left in the work
    directory at the end, and the number of nodes left."""
    driver = stack.u
    vars(driver).update(pickle.loads(kernel))
    changes = takeover.take_over(driver.union)
    driver.union = _AskedAgain(stack.union, done=changes.get(_UNIQUE, False))  # type: ignore[assignment]
    if not changes.get(_UNIQUE):
        record.begin(_UNIQUE)
    if deaths:
        faults = Faults()
        faults.install()
        faults.arm("kill", deaths)
    trial.apply(stack)
    if deaths:
        os._exit(KILLED)
    driver.union = driver.union._union  # type: ignore[attr-defined]
    seen = shape(snapshot(driver))
    data = None
    if trial.scenario.opened is not None:
        data = driver.pread(1, 0, 100)
        driver.close(1)
    driver.forget_all()
    nodes = driver.union.node_count
    driver.union.getattr(ROOT)
    driver.union.close()
    return seen, data, litter(stack.work), nodes


@in_turns(8, one_in=9)
def test_dies_before_any_step(name: str, whiteout: Whiteout, ram_path: Path, small_process: Agent) -> None:
    small_process.call(run_trial, check_takeover, name, whiteout, ram_path, timeout_s=LIMIT_S)


def check_takeover(trial: Trial) -> None:
    for at in (*trial.points(), trial.after_steps + 1):
        stack = trial.stack()
        record = _kept(stack)
        want_data = None
        if trial.scenario.opened is not None:
            want_data = _content(trial, trial.scenario.opened)
        read_fd, write_fd = os.pipe()
        dead = in_child(partial(_live, trial, stack, record, write_fd, at))
        os.close(write_fd)
        with open(read_fd, "rb") as pipe:
            kernel = pipe.read()
        assert dead.error is None, dead.error
        assert dead.status == KILLED
        for deaths in (2, 1):  # the next daemons die, too
            outcome = in_child(partial(_continue, trial, stack, record, kernel, deaths))
            assert outcome.error is None, f"{trial.name(at)}: {outcome.error}"
        outcome = in_child(partial(_continue, trial, stack, record, kernel, 0))
        assert outcome.error is None, f"{trial.name(at)}: {outcome.error}"
        seen, data, left, nodes = cast(tuple[Snapshot, bytes | None, list[str], int], expect(outcome))
        assert differences(trial.new, seen) == "", f"{trial.name(at)}: wanted | seen"
        assert data == want_data, trial.name(at)
        assert left == [], trial.name(at)
        assert nodes <= 1 + _doubts(trial), f"{trial.name(at)}: nodes are left"
        assert not record.is_full
        vars(stack.u).update(lookups=type(stack.u.lookups)(), _dentries={}, _handles={})
        stack._driver = None


def test_a_directory_that_a_copy_up_went_through_shows_its_own_attributes(ram_path: Path) -> None:
    stack = Stack(ram_path, "d/e/f d/g=content", upper="", caching=True)
    _kept(stack)

    def live() -> tuple[list[Attrs], bytes]:
        driver = stack.u
        before = [_told(driver, path) for path in ("d", "d/e")]
        time.sleep(0.02)  # longer than a tick of the clock that the kernel takes ctimes from
        for path in ("d/g", "d/e/f"):
            driver.chmod(path, 0o600)
        driver.mkdir("d/e/new")  # a user's change
        return [before[0], _told(driver, "d/e")], _kernel_of(driver)

    told, kernel = cast(tuple[list[Attrs], bytes], expect(in_child(live)))
    for _ in range(2):
        outcome = in_child(partial(_told_after_takeover, stack, kernel))
        assert expect(outcome) == told


def _told_after_takeover(stack: Stack, kernel: bytes) -> list[Attrs]:
    vars(stack.u).update(pickle.loads(kernel))
    takeover.take_over(stack.union)
    return [_told(stack.u, path) for path in ("d", "d/e")]


def _told(driver: UnionDriver, path: str) -> Attrs:
    return driver.stat(path)._replace(atime_ns=0)


def _content(trial: Trial, path: str) -> bytes:
    stack = trial.stack()
    data: bytes = trial._prepare(stack).read(path, 0, 100)
    stack.finish()
    return data


def _doubts(trial: Trial) -> int:
    """Nodes at most that were counted for an answer that was never given, and those above them: they stay."""
    return 3 if trial.scenario.verb[0] in ("create", "mkdir", "symlink", "mknod", "link") else 0


def test_a_file_that_lost_its_known_names_is_found_by_its_handle(ram_path: Path) -> None:
    """One in a lower, and one in the upper, of which another name is left; also when the record was compacted."""
    stack = Stack(ram_path, "low=beneath c/low==low", upper="u=above c/u2==u", caching=True)
    record = _kept(stack)
    stack.union.keep_handles()

    def live() -> list[int]:
        union = stack.union
        found = []
        for name in (b"low", b"u"):
            found.append(union.lookup(ROOT, name).nodeid)
            union.unlink(ROOT, name)
            union.forget(found[-1])
        record.compact()
        return found

    ids = cast(list[int], expect(in_child(live)))
    for _ in range(2):
        told = expect(in_child(partial(_read_by_handle, stack, ids)))
        assert told == [b"beneath", b"above"]


def _read_by_handle(stack: Stack, ids: list[int]) -> list[bytes]:
    union = stack.union
    takeover.take_over(union)
    told = []
    for nodeid in ids:
        assert union.lookup_handle(nodeid).nodeid == nodeid
        told.append(union.read(nodeid, 0, 99))
        union.forget(nodeid)
    return told


def test_an_open_file_keeps_what_was_written_to_it_after_it_lost_its_names(ram_path: Path) -> None:
    """A write to a nameless lower file puts a copy into the hard-link index, for its other name. Then that goes, too,
    and daemons die before any step of that."""
    for at in range(1, 99):
        stack = Stack(ram_path / str(at), "h1=link h2==h1", upper="", caching=True)
        record = _kept(stack)

        def write(stack: Stack = stack) -> bytes:
            stack.u.open("h1")
            stack.u.unlink("h1")
            stack.u.pwrite(1, 0, b"LI")
            return _kernel_of(stack.u)

        kernel = cast(bytes, expect(in_child(write)))
        dead = in_child(partial(_unlink, stack, record, kernel, at))
        assert dead.error is None, dead.error
        if dead.status != KILLED:
            assert at > 3
            return
        data, left = cast(tuple[bytes, list[bytes]], expect(in_child(partial(_unlink, stack, record, kernel, 0))))
        assert data == b"LInk", f"step {at}"
        assert left == [], f"step {at}"


def _unlink(stack: Stack, record: NodeRecord, kernel: bytes, at: int) -> tuple[bytes, list[bytes]]:
    """Take over, and remove the second name, or die before step `at` of that. Returns the content, and what is left in
    the work directory in the end."""
    driver = stack.u
    vars(driver).update(pickle.loads(kernel))
    changes = takeover.take_over(stack.union)
    faults = Faults()
    faults.install()
    if at:
        record.begin(_UNIQUE)
        faults.arm("kill", at)
        driver.unlink("h2")
        faults.disarm()
    elif not changes.get(_UNIQUE) and driver.exists("h2"):
        driver.unlink("h2")
    data = driver.pread(1, 0, 99)
    driver.close(1)
    driver.forget_all()
    return data, [name for _, _, names in os.walk(os.fsencode(stack.work)) for name in names]


def test_a_file_keeps_its_id_when_the_first_of_its_names_was_removed_and_the_daemon_died_before_it_recorded_that(
    ram_path: Path,
) -> None:
    stack = Stack(ram_path, "e/a=link d/a==e/a", upper="e/", whiteout="aufs", caching=True)
    _kept(stack)

    def live() -> list[int]:
        union = stack.union
        above = [union.lookup(ROOT, name).nodeid for name in (b"e", b"d")]
        return [*above, *(union.lookup(directory, b"a").nodeid for directory in above)]

    e, d, file, same = cast(list[int], expect(in_child(live)))
    assert file == same
    assert stack.upper is not None
    (stack.upper / "e" / ".wh.a").touch()

    def forget_directory() -> bytes:
        takeover.take_over(stack.union)
        stack.union.forget(e)
        return stack.union.read(file, 0, 9)

    def read() -> tuple[bytes, int]:
        takeover.take_over(stack.union)
        return stack.union.read(file, 0, 9), stack.union.lookup(d, b"a").nodeid

    assert expect(in_child(forget_directory)) == b"link"
    assert expect(in_child(read)) == (b"link", file)

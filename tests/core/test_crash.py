"""A failure at, and a kill before, every step of every operation: the old tree or the new one, never a mixture.

Each scenario is one verb. It runs in a forked child with a fault at step n, for every n it takes; then the branches are
opened again. What is compared is the whole tree except the mtimes of directories: a directory's mtime may be that of an
attempt that came to nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, cast

import pytest

from tests.core.children import KILLED, expect, in_child
from tests.core.faults import Fault, Faults
from tests.core.snapshots import Snapshot, differences, shape, snapshot
from tests.core.stack import Stack, Whiteout
from tests.mounted.agent import Agent
from tests.support import share

LOWERS = [
    "f=content{user.k=v} big=z*9000 d/a=1 d/s/b=2 e/x=3 hid=old hidd/y=5 l->target p<fifo>:0600 "
    "h1=link h2==h1 d/h3==h1 empty/ both=low bothd/q bothd/r long/a=1",
    "d/c=4 bothd/t o=6",
]
UPPER = "up=8 upd/a=9 both=upper bothd/u bothd/.wh.r .wh.hid hidd<c:0:0> gone/.wh..wh..opq gone/.wh.x u1=7 u2==u1"


class Scenario(NamedTuple):
    """`before` runs without faults; `verb` is what is tested; `opened` names a file that is open meanwhile."""

    verb: tuple[object, ...]
    before: tuple[tuple[object, ...], ...] = ()
    opened: str | None = None


SCENARIOS: dict[str, Scenario] = {
    "write to a lower file": Scenario(("write", "f", 0, b"C")),
    "write to a lower file below directories": Scenario(("write", "d/s/b", 0, b"C")),
    "write to a big lower file": Scenario(("write", "big", 5000, b"C")),
    "chmod a lower file": Scenario(("chmod", "f", 0o600)),
    "utime of a lower file": Scenario(("utime", "d/a", 5, 6)),
    "setxattr on a lower file": Scenario(("setxattr", "f", b"user.n", b"1")),
    "truncate a lower file": Scenario(("truncate", "big", 0)),
    "truncate a lower file partly": Scenario(("truncate", "big", 5000)),
    "extend a lower file": Scenario(("truncate", "f", 5000)),
    "fallocate in a lower file": Scenario(("fallocate", "f", 0, 0, 9000)),
    "chmod a lower directory": Scenario(("chmod", "d/s", 0o700)),
    "setxattr on a merged directory": Scenario(("setxattr", "d", b"user.n", b"1")),
    "utime of a lower symlink": Scenario(("utime", "l", 5, 6)),
    "utime of a lower fifo": Scenario(("utime", "p", 5, 6)),
    "write to a hard link": Scenario(("write", "h1", 0, b"L")),
    "write to a hard link below a directory": Scenario(("write", "d/h3", 0, b"L")),
    "write to the second of the names": Scenario(("write", "h2", 0, b"K"), (("write", "h1", 0, b"L"),)),
    "rename the second of the names": Scenario(("rename", "h2", "d/new"), (("write", "h1", 0, b"L"),)),
    "rename a hard link": Scenario(("rename", "h1", "d/new")),
    "unlink a hard link": Scenario(("unlink", "h1")),
    "unlink a hard link that is up": Scenario(("unlink", "h1"), (("write", "h1", 0, b"L"),)),
    "unlink the second of the names": Scenario(("unlink", "h2"), (("write", "h1", 0, b"L"),)),
    "unlink the last of the names": Scenario(
        ("unlink", "d/h3"), (("write", "h1", 0, b"L"), ("unlink", "h1"), ("unlink", "h2"))
    ),
    "unlink an upper hard link": Scenario(("unlink", "u1")),
    "create": Scenario(("create", "new", 0o640)),
    "create in a lower directory": Scenario(("create", "d/s/new", 0o640)),
    "create over a whiteout": Scenario(("create", "hid", 0o640)),
    "mkdir": Scenario(("mkdir", "d/new", 0o750)),
    "mkdir over a whiteout": Scenario(("mkdir", "hid", 0o750)),
    "mkdir over the whiteout of a directory": Scenario(("mkdir", "hidd", 0o750)),
    "symlink over a whiteout": Scenario(("symlink", "hid", b"target")),
    "mknod over a whiteout": Scenario(("mknod", "hidd", 0o010600, 0)),
    "link a lower file": Scenario(("link", "f", "d/new")),
    "link an upper file": Scenario(("link", "up", "d/new")),
    "link a hard link": Scenario(("link", "h1", "d/new")),
    "link over a whiteout": Scenario(("link", "f", "hid")),
    "unlink a lower file": Scenario(("unlink", "f")),
    "unlink a lower file below directories": Scenario(("unlink", "d/s/b")),
    "unlink an upper file": Scenario(("unlink", "up")),
    "unlink a file of both": Scenario(("unlink", "both")),
    "unlink an open lower file": Scenario(("unlink", "f"), opened="f"),
    "unlink an open file of both": Scenario(("unlink", "both"), opened="both"),
    "unlink a copied-up file": Scenario(("unlink", "f"), (("write", "f", 0, b"C"),), "f"),
    "rmdir a lower directory": Scenario(("rmdir", "empty")),
    "rmdir an upper directory with marks": Scenario(("rmdir", "gone")),
    "rmdir a merged directory with whiteouts": Scenario(
        ("rmdir", "bothd"), tuple(("unlink", f"bothd/{name}") for name in "qtu")
    ),
    "rename a lower file": Scenario(("rename", "f", "new")),
    "rename a lower file into a lower directory": Scenario(("rename", "f", "d/s/new")),
    "rename an upper file": Scenario(("rename", "up", "d/new")),
    "rename a lower file over a lower file": Scenario(("rename", "f", "o")),
    "rename an upper file over a lower file": Scenario(("rename", "up", "f")),
    "rename a file over one of both": Scenario(("rename", "up", "both")),
    "rename a file over an open one": Scenario(("rename", "f", "both"), opened="both"),
    "rename a file over a hard link": Scenario(("rename", "f", "h1")),
    "rename a lower file over a whiteout": Scenario(("rename", "f", "hid")),
    "rename a copied-up file": Scenario(("rename", "f", "new"), (("write", "f", 0, b"C"),)),
    "rename a lower directory": Scenario(("rename", "e", "new")),
    "rename a merged directory": Scenario(("rename", "bothd", "d/new")),
    "rename an upper directory": Scenario(("rename", "upd", "d/new")),
    "rename an upper directory over a whiteout": Scenario(("rename", "upd", "hidd")),
    "rename a lower directory over a whiteout": Scenario(("rename", "e", "hidd")),
    "rename a directory over an empty lower one": Scenario(("rename", "e", "empty")),
    "rename a directory over an emptied merged one": Scenario(
        ("rename", "d", "bothd"), tuple(("unlink", f"bothd/{name}") for name in "qtu")
    ),
    "rename an upper directory over an emptied merged one": Scenario(
        ("rename", "upd", "bothd"), tuple(("unlink", f"bothd/{name}") for name in "qtu")
    ),
    "rename a renamed directory": Scenario(
        ("rename", "d", "d2"), (("rename", "e", "d/e"), ("rename", "d", "t"), ("rename", "t", "d"))
    ),
    "exchange two lower files": Scenario(("rename", "f", "o", 2)),
    "exchange two lower directories": Scenario(("rename", "e", "d", 2)),
    "exchange a lower file and a merged directory": Scenario(("rename", "f", "bothd", 2)),
    "exchange an upper and a lower directory": Scenario(("rename", "upd", "e", 2)),
    "exchange hard links of two files": Scenario(("rename", "h1", "u1", 2)),
}


def in_turns(turn: int, scenarios: dict[str, Scenario] | None = None, *, one_in: int = 3) -> pytest.MarkDecorator:
    """One scenario in `one_in`, by the share of the run (tests.support.share) and by `turn`; the formats take turns,
    too. Every scenario in both formats if the share is everything."""
    formats = ("aufs", "overlay")
    chosen = [
        pytest.param(name, whiteout, id=f"{name}-{whiteout}")
        for number, name in enumerate(scenarios or SCENARIOS)
        if share.has(number + turn, one_in=one_in)
        for whiteout in (formats if share.EVERYTHING else (formats[(number + turn + share.NUMBER // one_in) % 2],))
    ]
    return pytest.mark.parametrize(("name", "whiteout"), chosen)


class Trial:
    """One scenario in one format: what it looks like before and after, and how many steps it takes."""

    def __init__(
        self,
        base: Path,
        scenario: Scenario,
        whiteout: Whiteout,
        *,
        lowers: list[str] = LOWERS,
        upper: str = UPPER,
        in_part: bool = False,
    ) -> None:
        self.base = base
        self.scenario = scenario
        self.whiteout: Whiteout = whiteout
        self._layers = lowers, upper
        self._in_part = in_part  # files are copied up without all of their data (core.partial)
        self._count = 0
        counted = self.stack()
        self.after_steps, self.log = cast(
            tuple[int, list[str]], expect(in_child(lambda: self._run(counted, "count", 0, counting=True)))
        )
        stack = self.stack()
        self.old = shape(snapshot(self._prepare(stack)))
        stack.remount()
        self.apply(stack)
        self.new = shape(snapshot(stack.u))
        assert self.new != self.old
        stack.finish()

    def stack(self) -> Stack:
        self._count += 1
        lowers, upper = self._layers
        return Stack(
            self.base / str(self._count),
            *lowers,
            upper=upper,
            whiteout=self.whiteout,
            caching=True,
            metacopy=self._in_part,
            partial_from=1 if self._in_part else 0,
        )

    def _prepare(self, stack: Stack):  # type: ignore[no-untyped-def]
        for verb, *args in self.scenario.before:
            getattr(stack.u, str(verb))(*args)
        return stack.u

    def apply(self, stack: Stack) -> None:
        verb, *args = self.scenario.verb
        getattr(stack.u, str(verb))(*args)

    def _run(self, stack: Stack, fault: Fault, at: int, *, counting: bool = False) -> object:
        """In the child: prepare, then the verb with a fault. Returns what the caller saw and what it could do next."""
        faults = Faults()
        faults.install()
        driver = self._prepare(stack)
        handle = None if self.scenario.opened is None else driver.open(self.scenario.opened)
        data = None if handle is None else driver.pread(handle, 0, 100)
        faults.arm(fault, at)
        failed = None
        try:
            self.apply(stack)
        except OSError as exc:
            failed = exc.errno
        faults.disarm()
        if counting:
            stack.union.close()
            return faults.steps, faults.log
        seen = shape(snapshot(driver))
        if handle is not None:
            assert driver.pread(handle, 0, 100) == data, "the open file has changed"
            assert driver.pwrite(handle, 0, b"!") == 1
            assert driver.pread(handle, 0, 1) == b"!"
            driver.close(handle)
        again: Snapshot | str | None = None
        if failed is not None and handle is None:
            try:
                self.apply(stack)
                again = shape(snapshot(driver))
            except OSError as exc:
                again = repr(exc)
        driver.forget_all()
        stack.union.close()
        return failed, seen, again

    def points(self) -> Iterator[int]:
        return iter(range(1, self.after_steps + 1))

    def name(self, at: int) -> str:
        return f"step {at} of {self.log}"


LIMIT_S = 250
"""Time limit of a trial, which forks for each step."""


def run_trial(check: Callable[..., None], name: str, whiteout: Whiteout, base: Path, *arguments: object) -> None:
    """As a job: check a scenario of this file."""
    os.umask(0)
    check(Trial(base, SCENARIOS[name], whiteout), *arguments)


@in_turns(0)
def test_killed_before_any_step(name: str, whiteout: Whiteout, ram_path: Path, small_process: Agent) -> None:
    small_process.call(run_trial, check_kills, name, whiteout, ram_path, timeout_s=LIMIT_S)


def check_kills(trial: Trial) -> None:
    for at in (*trial.points(), trial.after_steps + 1):
        stack = trial.stack()
        outcome = in_child(lambda stack=stack, at=at: trial._run(stack, "kill", at) and os._exit(KILLED))  # type: ignore[misc]
        assert outcome.error is None, outcome.error
        assert outcome.status == KILLED
        seen = shape(snapshot(stack.u))
        if trial.scenario.opened is None or at <= trial.after_steps:
            assert seen in (trial.old, trial.new), f"{trial.name(at)}: old | seen, new | seen\n{compare(trial, seen)}"
        if seen == trial.old:  # try again
            trial.apply(stack)
        assert differences(trial.new, shape(snapshot(stack.remount()))) == "", f"{trial.name(at)}: after another mount"
        stack.finish()
        if stack_has_index(stack):
            empty(stack)


@in_turns(1)
def test_an_error_at_any_step(name: str, whiteout: Whiteout, ram_path: Path, small_process: Agent) -> None:
    """The caller gets the error and everything is as it was, also for whoever tries again in the same union."""
    small_process.call(run_trial, check_errors, name, whiteout, ram_path, "fail", timeout_s=LIMIT_S)


@in_turns(2, one_in=9)
def test_no_space_from_any_step_on(name: str, whiteout: Whiteout, ram_path: Path, small_process: Agent) -> None:
    """As above, while removing and renaming still work: a full disk."""
    small_process.call(run_trial, check_errors, name, whiteout, ram_path, "full", timeout_s=LIMIT_S)


def check_errors(trial: Trial, fault: Fault) -> None:
    for at in trial.points():
        stack = trial.stack()
        failed, seen, again = cast(
            tuple[int | None, Snapshot, Snapshot | str | None],
            expect(in_child(lambda stack=stack, at=at: trial._run(stack, fault, at))),  # type: ignore[misc]
        )
        want = trial.new if failed is None else trial.old
        if trial.log[at - 1] == "unlink" and failed is None:
            # A link in the staging directory could not be removed: it counts until it is swept.
            seen = without_nlink(seen)
            assert differences(without_nlink(want), seen) == "", f"{trial.name(at)}: wanted | seen"
        else:
            assert differences(want, seen) == "", f"{trial.name(at)}, errno {failed}: wanted | seen"
        if again is not None:
            assert not isinstance(again, str), f"{trial.name(at)}: tried again: {again}"
            assert differences(trial.new, again) == "", f"{trial.name(at)}: tried again"
            want = trial.new
        if trial.scenario.opened is None:
            assert differences(want, shape(snapshot(stack.u))) == "", (
                f"{trial.name(at)}: wanted | seen after opening again"
            )
        stack.finish()
        empty(stack)


# What stays on disk then is what a kill leaves; that errors of the cleaning up do no harm shows in fewer, too.
@in_turns(5, one_in=9)
def test_a_filesystem_that_fails_from_any_step_on(
    name: str, whiteout: Whiteout, ram_path: Path, small_process: Agent
) -> None:
    """Not even cleaning up works; the next who opens the branches must."""
    small_process.call(run_trial, check_dying, name, whiteout, ram_path, timeout_s=LIMIT_S)


def check_dying(trial: Trial) -> None:
    for at in trial.points():
        stack = trial.stack()
        outcome = in_child(lambda stack=stack, at=at: run_on_dying(trial, stack, at))  # type: ignore[misc]
        assert outcome.error is None, f"{trial.name(at)}: {outcome.error}"
        seen = shape(snapshot(stack.u))
        assert seen in (trial.old, trial.new), f"{trial.name(at)}: old | seen, new | seen\n{compare(trial, seen)}"
        stack.finish()
        if stack_has_index(stack):
            empty(stack)


def run_on_dying(trial: Trial, stack: Stack, at: int) -> None:
    faults = Faults()
    faults.install()
    trial._prepare(stack)
    faults.arm("dead", at)
    with contextlib.suppress(OSError):
        trial.apply(stack)
    os._exit(0)  # as the daemon would end: without cleaning up


def without_nlink(found: Snapshot) -> Snapshot:
    return {path: snap._replace(nlink=0) for path, snap in found.items()}


def compare(trial: Trial, seen: Snapshot) -> str:
    return f"{differences(trial.old, seen)}\n--\n{differences(trial.new, seen)}"


def stack_has_index(stack: Stack) -> bool:
    """Whether hard links are indexed, which only the last name's removal may end."""
    return any(stack.work.glob("index/*"))


def empty(stack: Stack) -> None:
    """Remove everything: nothing may be left over, neither in the tree nor in the index of hard links."""
    paths = snapshot(stack.u)
    for path in sorted(paths, reverse=True):
        if path:
            (stack.u.rmdir if paths[path].kind == 0o040000 else stack.u.unlink)(path)
    stack.remount()
    assert set(snapshot(stack.u)) == {b""}
    stack.close()
    left = [name for _, _, names in os.walk(stack.work) for name in names]
    assert [name for name in left if name != "partial"] == [], "left in work/"

"""Change the branches of a mounted union, on a request that `unionfs branch` sends to the control socket of its daemon.

A request names a position or a directory; a directory to be added comes as a descriptor, so that the daemon needs no
path to it: it may run in other namespaces than the caller. Work that can block is done in the thread that answers the
socket; the stack itself is replaced by the union's thread, in slices.

Positions count all branches from the top, as AUFS's do: with an upper that is 0, and the topmost lower 1.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from unionfs.core import branches, pointers, unfinished_change
from unionfs.core.freeze import Freeze
from unionfs.core.kept_numbers import KeptNumbers
from unionfs.core.options import OptionError
from unionfs.fuse.calls import EndedError
from unionfs.fuse.death_helper import DeathHelper

if TYPE_CHECKING:
    from unionfs.core.attrs import Invalidation
    from unionfs.core.ledger import CopiedUp
    from unionfs.core.pointers import Pointer
    from unionfs.core.union import Union
    from unionfs.fuse.calls import Calls
    from unionfs.fuse.daemon_history import DaemonHistory
    from unionfs.fuse.traffic import Traffic

log = logging.getLogger(__name__)

_NOTIFY_TIMEOUT_S: Final = 30.0
"""Seconds to wait for a notification, which may wait for a copy-up."""
_POLL_S: Final = 0.002
_QUIET_S: Final = 10.0
"""Seconds to wait, before a freeze, for changes of files that threads are making."""

_SHOWN_MOST: Final = 1000
"""Limit of the pointers that one refusal lists."""


class RefusedError(Exception):
    """The change was not made. `str()` says why; `pointers` lists the objects of the upper that depend on a branch to
    be removed."""

    def __init__(self, why: str, found: list[Pointer] | None = None) -> None:
        super().__init__(why)
        self.pointers = found or []  # immutable


class BranchControl:
    """Changes the branches of one union. In the threads that answer the control socket; one change at a time."""

    def __init__(
        self,
        union: Union,
        traffic: Traffic,
        connection: int,
        history: DaemonHistory | None,
        tell_keeper: Callable[[], bool] | None,
    ) -> None:
        """`history`: None without a keeper. `tell_keeper` sends the keeper the present branches, and returns whether
        the keeper has acknowledged them; None: the keeper cannot learn other branches."""
        self._union = union  # immutable
        self._traffic = traffic  # immutable
        self._connection = connection  # immutable
        self._history = history  # immutable
        self._record = history.record if history is not None else None  # immutable
        self._tell_keeper = tell_keeper  # immutable
        self.lock = threading.Lock()  # held while branches change, or the daemon asks for an upgrade
        self._has_helper = False  # set once, by the first change

    def described(self) -> list[dict[str, Any]]:
        """Describe the branches from the top: position, role ("upper" or "lower"), path. Waits while they change."""
        with self.lock:
            return self._described()

    def _described(self) -> list[dict[str, Any]]:
        options = self._union.options
        paths = [("upper", options.upper)] if options.upper is not None else []
        paths += [("lower", lower) for lower in options.lowers]
        return [{"position": position, "role": role, "path": path} for position, (role, path) in enumerate(paths)]

    def change(self, asked: dict[str, Any], fds: list[int]) -> None:
        """Make one change: `asked` has `verb` ("add", "rm", "mv"), `path`, `at` (a position or None), `force`, and for
        "add" `hidden`: the mountpoints below the directory. `fds`: a descriptor of the directory, if it could be
        opened. For the verb "freeze" the path is a name. Raises: RefusedError."""
        with self.lock:
            try:
                self._change(asked, fds)
            except EndedError:
                raise RefusedError("it has been unmounted meanwhile") from None
            except OptionError as error:
                raise RefusedError(str(error)) from error
            except OSError as error:
                raise RefusedError(f"{asked.get('path')}: {error.strerror}") from error

    def _change(self, asked: dict[str, Any], fds: list[int]) -> None:
        calls = self._calls()
        self._have_helper(calls)
        verb, path, at = asked.get("verb"), asked.get("path"), asked.get("at")
        if verb == "freeze" and isinstance(path, str):
            self._freeze(calls, os.fsencode(path))
            return
        if verb not in ("add", "rm", "mv") or not isinstance(path, str) or not isinstance(at, int | None):
            raise RefusedError("the daemon does not understand the request")
        is_forced = bool(asked.get("force"))
        stack = branches.lowers(self._union)
        watched: list[CopiedUp] = []
        if verb == "add":
            if not fds:
                raise RefusedError(f"{path}: no directory was passed")
            self._check_place(path, fds[0], stack, is_forced=is_forced)
            hidden = tuple(tuple(map(os.fsencode, each)) for each in asked.get("hidden") or ())
            stack.insert(self._index(at, len(stack)), branches.open_lower(self._union, fds[0], path, hidden))
            self._restack(calls, stack)
            return
        branch = _find(stack, path, fds)
        stack.remove(branch)
        if verb == "mv":
            stack.insert(self._index(at, len(stack)), branch)
        elif not stack:
            raise RefusedError(f"{path} is the only lower: a union needs one")
        elif not is_forced:
            with _CopyUpsFrom(self._union, branch.path, watched):
                self._refuse_pointers(calls, branch)
                self._restack(calls, stack, watched)
            return
        self._restack(calls, stack)

    def _calls(self) -> Calls:
        """Return the object that runs functions on the union's thread. Raises RefusedError."""
        if self._traffic.calls is None:
            raise RefusedError("its transport does not change branches while it serves")
        return self._traffic.calls

    def _freeze(self, calls: Calls, name: bytes) -> None:
        """Make the upper a lower, under `name` beside it; b"": under its own name with a number."""
        numbers = count(1)
        while True:
            upper = os.fsencode(os.path.normpath(self._union.options.upper or ""))
            job = Freeze(self._union, name or b"%s.%d" % (os.path.basename(upper), next(numbers)))
            try:
                job.prepare()
                self._commit(calls, job)
            except FileExistsError:
                if name:
                    raise
                continue
            finally:
                job.close()
            log.info("the former upper is now the lower %r", self._union.options.lowers[0])
            return

    def _commit(self, calls: Calls, job: Freeze) -> None:
        until = time.monotonic() + _QUIET_S
        record, is_announced = self._record, self._announce(calls, job)

        def work() -> bool:
            if not calls.is_quiet():
                if time.monotonic() > until:
                    raise RefusedError("threads change its files without a pause: try again")
                return True
            self._prepare(is_announced)
            job.commit()
            if record is not None and is_announced:
                is_known = False
                try:
                    numbers = KeptNumbers(self._union)
                    while numbers.work():
                        pass
                    unfinished_change.announce(self._union, None)
                    is_known = self._tell_keeper is not None and self._tell_keeper()
                finally:
                    record.outdate(not is_known)  # before a request sees the new branches
            return False

        with self._undone_if_it_fails():
            calls.do(work)
        if record is not None and record.is_outdated:
            self._keep(calls)

    def _announce(self, calls: Calls, change: list[branches.Lower] | Freeze) -> bool:
        """Tell the keeper the change that is about to be made. Returns whether another daemon could continue if this
        one died during it."""
        record, tell = self._record, self._tell_keeper
        if record is None or tell is None:
            return False
        if record.is_changing:
            self._keep(calls)  # of the change before, for which the kernel has not yet dropped all names
        if record.is_changing or record.is_outdated:
            return False
        unfinished_change.announce(self._union, change)
        return tell()

    @contextmanager
    def _undone_if_it_fails(self) -> Iterator[None]:
        """If the body raises and the branches are unchanged, record that no change is under way."""
        before, record = self._union.options.lowers, self._record
        was_outdated = record is not None and record.is_outdated
        try:
            yield
        except EndedError:
            raise
        except BaseException:
            if self._union.options.lowers == before:
                unfinished_change.announce(self._union, None)
                if record is not None:
                    record.outdate(was_outdated)
            raise

    def _keep(self, calls: Calls) -> None:
        """After a change: send the keeper the new branches."""
        record, tell = self._record, self._tell_keeper
        if record is None or tell is None:
            return
        try:
            calls.do(KeptNumbers(self._union).work)
            unfinished_change.announce(self._union, None)
            if tell():
                record.outdate(False)
        except EndedError:
            raise
        except Exception:  # the change is made: the mount works, but ends with this daemon
            log.exception("the keeper could not be sent the new branches")

    def finish(self, stale: list[Invalidation]) -> None:
        """Finish a change of the lowers that a dead daemon had begun and this one has repeated: have the kernel drop
        `stale`, and send the keeper the branches. In a thread of its own. Preconditions: `lock` is held; it is
        released."""

        with _released(self.lock), suppress(EndedError):
            calls = self._calls()
            self._have_helper(calls)
            calls.do(partial(self._notify_kernel, calls, stale))
            self._wait_until_notified(calls)
            log.info("the lowers are now %s", ", ".join(map(repr, self._union.options.lowers)))

    def _notify_kernel(self, calls: Calls, stale: list[Invalidation]) -> bool:
        """On the union's thread."""
        calls.begin_notifying()(stale)
        return False

    def _index(self, at: int | None, count: int) -> int:
        """Return the index among `count` lowers that a position means; None: the top, -1: the bottom."""
        if at is None:
            return 0
        first = self._union.options.upper is not None
        if at == -1:
            return count
        if not first <= at <= count + first:
            why = "0 is the upper" if at == 0 else f"there are {count + first} other branches"
            raise RefusedError(f"there is no position {at} for it: {why}")
        return at - first

    def _restack(self, calls: Calls, stack: list[branches.Lower], copied_up: list[CopiedUp] | None = None) -> None:
        change: branches.Restack | None = None
        is_announced = self._announce(calls, stack)

        def work() -> bool:
            nonlocal change
            if change is None:
                if copied_up:
                    raise RefusedError(f"a file of it has just been copied up: {os.fsdecode(copied_up[0].path)}")
                self._prepare(is_announced)
                change = branches.Restack(self._union, stack, calls.begin_notifying())
            return change.work()

        with self._undone_if_it_fails():
            calls.do(work)
        self._wait_until_notified(calls)
        log.info("the lowers are now %s", ", ".join(map(repr, self._union.options.lowers)))

    def _wait_until_notified(self, calls: Calls) -> None:
        """Wait until the kernel has dropped all outdated names, then send the keeper the branches."""
        until = time.monotonic() + _NOTIFY_TIMEOUT_S
        while not calls.has_notified() and time.monotonic() < until:
            time.sleep(_POLL_S)
        if calls.has_notified():
            self._keep(calls)

    def _prepare(self, is_announced: bool) -> None:
        """On the union's thread: start the helper, and tell the keeper, before the first notification and the first new
        branch."""
        if self._record is not None and is_announced:
            self._record.begin_changing()
        elif self._record is not None:
            self._record.outdate()
        if self._traffic.view_offer is not None:
            self._traffic.view_offer.withdraw()

    def _have_helper(self, calls: Calls) -> None:
        """Before the first notification, start what aborts the connection where no other daemon would answer."""
        if self._has_helper:
            return
        self._has_helper = True
        helper = DeathHelper(self._connection)  # here, since unmounting its filesystem may take longer than a slice
        if self._history is not None:
            helper.keeper, helper.record = self._history.keeper, self._record
            helper.parent = self._history.channel if self._history.is_parent else None

        def start() -> bool:
            helper.start()
            return False

        calls.do(start)

    def _refuse_pointers(self, calls: Calls, branch: branches.Lower) -> None:
        """Raise RefusedError if objects of the upper depend on a branch."""
        fds: tuple[int, ...] = ()

        def work() -> bool:
            nonlocal fds
            fds = branches.descriptors(self._union, branch) or ()
            return False

        calls.do(work)
        if not fds:
            return
        try:
            found = list(pointers.pointers(*fds))
        finally:
            for fd in fds:
                os.close(fd)
        if found:
            raise RefusedError(
                f"the upper keeps {len(found)} objects that come from {branch.path}", found[:_SHOWN_MOST]
            )

    def _check_place(self, path: str, fd: int, stack: list[branches.Lower], *, is_forced: bool) -> None:
        """Raise RefusedError for a directory that must not be a branch."""
        st = os.fstat(fd)
        if os.minor(st.st_dev) == self._connection and os.major(st.st_dev) == 0:
            raise RefusedError(f"{path} lies in the union itself")
        here = (st.st_dev, st.st_ino)
        above = _ancestors(fd)
        for branch in stack:
            there = (branch.dev, branch.ino)
            if here == there:
                raise RefusedError(f"{path} is a branch already: {branch.path}")
            if not is_forced and (there in above or here in _ancestors(branch.root.fd())):
                raise RefusedError(f"{path} and the branch {branch.path} lie in each other")
        for role, root_fd in branches.writable(self._union):
            root = os.fstat(root_fd)
            if here == (root.st_dev, root.st_ino) or (root.st_dev, root.st_ino) in above:
                raise RefusedError(f"{path} lies in the {role}: changes of the union would change it")
            if here in _ancestors(root_fd):
                raise RefusedError(f"the {role} lies in {path}: the union would show it in itself")


@contextmanager
def _released(lock: threading.Lock) -> Iterator[None]:
    try:
        yield
    finally:
        lock.release()


class _CopyUpsFrom:
    """While this context lasts, copy-ups from the branch `path` are added to `found`."""

    def __init__(self, union: Union, path: str, found: list[CopiedUp]) -> None:
        self._ledger, self._path, self._found = union.ledger, path, found

    def __enter__(self) -> None:
        self._ledger.listeners = (*self._ledger.listeners, self._receive)

    def _receive(self, entry: CopiedUp) -> None:
        if entry.branch == self._path:
            self._found.append(entry)

    def __exit__(self, *_: object) -> None:
        self._ledger.listeners = tuple(each for each in self._ledger.listeners if each != self._receive)


def _find(stack: list[branches.Lower], path: str, fds: list[int]) -> branches.Lower:
    """Return the branch that a directory is: by the directory itself if it was passed, else by its name."""
    if fds:
        st = os.fstat(fds[0])
        found = [branch for branch in stack if (branch.dev, branch.ino) == (st.st_dev, st.st_ino)]
    else:
        found = [branch for branch in stack if branch.path == path]
    if not found:
        raise RefusedError(f"{path} is no lower of this union")
    return found[0]


def _ancestors(fd: int) -> set[tuple[int, int]]:
    """Return (st_dev, st_ino) of the directories above `fd`, as far as they can be reached."""
    found: set[tuple[int, int]] = set()
    with suppress(OSError):
        at = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
        while True:
            try:
                st = os.fstat(at)
                if (st.st_dev, st.st_ino) in found:
                    break
                found.add((st.st_dev, st.st_ino))
                above = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
            finally:
                os.close(at)
            at = above
    return found

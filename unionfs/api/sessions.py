"""Sessions: views of this machine that keep their changes, forked, compared and merged (`unionfs try --name`, `fork`).

Each method is one command of `unionfs`, in a process of its own: it makes namespaces, which a program with threads
cannot do in its own process. `AsyncSession` has the same methods as coroutines for asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

T = TypeVar("T")
StrPath = str | os.PathLike[str]

_CONFLICTS: Final = 1  # exit code of `unionfs merge`
_ENDING_S: Final = 10.0  # until a command that got SIGTERM gets SIGKILL


class SessionError(Exception):
    """A command of a session failed. `str()` is its message."""


class MergeConflict(NamedTuple):
    """A change of a fork that a change of its parent contradicts."""

    path: str  # of the fork's change
    fork: str  # what the fork did: added, deleted, changed (...)
    parent_path: str  # of the parent's change: `path`, or above or below it
    parent: str  # what the parent did


class MergeConflictError(SessionError):
    """Nothing was merged: `conflicts` lists the changes that contradict each other."""

    def __init__(self, why: str, conflicts: list[MergeConflict]) -> None:
        super().__init__(why)
        self.conflicts = conflicts  # immutable


class SessionChange(NamedTuple):
    """One path that a session has changed."""

    kind: str  # A: added, C: changed, D: deleted
    path: str  # absolute
    type: str  # file, directory, link ...
    size: int | None  # bytes of a file that is there
    changed: tuple[str, ...]  # of a C: type, content, mode, owner, xattrs, mtime


class _Call(NamedTuple):
    """A command, and the function that converts its result."""

    argv: list[str]
    parse: Callable[[subprocess.CompletedProcess[str]], Any]
    stdin: str | None = None
    timeout_s: float | None = None
    cwd: StrPath | None = None


class _Named:
    """The commands of one session."""

    def __init__(self, name: str, *, root: StrPath | None = None) -> None:
        """`name`: of a session, which the first `run` makes if there is none. `root`: the store of containers."""
        self.name: Final = name
        self._root: Final = [] if root is None else ["--root", os.path.abspath(root)]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def _command(self, verb: str, *words: str) -> list[str]:
        # -P: no module is imported from the working directory, whose files may belong to other users.
        return [sys.executable, "-P", "-m", "unionfs", verb, *self._root, *words]

    def _run(
        self,
        command: Sequence[StrPath],
        options: Iterable[str],
        stdin: str | None,
        timeout: float | None,
        cwd: StrPath | None,
    ) -> _Call:
        words = [os.fspath(word) for word in command]
        argv = self._command("try", "--quiet", "--name", self.name, *options, "--", *words)

        def parse(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
            return subprocess.CompletedProcess(words, done.returncode, done.stdout, done.stderr)

        return _Call(argv, parse, stdin or "", timeout, cwd)

    def _fork(self, name: str) -> _Call:
        made = type(self)(name)
        vars(made)["_root"] = self._root
        return _Call(self._command("fork", self.name, name), _checked(lambda _: made))

    def _changes(self) -> _Call:
        return _Call(self._command("diff", "--json", self.name), _checked(_changes_in))

    def _merge(self, paths: Iterable[str], choice: str, into: str, *, keep: bool) -> _Call:
        if choice not in ("", "theirs", "ours"):
            raise ValueError(f"choice {choice!r}: not theirs or ours")
        words = ["--json", *([f"--{choice}"] if choice else []), *(["--into", into] if into else [])]
        words += ["--keep"] if keep else []
        return _Call(self._command("merge", *words, self.name, *paths), _merged)

    def _drop(self) -> _Call:
        return _Call(self._command("drop", self.name), _checked(lambda _: None))


class Session(_Named):
    """A session by its name. Raises SessionError if a command fails."""

    def run(
        self,
        command: Sequence[StrPath],
        *,
        options: Iterable[str] = (),
        stdin: str | None = None,
        timeout: float | None = None,
        cwd: StrPath | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the session, made if there is none, and wait for its end. `options`: further ones of
        `unionfs try` (`--network=none`). `timeout`: seconds until it gets SIGTERM, and SIGKILL 10 seconds later. `cwd`:
        its working directory.

        Returns its exit code (125 if unionfs failed) and output; bytes that are not UTF-8 are surrogate escapes (PEP
        383). Raises: subprocess.TimeoutExpired.
        """
        done: subprocess.CompletedProcess[str] = _do(self._run(command, options, stdin, timeout, cwd))
        return done

    def fork(self, name: str) -> Session:
        """Make another session that begins with the files that this one shows now; later changes of one do not show in
        the other."""
        made: Session = _do(self._fork(name))
        return made

    def changes(self) -> list[SessionChange]:
        """The paths that the session has changed on this machine's files, also before it was forked."""
        found: list[SessionChange] = _do(self._changes())
        return found

    def merge(
        self, paths: Iterable[str] = (), *, choice: str = "", into: str = "", keep: bool = False
    ) -> list[SessionChange]:
        """Merge the changes since the fork, or those at and below `paths`, into the session that this one was forked
        from, or `into` another one. `choice` decides conflicts: "theirs" (this session's changes) or "ours". Returns
        the changes. The session is removed unless `keep` or `paths`. Raises: MergeConflictError."""
        done: list[SessionChange] = _do(self._merge(paths, choice, into, keep=keep))
        return done

    def drop(self) -> None:
        """Remove the session and its changes."""
        _do(self._drop())


class AsyncSession(_Named):
    """As Session, for asyncio. A command is killed if its coroutine is cancelled."""

    async def run(
        self,
        command: Sequence[StrPath],
        *,
        options: Iterable[str] = (),
        stdin: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - as in Session
        cwd: StrPath | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """As Session.run. Raises: TimeoutError."""
        done: subprocess.CompletedProcess[str] = await _do_async(self._run(command, options, stdin, timeout, cwd))
        return done

    async def fork(self, name: str) -> AsyncSession:
        """As Session.fork."""
        made: AsyncSession = await _do_async(self._fork(name))
        return made

    async def changes(self) -> list[SessionChange]:
        """As Session.changes."""
        found: list[SessionChange] = await _do_async(self._changes())
        return found

    async def merge(
        self, paths: Iterable[str] = (), *, choice: str = "", into: str = "", keep: bool = False
    ) -> list[SessionChange]:
        """As Session.merge."""
        done: list[SessionChange] = await _do_async(self._merge(paths, choice, into, keep=keep))
        return done

    async def drop(self) -> None:
        """As Session.drop."""
        await _do_async(self._drop())


def _do(call: _Call) -> Any:
    pipe = subprocess.PIPE
    with subprocess.Popen(call.argv, stdin=pipe, stdout=pipe, stderr=pipe, cwd=call.cwd) as process:
        try:
            out, err = process.communicate(_bytes(call.stdin), timeout=call.timeout_s)
        except BaseException:
            process.terminate()  # it passes it on to the command, and cleans up
            try:
                process.communicate(timeout=_ENDING_S)
            except subprocess.TimeoutExpired:
                process.kill()  # then the command is killed
                process.communicate()
            raise
    return _result(call, process.returncode, out, err)


async def _do_async(call: _Call) -> Any:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*call.argv, stdin=pipe, stdout=pipe, stderr=pipe, cwd=call.cwd)
    try:
        async with asyncio.timeout(call.timeout_s):
            out, err = await process.communicate(_bytes(call.stdin))
    except BaseException:
        await asyncio.shield(_end(process))
        raise
    code = process.returncode
    assert code is not None
    return _result(call, code, out, err)


async def _end(process: asyncio.subprocess.Process) -> None:
    """As `_do` ends a process."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.communicate(), _ENDING_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def _bytes(text: str | None) -> bytes:
    return (text or "").encode(errors="surrogateescape")


def _result(call: _Call, code: int, out: bytes, err: bytes) -> Any:
    texts = (said.decode(errors="surrogateescape") for said in (out, err))
    return call.parse(subprocess.CompletedProcess(call.argv, code, *texts))


def _checked(parse: Callable[[str], T]) -> Callable[[subprocess.CompletedProcess[str]], T]:
    def parse_checked(done: subprocess.CompletedProcess[str]) -> T:
        if done.returncode:
            raise SessionError(done.stderr.strip())
        return parse(done.stdout)

    return parse_checked


def _merged(done: subprocess.CompletedProcess[str]) -> list[SessionChange]:
    if done.returncode == _CONFLICTS and done.stdout:
        conflicts = [MergeConflict(**each) for each in json.loads(done.stdout)["conflicts"]]
        raise MergeConflictError(done.stderr.strip(), conflicts)
    return _checked(lambda text: [_change(each) for each in json.loads(text)["changes"]])(done)


def _changes_in(text: str) -> list[SessionChange]:
    return [_change(each) for each in json.loads(text)["changes"]]


def _change(fields: dict[str, Any]) -> SessionChange:
    return SessionChange(
        fields["kind"], fields["path"], fields["type"], fields.get("size"), tuple(fields.get("changed", ()))
    )

"""The store of containers: a directory for each, with its record and its writable branch.

    ROOT/containers/ID/container.json   the record, replaced atomically
    ROOT/containers/ID/outcome          its exit code, for `wait` on a container that is removed when it ends
    ROOT/containers/ID/{upper,work,merged}
    ROOT/containers/ID/upper.NAME       a former upper (core.freeze); work/frozen lists them
    ROOT/containers/ID/changing         locked while its branches are changed
    ROOT/containers/ID/record.lock      locked while its state is changed, beside .lock, which is shared then
    ROOT/containers/.lock               locked while containers are made, renamed or removed; hundreds may start at once
    ROOT/containers/.new                the one that is being made
    ROOT/container-names                its name (containers.name_index)

ROOT is `$XDG_DATA_HOME/unionfs` or `--root DIR`. The lock is in ROOT, and not in `$XDG_RUNTIME_DIR`, so
that all sessions of the owner use the same lock. Files are opened by `unionfs.store_files`: the owner may have replaced
them by links, fifos or directories.

Knows files. Does not know the content of records (`containers.record`), unions, namespaces or mounts.

Lowers of a container may be directories upper.NAME of another one, which it was forked from or which was merged into
it. If that other container is removed, its directory stays with these branches alone, without a record, until no
container uses them.

Invariants: a directory whose name starts with a dot is half made or half removed and is not a container. The process
that prepares a container has claimed it (`starting`), so that no upper is ever the writable branch of two containers.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from unionfs import store_files
from unionfs.containers import names, record
from unionfs.containers.errors import AlreadyRunningError, BrokenRecordError, ContainerError, NoSuchContainerError
from unionfs.containers.name_index import NameIndex
from unionfs.containers.record import Container, process_started

_RECORD: Final = "container.json"
_LOCK: Final = ".lock"
_OUTCOME: Final = "outcome"
_CHANGING: Final = "changing"
_RECORD_LOCK: Final = "record.lock"
_UNKNOWN: Final = " " * 8
_REMOVING: Final = ".removing-"
_NEW: Final = ".new"
_OLD_NEW: Final = ".new-"  # and an id: what an older program was making when it was killed
_FROZEN: Final = "upper."
_ID: Final = re.compile("[0-9a-f]{32}")


def outcome(fd: int) -> int | None:
    """The exit code in an open `outcome` file, which may be removed; None if it was not written."""
    text = os.pread(fd, len(_UNKNOWN), 0).strip()
    return int(text) if text.isdigit() else None


def _changed(container: Container, **changes: Any) -> Container:
    """The container with changed fields of its state."""
    return container._replace(state=container.state._replace(**changes))


ELSEWHERE: Final = "--root DIR, or UNIONFS_ROOT in the environment, names another directory for containers and images"


class ContainerStore:
    """All containers of one root directory. Several processes may use the same root at once."""

    def __init__(self, root: str | None = None) -> None:
        # Without links: records name branches of other containers by their paths, which must be equal for all commands.
        self.root: Final = os.path.realpath(root or store_files.default_root())
        self.containers: Final = os.path.join(self.root, "containers")
        self._index: Final = NameIndex(self.root, self._ids, self._name_of)

    def add(self, container: Container, prepare: Callable[[str], None] | None = None) -> Container:
        """Make the directory of a new container (`record.new`), with empty upper, work and
        merged directories, and a random name unless it has a name. `prepare` gets the path of the upper before it is
        used.

        Raises: ContainerError for a bad or taken name, OSError as the filesystem reports it.
        """
        with self._locked():
            if container.parent:
                self.load(container.parent)  # or its branches would be removed
            self._check_name(container.name)
            container = container._replace(name=container.name or names.choose(self._index.has))
            new = os.path.join(self.containers, _NEW)
            if os.path.lexists(new):  # of a process that was killed
                self._remove(new)
            try:
                self._index.put(container.name, container.id)
                os.mkdir(new, 0o700)
                for part in ("upper", "work", "merged"):
                    os.mkdir(os.path.join(new, part), 0o755)
                # The root of the merged tree shows the upper's mode, so the upper gets the lower's.
                is_file = container.config.rootfs.file is not None  # not mounted yet
                mode = 0o755 if is_file else stat.S_IMODE(os.stat(container.config.rootfs.lowers[0]).st_mode)
                os.chmod(os.path.join(new, "upper"), mode)
                if prepare is not None:
                    prepare(os.path.join(new, "upper"))
                self._write(new, container)
                os.rename(new, container.directory)
            except OSError:
                self._index.drop(container.name, container.id)
                with contextlib.suppress(OSError):
                    self._remove(new)  # so that a full disk has the space again
                raise
        return container

    def check_name(self, name: str) -> None:
        """Raises: ContainerError if a new container may not have this name; "" is any name."""
        with self._locked():
            self._check_name(name)

    def _check_name(self, name: str, owner: str = "") -> None:
        """As `check_name`; `owner`, an id, may have it already. Preconditions: the lock is held."""
        if self._index.prepare():
            self._sweep()
        if not name:
            return
        names.check(name)
        if self._index.holder(name) not in (None, owner):
            hint = f"remove that container (unionfs rm {name}) or choose another name"
            raise ContainerError("", "", f"name taken: {name}", hint=hint)

    def load(self, container_id: str) -> Container:
        """The container with exactly this id. Raises: NoSuchContainerError, BrokenRecordError."""
        path = os.path.join(self.containers, container_id, _RECORD)
        try:
            data = store_files.read_file(path)
        except (FileNotFoundError, NotADirectoryError):
            raise NoSuchContainerError(container_id) from None
        except PermissionError as error:
            if error.errno == errno.EACCES:
                raise
            raise BrokenRecordError(container_id, path, error.strerror or str(error)) from error
        except OSError as error:
            raise BrokenRecordError(container_id, path, error.strerror or str(error)) from error
        try:
            found = record.from_json(self.root, container_id, data.decode())
        except ValueError as error:
            raise BrokenRecordError(container_id, path, str(error)) from error
        found = self._with_frozen(found)
        return self._with_outcome(found) if found.status == "exited" and found.state.exit_code is None else found

    def _with_frozen(self, container: Container) -> Container:
        """The container with the lowers that a freeze has made and, if it was killed, not recorded."""
        there = os.path.join(container.work, "frozen")
        try:
            listed = [os.readlink(os.path.join(there, name)) for name in sorted(os.listdir(there), reverse=True)]
        except OSError:
            return container
        lowers = container.config.rootfs.lowers
        frozen = [os.path.join(container.directory, os.path.basename(name)) for name in listed]
        new = [path for path in frozen if path not in lowers and os.path.basename(path).startswith(_FROZEN)]
        return container.with_lowers((*new, *lowers)) if new else container

    def _with_outcome(self, container: Container) -> Container:
        """The container with the exit code in `outcome`, if its monitor could not record it on a full disk."""
        fd = self.open_outcome(container)
        if fd is None:
            return container
        try:
            code = outcome(fd)
            return container if code is None else _changed(container, exit_code=code, ended=os.fstat(fd).st_mtime)
        finally:
            os.close(fd)

    def find(self, reference: str) -> Container:
        """The container with this name, this id, or the only one whose id begins with `reference`.

        Raises: NoSuchContainerError, BrokenRecordError; ContainerError if there are several.
        """
        for container in self.list():
            if reference in (container.name, container.id):
                return container
        return self.load(self._find_id(reference))

    def _find_id(self, reference: str) -> str:
        """The only id that begins with `reference`, also of a container with a broken record."""
        matches = [one for one in self._ids() if reference and one.startswith(reference) and self._has_record(one)]
        if len(matches) == 1:
            return matches[0]
        if not matches:
            raise NoSuchContainerError(reference, hint="unionfs ps -a lists all")
        ids = ", ".join(one[:12] for one in matches)
        raise ContainerError("", "", f"ambiguous id: {reference}", hint=f"it may be any of {ids}")

    def _has_record(self, container_id: str) -> bool:
        """Whether it is a container, and not the branches of one that was removed."""
        return os.path.lexists(os.path.join(self.containers, container_id, _RECORD))

    def list(self, broken: Callable[[BrokenRecordError], None] = lambda _: None) -> list[Container]:
        """All containers, oldest first. For a broken record `broken` is called, and the container is left out."""
        found = []
        for container_id in self._ids():
            try:
                found.append(self.load(container_id))
            except NoSuchContainerError:
                pass  # it was removed meanwhile
            except BrokenRecordError as error:
                broken(error)
            except PermissionError:
                pass  # of another user
        return sorted(found, key=lambda container: (container.created, container.id))

    def _name_of(self, container_id: str) -> str | None:
        """The name in a record, which is not checked; None if there is none."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            name = json.loads(store_files.read_file(os.path.join(self.containers, container_id, _RECORD)))["name"]
            return name if isinstance(name, str) else None
        return None

    def _ids(self) -> Sequence[str]:
        try:
            return [name for name in store_files.list_directory(self.containers) if not name.startswith(".")]
        except FileNotFoundError:
            return []

    def update(self, container: Container, **changes: Any) -> Container:
        """Write `changes` of the state to the record and return the new value. Other fields stay as they are on
        disk."""
        with self._record_locked(container.id):
            current = _changed(self.load(container.id), **changes)
            self._write(current.directory, current)
        return current

    def set_lowers(self, container: Container, lowers: tuple[str, ...], *, restacked: bool = False) -> Container:
        """Record that the container has other lowers now. `restacked`: they are not those of its image any more."""
        with self._locked():
            current = self.load(container.id).with_lowers(lowers)
            rootfs = current.config.rootfs
            rootfs = rootfs._replace(restacked=rootfs.restacked or restacked)
            current = current._replace(config=current.config._replace(rootfs=rootfs))
            self._write(current.directory, current)
        return current

    @contextlib.contextmanager
    def changing(self, container: Container) -> Iterator[Container]:
        """Context in which no other process changes the branches of a container, running or not. Waits for processes
        that change them. Yields its record, read after the wait. Raises: NoSuchContainerError."""
        with contextlib.ExitStack() as stack:
            self._hold(stack, container.directory, _CHANGING, container.name)
            yield self.load(container.id)

    def adopt(self, container: Container, heir: str) -> None:
        """Make the forks of a container, which was merged into `heir` (an id), forks of the heir. A fork from which the
        heir itself descends becomes a fork of the container's own parent."""
        with self._locked():
            known = {one.id: one for one in self.list()}
            line, at = {heir}, heir  # the heir and its ancestors
            while at in known and known[at].parent not in line:
                at = known[at].parent
                line.add(at)
            for one in known.values():
                if one.parent == container.id:
                    parent = container.parent if one.id in line else heir
                    self._write(one.directory, one._replace(parent=parent))

    def claim(self, container: Container) -> Container:
        """Record that this process prepares the container. Raises: ContainerError if it is running or being
        prepared."""
        with self._record_locked(container.id):
            current = self.load(container.id)
            if current.is_running():
                raise AlreadyRunningError(current.name)
            pid = os.getpid()
            claimed = _changed(current, status="starting", pid=pid, pid_started=process_started(pid), monitor=None)
            self._write(claimed.directory, claimed)
            path = os.path.join(claimed.directory, _OUTCOME)
            fd = store_files.open_file(path, os.O_WRONLY | os.O_CREAT)
            try:
                os.pwrite(fd, _UNKNOWN.encode("ascii"), 0)
            finally:
                os.close(fd)
        return claimed

    @contextlib.contextmanager
    def claimed(self, container: Container) -> Iterator[None]:
        """Context in which a container that does not run is not started. Raises: as `claim`."""
        self.claim(container)
        try:
            yield
        finally:
            try:
                self.unclaim(container, container.state.exit_code)
            except NoSuchContainerError:  # it was removed meanwhile
                pass
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise  # on a full disk the claim ends with this process (Container.is_running)

    def open_outcome(self, container: Container) -> int | None:
        """A descriptor for `outcome`; None if there is no such file yet."""
        try:
            return store_files.open_file(os.path.join(container.directory, _OUTCOME), os.O_RDONLY)
        except OSError:
            return None

    def note_outcome(self, container: Container, exit_code: int) -> None:
        """Write the exit code to `outcome`, in place, which needs no space on a full disk."""
        with contextlib.suppress(OSError):
            fd = store_files.open_file(os.path.join(container.directory, _OUTCOME), os.O_WRONLY)
            try:
                os.pwrite(fd, f"{exit_code:<{len(_UNKNOWN)}}".encode("ascii"), 0)
            finally:
                os.close(fd)

    def unclaim(self, container: Container, exit_code: int | None) -> Container:
        """Record that the container could not be started, with `exit_code`."""
        status = "created" if container.state.started is None else "exited"
        return self.update(container, status=status, pid=None, pid_started=None, monitor=None, exit_code=exit_code)

    def started(self, container: Container, pid: int, monitor: int | None = None, **changes: Any) -> Container:
        """Record that `pid` is now the container's process 1, and `monitor` its monitor."""
        return self.update(
            container,
            status="running",
            pid=pid,
            pid_started=process_started(pid),
            monitor=monitor,
            monitor_started=None if monitor is None else process_started(monitor),
            started=time.time(),
            ended=None,
            exit_code=None,
            **changes,
        )

    def exited(self, container: Container, exit_code: int, **changes: Any) -> Container:
        """Record how the container ended."""
        return self.update(
            container,
            status="exited",
            pid=None,
            pid_started=None,
            monitor=None,
            monitor_started=None,
            ended=time.time(),
            exit_code=exit_code,
            **changes,
        )

    def rename(self, container: Container, name: str) -> Container:
        """Give it another name. Raises ContainerError for a bad or taken one."""
        names.check(name)
        with self._locked():
            self._check_name(name, container.id)
            before = self.load(container.id)
            current = before._replace(name=name)
            if current != before:
                self._index.put(name, current.id)
                self._write(current.directory, current)
                self._index.drop(before.name, current.id)
        return current

    def remove(self, container: Container, remove_tree: Callable[[str], None], *, mine: bool = False) -> None:
        """Remove the container and all its files; `remove_tree` deletes a directory, including files of other owners.

        The container disappears from listings before anything is deleted; the next removal completes one that
        failed. `mine`: this process has claimed the container or is its monitor.
        Raises: ContainerError if it is running, OSError of `remove_tree`.
        """
        self.hide(container, mine=mine)
        self.finish_removals(container.id, remove_tree)

    def hide(self, container: Container, *, mine: bool = False) -> None:
        """Let the container disappear, for `finish_removals`. Raises: ContainerError if it is running."""
        with self._locked():
            current = self.load(container.id)
            if current.is_running() and not mine:
                hint = f"end it first: unionfs stop {current.name}, or rm --force"
                raise ContainerError("", "", f"still running: {current.name}", hint=hint)
            self._hide(current.id)
            self._index.drop(current.name, current.id)

    def remove_broken(self, container_id: str, remove_tree: Callable[[str], None]) -> None:
        """Like `remove`, for a container whose record cannot be read; it may be running."""
        with self._locked():
            self._hide(container_id)
        self.finish_removals(container_id, remove_tree)

    def _hide(self, container_id: str) -> None:
        """Let a container disappear: its directory, except branches that other containers use. Preconditions: the lock
        is held."""
        directory = os.path.join(self.containers, container_id)
        was_frozen = any(name.startswith(_FROZEN) for name in os.listdir(directory))
        used = self._used(container_id) if was_frozen else set()
        if used is not None and not any(path.startswith(directory + os.sep) for path in used):
            os.rename(directory, os.path.join(self.containers, _REMOVING + container_id))
            return
        os.unlink(os.path.join(directory, _RECORD))
        self._thin_out(container_id, used)

    def only_of(self, container: Container) -> set[str]:
        """The lowers of a container that are in its own directory, and that no other container has."""
        used = self._used(container.id)
        own = {path for path in container.config.rootfs.lowers if os.path.dirname(path) == container.directory}
        return set() if used is None else own - used

    def _used(self, besides: str) -> set[str] | None:
        """The lowers of all containers but one; None if they are not known, because a record cannot be read."""
        broken: list[BrokenRecordError] = []
        used = {lower for one in self.list(broken.append) if one.id != besides for lower in one.config.rootfs.lowers}
        return None if any(error.container_id != besides for error in broken) else used

    def _thin_out(self, container_id: str, used: set[str] | None) -> None:
        """Set branches of a container without a record aside for removal, except those that other containers use.
        Preconditions: the lock is held."""
        directory = os.path.join(self.containers, container_id)
        kept = False
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            if name.startswith(_FROZEN) and (used is None or path in used):
                kept = True
            else:
                os.rename(path, os.path.join(self.containers, f"{_REMOVING}{container_id}.{name}"))
        if not kept:
            os.rmdir(directory)

    def finish_removals(self, container_id: str, remove_tree: Callable[[str], None]) -> None:
        """Delete a container, then remains of earlier ones; failures of the latter are ignored. Raises: OSError."""
        for name in sorted(os.listdir(self.containers)):
            if name.startswith(_REMOVING + container_id):
                remove_tree(os.path.join(self.containers, name))
        if self._without_record():
            with self._locked():
                for one in self._without_record():
                    with contextlib.suppress(OSError):
                        self._thin_out(one, self._used(one))
        for name in os.listdir(self.containers):
            if name.startswith(_REMOVING):
                with contextlib.suppress(OSError):
                    remove_tree(os.path.join(self.containers, name))

    def _without_record(self) -> Sequence[str]:
        """The ids of removed containers of which branches are left."""
        return [one for one in self._ids() if _ID.fullmatch(one) and not self._has_record(one)]

    @contextlib.contextmanager
    def _record_locked(self, container_id: str) -> Iterator[None]:
        """Lock for a change of one record that reads no other one: other records may be changed meanwhile, but no
        container is made, renamed or removed. Raises: NoSuchContainerError."""
        with self._locked(shared=True), contextlib.ExitStack() as stack:
            self._hold(stack, os.path.join(self.containers, container_id), _RECORD_LOCK, container_id)
            yield

    @staticmethod
    def _hold(stack: contextlib.ExitStack, directory: str, lock: str, shown: str) -> None:
        """Hold a lock of a container until `stack` is closed. Raises: NoSuchContainerError with the name `shown`."""
        try:
            stack.enter_context(store_files.hold_lock(os.path.join(directory, lock)))
        except (FileNotFoundError, NotADirectoryError):
            raise NoSuchContainerError(shown) from None

    @contextlib.contextmanager
    def _locked(self, *, shared: bool = False) -> Iterator[None]:
        try:
            os.makedirs(self.containers, 0o700, exist_ok=True)
        except OSError as error:
            raise ContainerError.of("keeping containers", error, hint=ELSEWHERE) from error
        with store_files.hold_lock(os.path.join(self.containers, _LOCK), shared=shared):
            yield

    def _write(self, directory: str, container: Container) -> None:
        """Replace the record atomically."""
        new = os.path.join(directory, f".{_RECORD}.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        store_files.write_file(new, record.to_json(container).encode("ascii"))
        os.rename(new, os.path.join(directory, _RECORD))

    @staticmethod
    def _remove(path: str) -> None:
        """Remove the directory of a container that was not made to its end, if there is one."""
        from unionfs.trees.remove import remove_path  # imports ctypes, which no listing needs

        remove_path(path)

    def _sweep(self) -> None:
        """Remove what an older program was making when it was killed. Preconditions: the lock is held."""
        for name in os.listdir(self.containers):
            if name.startswith(_OLD_NEW):
                self._remove(os.path.join(self.containers, name))

"""`unionfs cp`: copy files between a container, running or not, and this machine."""

from __future__ import annotations

import os
import stat
import sys
import tarfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final, NamedTuple

from unionfs.cli import each
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import BROKEN_PIPE, FAILED, CommandError, failed, tell
from unionfs.containers import running, start, tarstreams
from unionfs.containers.copy import Copy
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore
from unionfs.launcher import mapped
from unionfs.launcher.errors import LaunchError
from unionfs.trees.open_beneath import open_in_root

_DESCRIPTION: Final = """\
Copy SOURCE, a file or a directory with all it holds, to DESTINATION; one of them is CONTAINER:PATH. A directory that
exists as DESTINATION gets the copy inside, or with SOURCE/. the content. What is copied belongs to you, or in the
container to root, unless --archive keeps the owners. Symlinks are copied as such, and none leads out of the container.
With - as DESTINATION a tar is written to standard output, and with - as SOURCE one is read and put into a directory."""


class Side(NamedTuple):
    """One end of a copy."""

    container: str  # empty: this machine
    path: str


def main(argv: list[str]) -> int:
    """Run `unionfs cp ARGV`."""
    parser = Parser("cp", _DESCRIPTION)
    parser.usage = "unionfs cp [OPTIONS] CONTAINER:PATH DESTINATION\n       unionfs cp [OPTIONS] SOURCE CONTAINER:PATH"
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("destination", metavar="DESTINATION")
    parser.add_argument("-a", "--archive", action="store_true", help="keep the owners")
    each.add_root(parser)
    arguments = parser.parse(argv)
    source, destination = side(arguments.source), side(arguments.destination)
    if bool(source.container) == bool(destination.container):
        parser.error("exactly one of SOURCE and DESTINATION must be CONTAINER:PATH")
    store = ContainerStore(arguments.root)
    container = store.find(source.container or destination.container)
    here = os.getcwd()

    def body(root_fd: int) -> None:
        if arguments.destination == "-":
            _stream_out(root_fd, source.path)
            return
        if arguments.source == "-":
            _stream_in(root_fd, destination.path, keep_owners=arguments.archive)
            return
        outside = Place(None, here)
        inside = Place(root_fd, "/")
        from_, to = (inside, outside) if source.container else (outside, inside)
        copy(from_, source.path, to, destination.path, keep_owners=arguments.archive)

    return reach(store, container, body)


def _stream_out(root_fd: int, path: str) -> None:
    above, name = os.path.split(("/" + path).rstrip("/"))
    is_content = name in ("", ".", "..")
    dir_fd = open_in_root(root_fd, path or "/" if is_content else above or "/", os.O_PATH | os.O_DIRECTORY)
    try:
        tarstreams.write(dir_fd, "." if is_content else name, sys.stdout.buffer, "." if is_content else name)
        sys.stdout.buffer.flush()
    finally:
        os.close(dir_fd)


def _stream_in(root_fd: int, path: str, *, keep_owners: bool) -> None:
    os.close(Place(root_fd, "/").open(path, os.O_PATH | os.O_DIRECTORY))
    tarstreams.extract(sys.stdin.buffer, root_fd, "/" + path.strip("/"), None if keep_owners else (0, 0))


def side(text: str) -> Side:
    """CONTAINER:PATH or a path; one with a slash before the colon is a path."""
    name, colon, path = text.partition(":")
    if not colon or not name or "/" in name or name.startswith("."):
        return Side("", text)
    return Side(name, path)


class Place(NamedTuple):
    """Where paths are looked up: in a container's root, or here."""

    root_fd: int | None
    base: str  # of relative paths

    def open(self, path: str, flags: int = os.O_PATH) -> int:
        """Raises: OSError naming the path."""
        whole = os.path.join(self.base, path)
        try:
            if self.root_fd is not None:
                return open_in_root(self.root_fd, whole, flags)
            return os.open(whole, flags | os.O_CLOEXEC)
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), path) from None


def copy(source: Place, from_path: str, target: Place, to_path: str, *, keep_owners: bool) -> None:
    """Copy as the verb promises. Raises: OSError."""
    with ExitStack() as stack:

        def opened(place: Place, path: str, flags: int = os.O_PATH) -> int:
            fd = place.open(path, flags)
            stack.callback(os.close, fd)
            return fd

        plain = from_path.rstrip("/") or "/"
        parent, name = os.path.split(plain)
        if name in ("", ".", ".."):  # the content of a directory
            from_fd, name = opened(source, plain, os.O_PATH | os.O_DIRECTORY), "."
        else:
            from_fd = opened(source, parent or ".", os.O_PATH | os.O_DIRECTORY)
        try:
            is_directory = stat.S_ISDIR(os.stat(name, dir_fd=from_fd, follow_symlinks=False).st_mode)
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), from_path) from None
        try:
            to_fd = opened(target, to_path)
        except FileNotFoundError:
            if to_path.endswith("/") and not is_directory:
                raise
            to_fd = -1
        if to_fd >= 0 and stat.S_ISDIR(os.fstat(to_fd).st_mode):
            new_name = name
        else:
            above, new_name = os.path.split(to_path.rstrip("/"))
            to_fd = opened(target, above or ".", os.O_PATH | os.O_DIRECTORY)
        Copy(None if keep_owners else (0, 0)).run(from_fd, name, to_fd, new_name)


def reach(store: ContainerStore, container: Container, body: Callable[[int], None]) -> int:
    """Call `body` with the container's root directory, in a process that has the container's ids; 0, or 1 after having
    told why not. Raises: CommandError."""
    if container.status == "running":
        return _in_running(container, body)
    store.claim(container)  # nobody starts it meanwhile
    try:
        return _in_stopped(store, container, body)
    finally:
        store.unclaim(container, container.exit_code)


def _in_running(container: Container, body: Callable[[int], None]) -> int:
    namespaces = running.enter(container, "cp")

    def work() -> int:
        namespaces.take_ids()
        return _told(body, namespaces.root_fd)

    try:
        return _wait(mapped.fork(None, 0, work))
    finally:
        namespaces.close()


def _in_stopped(store: ContainerStore, container: Container, body: Callable[[int], None]) -> int:
    job = start.job_of(container)

    def work() -> int:
        try:
            with start.mounted(job, store, container) as root_fd:
                return _told(body, root_fd)
        except LaunchError as error:
            print(tell(CommandError(str(error), hint=error.hint)), file=sys.stderr)
            return FAILED

    try:
        return _wait(mapped.fork(start.my_ids(), start.OWN_MOUNTS, work))
    except LaunchError as error:
        raise CommandError(str(error), hint=error.hint) from error


def _told(body: Callable[[int], None], root_fd: int) -> int:
    try:
        body(root_fd)
    except tarfile.TarError as error:
        print(tell(CommandError(failed("cp", "-", f"this is no tar: {error}"))), file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more at exit
        return BROKEN_PIPE
    except OSError as error:
        print(tell(CommandError(failed("cp", error.filename, error.strerror or str(error)))), file=sys.stderr)
        return FAILED
    return 0


def _wait(pid: int) -> int:
    return FAILED if os.waitpid(pid, 0)[1] else 0

"""The context of a build and its Containerfile: a directory, a git repository, or an unpacked tar from standard input
or a web server. No link in the last two leads out of them.

A stream that is no tar is a Containerfile with an empty context (docker build reference).
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final, NamedTuple

from layers import build_records, owners
from layers.attributes import Options
from layers.compression import CHUNK, Readable, decompressed
from layers.errors import LayerError, Refused
from layers.store import Store
from layers.tar_directory import unpack_tar
from unionfs import store_files
from unionfs.build import git_context, ignore
from unionfs.build.digests import Digests
from unionfs.build.git_context import Repository
from unionfs.build.trees import Directory, Filtered, Layers
from unionfs.containers.errors import ContainerError
from unionfs.trees.open_beneath import open_in_root

CONTAINERFILES: Final = ("Containerfile", "Dockerfile")
_HINT: Final = "-f FILE names another one; the usual names are Containerfile and Dockerfile"
_TEXT_MAX: Final = 8 << 20
_DIGESTS_MAX: Final = 256 << 20


class Context(NamedTuple):
    """An opened context."""

    path: str  # host path of its directory
    tree: Filtered
    digests: Digests
    record: str  # the name under which digests are remembered; empty: they are not remembered
    containerfile: str  # its name in messages
    text: str  # of the Containerfile


def of_directory(store: Store, path: str, named: str, ignorefile: str, stack: ExitStack) -> Context:
    """A directory as a context. `named` is the Containerfile of -f: a path, `-` for standard input; empty: the usual.

    Raises: ContainerError, OSError.
    """
    path = os.path.realpath(path)
    try:
        root_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ContainerError.of("opening the context", error) from error
    stack.callback(os.close, root_fd)
    shown, text = _containerfile(path, named)
    record = hashlib.sha256(os.fsencode(path)).hexdigest()
    digests = Digests(_recorded(store, record))
    excluded = ignore.of_context(
        root_fd, "" if shown == "-" else os.path.abspath(named or os.path.join(path, shown)), ignorefile
    )
    return Context(path, Filtered(Directory(root_fd, digests), excluded), digests, record, shown, text)


def of_stream(source: Readable, directory: Callable[[], str], named: str, ignorefile: str, stack: ExitStack) -> Context:
    """A tar, or a Containerfile, from a stream. `directory` makes a directory for it on demand. Raises: ContainerError,
    LayerError, OSError."""
    head = source.read(CHUNK)
    while len(head) < tarfile.BLOCKSIZE and (more := source.read(CHUNK)):
        head += more
    where = directory()
    path = os.path.join(where, "context")
    if not is_archive(io.BytesIO(head)):
        os.mkdir(path, 0o700)
        rest = head + _rest(source)
        return _foreign(path, "-", ignorefile, stack, rest.decode(errors="surrogateescape"))
    tar = os.path.join(where, "context.tar")
    with open(tar, "xb") as file:
        file.write(head)
        while data := source.read(CHUNK):
            file.write(data)
    unpack_tar(tar, path, Options(owners=owners.NOTED))
    os.unlink(tar)
    return _foreign(path, named, ignorefile, stack)


def of_repository(
    repository: Repository, directory: Callable[[], str], named: str, ignorefile: str, stack: ExitStack
) -> Context:
    """A git repository, or a directory of it, as a context. Raises: ContainerError, OSError."""
    path = git_context.fetch(repository, os.path.join(directory(), "context"))
    return _foreign(path, named, ignorefile, stack)


def _foreign(path: str, named: str, ignorefile: str, stack: ExitStack, text: str | None = None) -> Context:
    """The context in a directory with untrusted content; `text`: a Containerfile from another place."""
    root_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, root_fd)
    shown = named
    if text is None and named == "-":
        text = _containerfile(path, named)[1]
    elif text is None:
        shown, text = _containerfile_within(root_fd, named)
    excluded = ignore.of_context(root_fd, "" if shown == "-" else shown, ignorefile, is_foreign=True)
    tree = stack.enter_context(Layers([path]))
    return Context(path, Filtered(tree, excluded), Digests(), "", shown, text)


def _containerfile_within(root_fd: int, named: str) -> tuple[str, str]:
    """The name and the text of the Containerfile of an untrusted context."""
    for name in [named] if named else CONTAINERFILES:
        try:
            fd = open_in_root(root_fd, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ContainerError("reading the Containerfile", name, "it is no regular file")
            return name, _rest(file).decode(errors="surrogateescape")
    raise ContainerError("", "", f"there is no {named or 'Containerfile'} in the context", hint=_HINT)


def remember(store: Store, context: Context) -> None:
    """Keep the digests of a context's files for the next build. Precondition: in `store.adding`. Raises: OSError."""
    if context.record and context.digests.is_changed:
        build_records.write(store, "digests", context.record, context.digests.record())


def is_archive(source: Readable) -> bool:
    """Whether a stream begins with a tar, compressed or not: then ADD unpacks it."""
    try:
        for data in decompressed(source):
            tarfile.TarInfo.frombuf(data[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
            return True
    except (Refused, tarfile.HeaderError, ValueError):
        pass
    return False


@contextmanager
def stream_of(text: str) -> Iterator[Readable]:
    """The stream that `-` or a URL names. Raises: ContainerError, LayerError when a server does not send it."""
    if text == "-":
        yield sys.stdin.buffer
        return
    from layers.http_file import opened

    with opened(text) as body:
        yield body


def is_stream(text: str) -> bool:
    """Whether a context is no directory."""
    return text == "-" or text.startswith(("http://", "https://", "git://"))


def _containerfile(directory: str, named: str) -> tuple[str, str]:
    """The name for messages, and the text."""
    if named == "-":
        return "-", _rest(sys.stdin.buffer).decode(errors="surrogateescape")
    candidates = [named] if named else [os.path.join(directory, name) for name in CONTAINERFILES]
    if named and not os.path.isabs(named):
        candidates.append(os.path.join(directory, named))  # podman looks there, too
    for path in candidates:
        if not os.path.exists(path):
            continue
        if stat.S_ISDIR(os.stat(path).st_mode):
            raise ContainerError("reading the Containerfile", path, "it is a directory")
        with open(path, "rb") as file:
            data = file.read(_TEXT_MAX + 1)
        if len(data) > _TEXT_MAX:
            raise ContainerError("reading the Containerfile", path, f"it is larger than {_TEXT_MAX} bytes")
        return (named or os.path.basename(path)), data.decode(errors="surrogateescape")
    raise ContainerError("", "", f"there is no {named or 'Containerfile'} in {directory}", hint=_HINT)


def _rest(source: Readable) -> bytes:
    found = b""
    while data := source.read(CHUNK):
        found += data
        if len(found) > _TEXT_MAX:
            raise LayerError("reading the Containerfile", "-", f"it is larger than {_TEXT_MAX} bytes")
    return found


def _recorded(store: Store, record: str) -> bytes:
    try:
        return store_files.read_file(os.path.join(build_records.directory(store, "digests"), record), _DIGESTS_MAX)
    except OSError:
        return b""

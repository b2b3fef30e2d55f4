"""The sources of one COPY or ADD, found in their tree, and the digest of all copied objects.

As in BuildKit, the digest covers names, kinds, modes, owners, data, targets and attributes, but no times.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from layers.safe_open import Path
from unionfs.build.patterns import PatternError, Patterns, is_glob, name_pattern
from unionfs.build.source import ContainerfileError, Place
from unionfs.build.trees import Tree, TreeObject
from unionfs.containers.errors import ContainerError


class CopiedObject(NamedTuple):
    """One object that is copied, with its path below the source. Its data are in `tree` or `data`."""

    below: Path  # () for the source itself
    found: TreeObject
    tree: Tree | None = None
    data: bytes = b""  # of a heredoc

    def digest(self) -> str:
        if self.tree is None:
            return hashlib.sha256(self.data).hexdigest()
        return self.tree.digest(self.found)


class Source(Protocol):
    """A file or directory that is copied."""

    @property
    def name(self) -> bytes:
        """The name of the copy in a directory."""

    @property
    def is_dir(self) -> bool: ...

    def objects(self) -> Iterator[CopiedObject]:
        """All that is copied, each directory before its content; the first is the source itself. Raises: OSError."""


class TreeSource(NamedTuple):
    """A source within a tree."""

    tree: Tree
    path: Path  # resolved
    name: bytes
    is_dir: bool
    excluded: Patterns

    def objects(self) -> Iterator[CopiedObject]:
        for found in self.tree.walk(self.path):
            below = found.path[len(self.path) :]
            whole = os.fsdecode(b"/".join(below if self.is_dir else (self.name,)))
            if (below or not self.is_dir) and self.excluded and self.excluded.fits(whole):
                continue
            if found.kind != stat.S_IFSOCK:  # no tar can hold one
                yield CopiedObject(below, found, self.tree)


class TextSource(NamedTuple):
    """A heredoc as a file."""

    name: bytes
    data: bytes

    @property
    def is_dir(self) -> bool:
        return False

    def objects(self) -> Iterator[CopiedObject]:
        kind = stat.S_IFREG
        yield CopiedObject(
            (), TreeObject((self.name,), kind, 0o644, 0, 0, len(self.data), 0, 0, (0, 0), 1), None, self.data
        )


class Choice(NamedTuple):
    """The sources that the arguments of a COPY name."""

    sources: list[Source]
    must_be_directory: bool  # the destination must be a directory: there are, or may be, several sources


def choose(tree: Tree, texts: Sequence[str], excluded: Patterns, place: Place, what: str) -> list[TreeSource]:
    """The sources that `texts` name in a tree, which `what` describes. Raises: ContainerError."""
    found: list[TreeSource] = []
    for text in texts:
        parts = _parts(text)
        try:
            matches = _matches(tree, parts) if is_glob(text) else [parts]
            for match in matches:
                path = tree.resolve(match)
                name = match[-1] if match else b""
                found.append(TreeSource(tree, path, name, tree.look(path).is_dir, excluded))
        except PatternError as error:
            raise ContainerfileError(place, str(error)) from None
        except OSError as error:
            raise _missing(text, error, place, what) from None
    if not found:
        raise ContainerError("", str(place), f"nothing in {what} matches {' '.join(texts)}")
    return found


def digest(sources: Sequence[Source], mode: int | None = None) -> str:
    """The digest of all copied objects; `mode` is that of --chmod. Raises: OSError."""
    hash_ = hashlib.sha256()
    for source in sources:
        _put(hash_, b"source", source.name if not source.is_dir else b"")
        for taken in source.objects():
            found = taken.found
            if found.kind == stat.S_IFREG:
                data = taken.digest().encode()
            elif found.kind == stat.S_IFLNK and taken.tree is not None:
                data = taken.tree.target(found)
            else:
                data = b"%d:%d" % found.device
            is_link = found.kind == stat.S_IFLNK
            facts = (found.kind, 0 if is_link else found.mode if mode is None else mode, found.uid, found.gid)
            _put(hash_, b"/".join(taken.below), b"%d %o %d %d" % facts, data)
            for name, value in sorted(taken.tree.xattrs(found).items()) if taken.tree is not None else ():
                _put(hash_, os.fsencode(name), value)
    return hash_.hexdigest()


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def _put(hash_: _Hash, *parts: bytes) -> None:
    for part in parts:
        hash_.update(b"%d:%s" % (len(part), part))


_ABOVE: Final = ("", ".", "..")


def _parts(text: str) -> Path:
    """The names of a path below the root of its tree; `..` of the root is the root."""
    done: list[str] = []
    for name in text.split("/"):
        if name == "..":
            del done[-1:]
        elif name not in _ABOVE:
            done.append(name)
    return tuple(map(os.fsencode, done))


def _matches(tree: Tree, parts: Path) -> list[Path]:
    """The paths that fit, in order."""
    found: list[Path] = [()]
    for part in parts:
        text = os.fsdecode(part)
        pattern = name_pattern(text)
        below: list[Path] = []
        for path in found:
            try:
                real = tree.resolve(path)
                if not tree.look(real).is_dir:
                    continue
                names = [child.path[-1] for child in tree.children(real)]
            except FileNotFoundError:
                continue
            below += [(*path, name) for name in names if pattern.fullmatch(os.fsdecode(name))]
        found = below
    return found


def _missing(text: str, error: OSError, place: Place, what: str) -> ContainerError:
    why = error.strerror or str(error)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        why = f"not in {what}" if "excluded" not in why else why
        hint = "paths are relative to the context, without the names in the ignore file" if "context" in what else ""
        return ContainerError("", str(place), f"{text}: {why}", hint=hint)
    return ContainerError("", str(place), f"{text}: {why}")

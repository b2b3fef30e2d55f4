"""Trees that COPY and ADD copy from, with one interface: a context, or the union of layers (a stage, an image, an
unpacked archive). No name or link leads out of them: names are opened beneath their root, links are resolved within it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, Protocol

from layers.safe_open import Directories, Path
from layers.tree import LayerTrees, Node, View, target, xattrs
from unionfs.build.digests import Digests, digest_of
from unionfs.build.patterns import Patterns

_LINKS_MAX: Final = 40  # path_resolution(7)


class TreeObject(NamedTuple):
    """A file, directory or other object of a tree."""

    path: Path  # in the tree
    kind: int  # S_IFMT bits
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: tuple[int, int]  # st_dev, st_ino
    nlink: int
    device: tuple[int, int] = (0, 0)

    @property
    def is_dir(self) -> bool:
        return self.kind == stat.S_IFDIR


class Tree(Protocol):
    """The interface of a tree. All methods raise OSError; ENOENT if the path does not exist."""

    def resolve(self, path: Path) -> Path:
        """The path with all its links resolved within the tree."""

    def look(self, path: Path) -> TreeObject:
        """The object at a resolved path."""

    def children(self, path: Path) -> list[TreeObject]:
        """The content of a directory, sorted by name, without excluded names."""

    def walk(self, path: Path) -> Iterator[TreeObject]:
        """The object at a resolved path, then all objects below it, each directory before its content."""

    def target(self, found: TreeObject) -> bytes:
        """The target of a symlink."""

    def open(self, found: TreeObject) -> int:
        """A descriptor of a file for reading."""

    def digest(self, found: TreeObject) -> str:
        """The digest of a file's data."""

    def xattrs(self, found: TreeObject) -> dict[str, bytes]:
        """The extended attributes that a copy keeps."""


class Directory:
    """A directory of this machine. All in it belongs to root (Dockerfile reference, "COPY --chown")."""

    def __init__(self, root_fd: int, digests: Digests) -> None:
        self._directories: Final = Directories(root_fd)
        self._digests: Final = digests

    def resolve(self, path: Path) -> Path:
        return _resolved(path, self._link)

    def _link(self, path: Path) -> bytes | None:
        """The target of a link; None for anything else."""
        fd = self._directories.fd(path[:-1])
        st = os.stat(path[-1], dir_fd=fd, follow_symlinks=False)
        return os.readlink(path[-1], dir_fd=fd) if stat.S_ISLNK(st.st_mode) else None

    def look(self, path: Path) -> TreeObject:
        if not path:
            return _of_stat(path, os.fstat(self._directories.root_fd))
        return _of_stat(path, os.stat(path[-1], dir_fd=self._directories.fd(path[:-1]), follow_symlinks=False))

    def children(self, path: Path) -> list[TreeObject]:
        with os.scandir(self._directories.fd(path)) as entries:
            found = [_of_stat((*path, os.fsencode(entry.name)), entry.stat(follow_symlinks=False)) for entry in entries]
        return sorted(found, key=lambda one: one.path)

    def walk(self, path: Path) -> Iterator[TreeObject]:
        return _walk(self, path)

    def target(self, found: TreeObject) -> bytes:
        return os.readlink(found.path[-1], dir_fd=self._directories.fd(found.path[:-1]))

    def open(self, found: TreeObject) -> int:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        fd = os.open(found.path[-1], flags, dir_fd=self._directories.fd(found.path[:-1]))
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "it is not a regular file any more", _shown(found.path))
        return fd

    def digest(self, found: TreeObject) -> str:
        return self._digests.of(found.path, found, lambda: self.open(found))

    def xattrs(self, found: TreeObject) -> dict[str, bytes]:
        return {}  # attributes of files of this machine are not copied


class Filtered:
    """A context: a tree without the names of its ignore file, in which all objects belong to root."""

    def __init__(self, tree: Tree, excluded: Patterns) -> None:
        self._tree: Final = tree
        self._excluded: Final = excluded

    def resolve(self, path: Path) -> Path:
        return self._tree.resolve(path)

    def look(self, path: Path) -> TreeObject:
        if self._is_excluded(path) and not self._excluded.takes_back:
            raise FileNotFoundError(errno.ENOENT, "it is excluded by the ignore file", _shown(path))
        return _roots(self._tree.look(path))

    def children(self, path: Path) -> list[TreeObject]:
        return [_roots(found) for found in self._tree.children(path) if not self._is_excluded(found.path)]

    def walk(self, path: Path) -> Iterator[TreeObject]:
        top = self.look(path)
        held: list[TreeObject] = []  # excluded directories above objects that are included again
        todo = [top]
        while todo:
            found = todo.pop()
            while held and found.path[: len(held[-1].path)] != held[-1].path:
                held.pop()
            if not self._is_excluded(found.path):
                yield from held
                held.clear()
                yield _roots(found)
            elif found.is_dir and self._excluded.takes_back:
                held.append(_roots(found))
            else:
                continue
            if found.is_dir:
                todo += reversed(self._tree.children(found.path))

    def hidden(self, path: Path) -> Iterator[Path]:
        """The excluded paths below a path. A directory is listed without its content, unless some of its content is
        included again: then the excluded paths in it are listed."""
        todo = [path]
        while todo:
            for found in self._tree.children(todo.pop()):
                if not self._is_excluded(found.path):
                    if found.is_dir:
                        todo.append(found.path)
                elif found.is_dir and self._excluded.takes_back and any(True for _ in self.walk(found.path)):
                    todo.append(found.path)
                else:
                    yield found.path

    def target(self, found: TreeObject) -> bytes:
        return self._tree.target(found)

    def open(self, found: TreeObject) -> int:
        return self._tree.open(found)

    def digest(self, found: TreeObject) -> str:
        return self._tree.digest(found)

    def xattrs(self, found: TreeObject) -> dict[str, bytes]:
        return self._tree.xattrs(found)

    def _is_excluded(self, path: Path) -> bool:
        return bool(self._excluded) and bool(path) and self._excluded.fits(_shown(path))


class Layers:
    """The union of a stack of layers as a tree, for `with`. Preconditions: this process has the ids of its files."""

    def __init__(self, directories: Iterable[str]) -> None:
        self._directories: Final = tuple(directories)  # host paths, top first
        self._branches: Final = LayerTrees()
        self.view: Final[View] = self._branches.view(self._directories)

    def __enter__(self) -> Layers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._branches.__exit__(None, None, None)

    def resolve(self, path: Path) -> Path:
        return _resolved(path, self._link)

    def resolve_new(self, path: Path) -> Path:
        """As `resolve`, but the end of the path need not exist. Raises: ELOOP."""
        return _resolved(path, lambda known: self._link(known) if self.find(known) is not None else None)

    def _link(self, path: Path) -> bytes | None:
        node = self._node(path)
        return target(node) if node.kind == stat.S_IFLNK else None

    def find(self, path: Path) -> Node | None:
        """The object at a resolved path; None if there is none."""
        return self.view.find(path) if self._directories else None

    def _node(self, path: Path) -> Node:
        node = self.find(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), _shown(path))
        return node

    def look(self, path: Path) -> TreeObject:
        return _of_node(path, self._node(path))

    def children(self, path: Path) -> list[TreeObject]:
        node = self._node(path)
        return [_of_node((*path, name), child) for name, child in self.view.children(node).items()]

    def walk(self, path: Path) -> Iterator[TreeObject]:
        return _walk(self, path)

    def target(self, found: TreeObject) -> bytes:
        return target(self._node(found.path))

    def open(self, found: TreeObject) -> int:
        place = self._node(found.path).data
        path_fd = place.branch.open_path(place.path)
        try:
            return os.open(f"/proc/self/fd/{path_fd}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(path_fd)

    def digest(self, found: TreeObject) -> str:
        return digest_of(self.open(found))

    def xattrs(self, found: TreeObject) -> dict[str, bytes]:
        return xattrs(self._node(found.path))


def _walk(tree: Tree, path: Path) -> Iterator[TreeObject]:
    todo = [tree.look(path)]
    while todo:
        found = todo.pop()
        yield found
        if found.is_dir:
            todo += reversed(tree.children(found.path))


def _roots(found: TreeObject) -> TreeObject:
    return found._replace(uid=0, gid=0) if found.uid or found.gid else found


class _Links(Protocol):
    def __call__(self, path: Path) -> bytes | None: ...


def _resolved(path: Path, link: _Links) -> Path:
    """path_resolution(7) with the tree as the root directory. Raises: ENOENT, ELOOP."""
    done: list[bytes] = []
    todo = [name for name in reversed(path) if name not in (b"", b".")]
    followed = 0
    while todo:
        name = todo.pop()
        if name == b"..":
            del done[-1:]
            continue
        goal = link((*done, name))
        if goal is None:
            done.append(name)
            continue
        followed += 1
        if followed > _LINKS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), _shown(path))
        if goal.startswith(b"/"):
            done.clear()
        todo += [part for part in reversed(goal.split(b"/")) if part not in (b"", b".")]
    return tuple(done)


def _of_stat(path: Path, st: os.stat_result) -> TreeObject:
    kind = stat.S_IFMT(st.st_mode)
    is_device = kind in (stat.S_IFCHR, stat.S_IFBLK)
    device = (os.major(st.st_rdev), os.minor(st.st_rdev)) if is_device else (0, 0)
    mode = stat.S_IMODE(st.st_mode)
    inode = (st.st_dev, st.st_ino)
    return TreeObject(path, kind, mode, 0, 0, st.st_size, st.st_mtime_ns, st.st_ctime_ns, inode, st.st_nlink, device)


def _of_node(path: Path, node: Node) -> TreeObject:
    return TreeObject(
        *(path, node.kind, node.mode, node.uid, node.gid, node.size, node.mtime_ns, 0, node.inode, node.nlink),
        node.device,
    )


def _shown(path: Path) -> str:
    return os.fsdecode(b"/".join(path))

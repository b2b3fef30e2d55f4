"""Read layer directories as trees: one of them (`LayerTree`), or several merged (`View`). Writes nothing.

Knows the marks of every dialect (`unionfs.markers`) and noted owners. Does not know tars or images.

A directory of a view is merged from directories of several layers, its *sources*, top first: the entries and marks of a
higher one hide those of lower ones. Directories with equal sources show the same tree.
"""

from __future__ import annotations

import os
import resource
import stat
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, NamedTuple, Self

from layers import owners
from layers.errors import LayerError
from layers.fingerprint import content_of, read_xattrs
from layers.safe_open import OPEN_DIRECTORIES_MAX, Directories, Path
from unionfs import markers
from unionfs.syscalls import files
from unionfs.trees import walk
from unionfs.trees.open_beneath import is_gone, open_beneath

_TARGET_MAX: Final = 4096
_SCANS_MAX: Final = 128  # cached listings of directories of one branch
_SCANS_MAX_TOTAL: Final = 8192  # cached listings of all branches together
_OPEN_MAX_TOTAL: Final = 480  # open directories of all branches together
_MANY: Final = 100  # with more branches, more descriptors are needed than the usual soft limit (1024) allows


class LayerTree:
    """One layer's directory. Two are the same only when they are the same object (see `LayerTrees`)."""

    def __init__(self, path: str, *, among: int = 1) -> None:
        """Open the directory at the host path `path`. With more branches open at once (`among`) each caches less."""
        self.path = path  # immutable
        self._root_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._tree = Directories(self._root_fd, min(OPEN_DIRECTORIES_MAX, _OPEN_MAX_TOTAL // among))
        self._scans_max = max(min(_SCANS_MAX, _SCANS_MAX_TOTAL // among), 4)
        self.is_noted = any(name in read_xattrs(self._root_fd) for name in owners.NAMES)  # immutable
        self._scans: OrderedDict[Path, Scan] = OrderedDict()  # last used last

    def close(self) -> None:
        self._tree.close_all()
        os.close(self._root_fd)

    def open_path(self, path: Path) -> int:
        """An O_PATH descriptor of the file or directory at `path`, through no symlink; the caller closes it."""
        if not path:
            return os.dup(self._root_fd)
        return open_beneath(self._tree.fd(path[:-1]), path[-1], os.O_PATH, files.RESOLVE_NO_XDEV)

    def scan(self, path: Path) -> Scan:
        """List the directory at `path`, its marks separated from its entries. Cached."""
        known = self._scans.get(path)
        if known is None:
            known = self._scans[path] = _scan(self._tree.fd(path), is_root=not path)
            if len(self._scans) > self._scans_max:
                self._scans.popitem(last=False)
        return known

    def xattr_names(self, directory: Path, name: bytes) -> list[str]:
        """The names of a file's extended attributes, in one system call; none if they may not be listed."""
        try:
            path = b"/proc/self/fd/%d/%s" % (self._tree.fd(directory), name)
            return os.listxattr(path, follow_symlinks=False)
        except OSError:
            return []

    def xattrs(self, path: Path) -> dict[str, bytes]:
        fd = self.open_path(path)
        try:
            return read_xattrs(fd)
        finally:
            os.close(fd)


class Scan(NamedTuple):
    """The listing of one directory of one branch."""

    entries: dict[bytes, os.stat_result]  # without marks
    whiteouts: dict[bytes, str]  # hidden name -> form of the mark: aufs, device, xattr
    opaque: str  # form of the opaque mark: aufs, xattr; empty: not opaque
    redirect: bytes | None  # overlayfs's redirect, checked by `markers.sane_redirect`
    strange: tuple[bytes, ...]  # names with the prefix of whiteouts that are no marks


class LayerPath(NamedTuple):
    """A path in one branch."""

    branch: LayerTree
    path: Path


class Node(NamedTuple):
    """A file or directory of a view. Owner, mode, kind and device are the noted ones, if there are (see `owners`)."""

    kind: int  # S_IFMT bits
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    device: tuple[int, int]
    inode: tuple[int, int]  # (st_dev, st_ino) of `place`
    nlink: int
    sources: tuple[LayerPath, ...]  # top first; one unless it is a merged directory
    data: LayerPath  # of a file's data: beneath `place` for a metacopy file

    @property
    def is_dir(self) -> bool:
        return self.kind == stat.S_IFDIR

    @property
    def place(self) -> LayerPath:
        return self.sources[0]


@dataclass(slots=True)
class LayerTrees:
    """The open layer directories, one object for each directory. Use it in a `with`.

    While there are many, the soft limit of descriptors (RLIMIT_NOFILE) is raised to the hard one.
    """

    expected: int = 1  # number of branches that will be open at once
    _known: dict[str, LayerTree] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)
    _is_raised: bool = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def open(self, path: str) -> LayerTree:
        """Open the branch at the host path `path`, once. Raises: OSError when it is no directory."""
        real = os.path.realpath(path)
        known = self._known.get(real)
        if known is None:
            among = max(self.expected, len(self._known) + 1)
            if among >= _MANY and not self._is_raised:
                self._raise_limit()
            known = self._known[real] = LayerTree(path, among=among)
            self._stack.callback(known.close)
        return known

    def view(self, paths: Sequence[str]) -> View:
        """The merged view of the directories at host paths, top first."""
        self.expected = max(self.expected, len(paths))
        return View([self.open(path) for path in paths])

    def _raise_limit(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._is_raised = True
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            self._stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))


Entry = walk.Entry[LayerPath, os.stat_result]
"""The entry of one branch under a name, with its marks."""


class View(walk.Reader[LayerPath, os.stat_result]):
    """Several branches merged, as a union of them shows them."""

    def __init__(self, branches: Sequence[LayerTree]) -> None:
        self.branches = tuple(branches)  # immutable; top first

    def below(self, count: int) -> View:
        """The view without its `count` topmost branches."""
        return View(self.branches[count:])

    def root(self) -> Node | None:
        """The root directory; None for a view without branches."""
        places = self.roots()
        return self._node(places[0], tuple(places)) if places else None

    def children(self, directory: Node) -> dict[bytes, Node]:
        """The content of a directory, sorted by name, without entries that a running container removes meanwhile."""
        found = {}
        for name in sorted(self._names(directory)):
            with leaving_out_gone():
                node = self.lookup(directory.sources, name)
                if node is not None:
                    found[name] = node
        return found

    def _names(self, directory: Node) -> set[bytes]:
        names: set[bytes] = set()
        with leaving_out_gone():
            for place in directory.sources:
                names.update(place.branch.scan(place.path).entries)
        return names

    def lookup(self, sources: Sequence[LayerPath], name: bytes) -> Node | None:
        """Look up `name` in the directory merged from `sources`."""
        found = walk.lookup(self, sources, name)
        return self._node(found.path, found.stack or (found.path,), found.data) if found is not None else None

    def entry(self, directory: LayerPath, name: bytes) -> Entry:
        """The entry of one branch under `name`, without those of lower branches."""
        scan = directory.branch.scan(directory.path)
        whiteout = scan.whiteouts.get(name, "")
        st = scan.entries.get(name)
        if st is None:
            return Entry(whiteout=whiteout)
        place = LayerPath(directory.branch, (*directory.path, name))
        kind = stat.S_IFMT(st.st_mode)
        if kind == stat.S_IFDIR:
            inside = place.branch.scan(place.path)
            return Entry(place, st, kind, whiteout, inside.opaque, inside.redirect)
        if kind == stat.S_IFREG and st.st_size and place.branch is not self.branches[-1]:
            names = place.branch.xattr_names(directory.path, name)
            if any(mark in names for mark in markers.METACOPY_XATTRS):
                xattrs = place.branch.xattrs(place.path)
                if markers.is_partial(xattrs):
                    self._meet_partial(place)
                redirect = markers.sane_redirect(xattrs)
                return Entry(place, st, kind, redirect=redirect, metacopy=True)
        return Entry(place, st, kind)

    def _meet_partial(self, place: LayerPath) -> None:
        """Refuse a file that has only a part of its data. Raises: LayerError."""
        hint = "unionfs complete MOUNTPOINT, while the union that wrote it is mounted, brings all of its data"
        path = os.fsdecode(b"/".join(place.path))
        raise LayerError("reading", path, "the file has only a part of its data", hint=hint)

    def roots(self) -> list[LayerPath]:
        """The sources of the root: the roots of the branches, top first, down to the first opaque one."""
        found = []
        for branch in self.branches:
            found.append(LayerPath(branch, ()))
            if branch.scan(()).opaque:
                break
        return found

    def branch_of(self, path: LayerPath) -> int:
        """The position of a place's branch, 0 on top."""
        return self.branches.index(path.branch)

    def find(self, path: Path) -> Node | None:
        """Look up `path` from the root, following no symlink."""
        node = self.root()
        for name in path:
            if node is None or not node.is_dir:
                return None
            node = self.lookup(node.sources, name)
        return node

    def walk(self) -> Iterator[tuple[Path, Node]]:
        """All paths of the view: the root first, each directory before its content, names sorted."""
        root = self.root()
        todo: list[tuple[Path, Node]] = [((), root)] if root is not None else []
        while todo:
            path, node = todo.pop()
            yield path, node
            if node.is_dir:
                todo += reversed([((*path, name), child) for name, child in self.children(node).items()])

    def _node(self, place: LayerPath, sources: tuple[LayerPath, ...], data: LayerPath | None = None) -> Node:
        fd = place.branch.open_path(place.path)
        try:
            st = os.fstat(fd)
            noted = _noted(fd, st)
        finally:
            os.close(fd)
        kind, device = stat.S_IFMT(st.st_mode), st.st_rdev
        mode, uid, gid = stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid
        numbers = (os.major(device), os.minor(device)) if kind in (stat.S_IFCHR, stat.S_IFBLK) else (0, 0)
        if noted is None and place.branch.is_noted:
            uid, gid = _unnoted(uid, os.geteuid()), _unnoted(gid, os.getegid())
        if noted is not None:
            mode, uid, gid = noted.mode, noted.uid, noted.gid
            if kind == stat.S_IFREG and noted.kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                kind, numbers = noted.kind, noted.device
        inode = (st.st_dev, st.st_ino)
        size = st.st_size if kind == stat.S_IFREG else 0
        return Node(
            kind, mode, uid, gid, st.st_mtime_ns, size, numbers, inode, st.st_nlink, sources, data or place
        )  # fmt: skip


class MarkedView(View):
    """A view for questions about marks and names: a file that has a part of its data is like one that has none."""

    def _meet_partial(self, place: LayerPath) -> None:
        pass


@contextmanager
def leaving_out_gone() -> Iterator[None]:
    """Context for reading a listed entry: ends the block if a running container has removed the entry since."""
    try:
        yield
    except OSError as error:
        if not is_gone(error):
            raise


def target(node: Node) -> bytes:
    """The target of a symlink, also of one that is stored as a file with a noted owner."""
    fd = node.place.branch.open_path(node.place.path)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return os.readlink(b"", dir_fd=fd)
        with open(f"/proc/self/fd/{fd}", "rb") as stand_in:
            return stand_in.read(_TARGET_MAX)
    finally:
        os.close(fd)


def content(node: Node) -> str:
    """The XXH3-128 of a file's data."""
    fd = node.data.branch.open_path(node.data.path)
    try:
        return content_of(fd)
    finally:
        os.close(fd)


def xattrs(node: Node) -> dict[str, bytes]:
    """The extended attributes of a node as a union shows them."""
    found = node.place.branch.xattrs(node.place.path)
    if not node.place.branch.is_noted:
        return {name: value for name, value in found.items() if not is_own(name)}
    shown = {markers.shown_xattr(name): value for name, value in sorted(found.items(), reverse=True)}
    return {name: value for name, value in shown.items() if name is not None and not is_own(name)}


def is_own(name: str) -> bool:
    """Whether an extended attribute is a mark of a union, which users do not see."""
    return markers.is_private_xattr(name)


def _scan(fd: int, *, is_root: bool) -> Scan:
    marks = read_xattrs(fd)
    dialects = [mark for mark in markers.OPAQUE_XATTRS if marks.get(mark) == b"y"]
    opaque = "xattr" if dialects else ""
    has_xattr_whiteouts = any(marks.get(mark) == b"x" for mark in markers.OPAQUE_XATTRS)
    entries: dict[bytes, os.stat_result] = {}
    whiteouts: dict[bytes, str] = {}
    strange = []
    with os.scandir(fd) as listed:
        for entry in listed:
            name = os.fsencode(entry.name)
            if markers.is_reserved(name):
                hidden = markers.hidden_name(name)
                if name == markers.OPAQUE_NAME:
                    opaque = "aufs"
                elif hidden is None or hidden in (b".", b".."):
                    strange.append(name)
                else:
                    whiteouts[hidden] = "aufs"
                continue
            try:
                st = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # removed since the listing began
            if markers.is_whiteout_device(st):
                whiteouts[name] = "device"
            elif has_xattr_whiteouts and stat.S_ISREG(st.st_mode) and not st.st_size and _is_xattr_whiteout(fd, name):
                whiteouts[name] = "xattr"
            else:
                entries[name] = st
    return Scan(entries, whiteouts, opaque, None if is_root else markers.sane_redirect(marks), tuple(sorted(strange)))


def _is_xattr_whiteout(dir_fd: int, name: bytes) -> bool:
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        return any(mark in read_xattrs(fd) for mark in markers.WHITEOUT_XATTRS)
    finally:
        os.close(fd)


def _noted(fd: int, st: os.stat_result) -> owners.Override | None:
    if not stat.S_ISREG(st.st_mode) and not stat.S_ISDIR(st.st_mode):
        return None  # only files and directories can have user.* attributes (xattr(7))
    for name in owners.NAMES:
        with suppress(OSError):
            return owners.read(os.getxattr(f"/proc/self/fd/{fd}", name))
    return None


def _unnoted(number: int, own: int) -> int:
    """The owner of a file without a noted one, in a layer that has noted owners: our id represents root's."""
    return 0 if number == own else number

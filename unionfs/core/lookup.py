"""Resolve one name in a merged directory: the upper first, then the union of the lowers.

Owns the identity of nodes: one node for one file, however many names it has. Does not change any branch.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from typing import Final, final

from unionfs import markers
from unionfs.core import inodes, marks, partial
from unionfs.core.attrs import IFDIR, IFMT, IFREG
from unionfs.core.branch import BranchDir, Stat
from unionfs.core.lower import Found, LowDir
from unionfs.core.node import DirNode, FileNode, Node
from unionfs.core.staging import log_warning
from unionfs.core.union_state import UnionState, refuse

_SCAN_EVERY: Final = 32
_SLASH: Final = ord("/")
_DOT: Final = ord(".")
_DOTS: Final = frozenset((b".", b".."))


@final
class Resolved:
    """A node and its attributes as just read from its branch. Immutable."""

    __slots__ = ("node", "st")

    def __init__(self, node: Node, st: Stat) -> None:
        self.node = node
        self.st = st


def check_name(name: bytes) -> None:
    """Refuse names that cannot exist. ENAMETOOLONG above 255 bytes, EINVAL for "", ".", ".." and with slash or NUL."""
    if len(name) > markers.NAME_MAX:
        refuse(errno.ENAMETOOLONG, name)
    # Numbers, since CPython raises and drops an error before it looks for bytes in bytes.
    if not name or _SLASH in name or 0 in name or (name[0] == _DOT and name in _DOTS):
        refuse(errno.EINVAL, name)


def resolve(tree: UnionState, parent: DirNode, name: bytes) -> Resolved:
    """Return the node of `name` in `parent`, and make it if it is not known. ENOENT, ENAMETOOLONG, EACCES, EIO."""
    found = find(tree, parent, name)
    if found is None:
        refuse(errno.ENOENT, name)
    return found


def find(tree: UnionState, parent: DirNode, name: bytes) -> Resolved | None:
    """As `resolve`, but None for a missing name. ENOENT only if the name is removed externally during the lookup."""
    child = parent.children.get(name)
    if child is not None:
        return Resolved(child, tree.stat(child))
    if len(name) > markers.NAME_MAX:
        refuse(errno.ENAMETOOLONG, name)
    if markers.is_reserved(name) or parent.dead:
        return None
    st = upper_entry(tree, parent, name)
    if st is None:
        low = parent.low
        found = low.find(name) if low is not None else None
        if found is None or (parent.upper is not None and hides(tree, parent, name)):
            return None
        return _from_low(tree, parent, name, found)
    if st.st_mode & IFMT != IFDIR:
        assert parent.upper is not None
        if marks.is_whiteout(parent.upper, name, st):
            return None
        return _from_upper_file(tree, parent, name, st)
    return _from_upper_dir(tree, parent, name, st)


def is_visible(tree: UnionState, parent: DirNode, name: bytes) -> bool:
    """Whether `name` in `parent` exists, without making a node of it."""
    if name in parent.children:
        return True
    st = upper_entry(tree, parent, name)
    if st is not None:
        assert parent.upper is not None
        return not marks.is_whiteout(parent.upper, name, st)
    if parent.low is None or parent.low.find(name) is None:
        return False
    return parent.upper is None or not hides(tree, parent, name)


def find_low(parent: DirNode, name: bytes) -> Found | None:
    """Find `name` in the lowers alone, whether the upper hides it or not."""
    return parent.low.find(name) if parent.low is not None else None


def upper_entry(tree: UnionState, parent: DirNode, name: bytes) -> Stat | None:
    """Return the attributes of the upper's own entry `name`, which may be a whiteout; None if there is none.

    After some misses the directory is scanned, if by its size that costs less than the lookups it saves.
    """
    up = parent.upper
    if up is None:
        return None
    names = parent.up_names
    if names is not None:
        parent.cached_use = True
        if name not in names:
            return None
    try:
        return up.stat_entry(name)
    except FileNotFoundError:
        pass
    if names is None:
        parent.wasted += 1
        if parent.wasted % _SCAN_EVERY == 0 and parent.wasted * 64 >= up.stat().st_size:
            tree.up_names(parent)
    return None


def hides(tree: UnionState, parent: DirNode, name: bytes) -> bool:
    """Whether the upper hides `name` of the lowers by a whiteout. Preconditions: the upper has the directory."""
    up = parent.upper
    assert up is not None
    if parent.up_names is not None:
        return name in parent.hidden
    parent.wasted += 1
    if marks.has_aufs_whiteout(up, name):
        return True
    try:
        st = os.stat(name, dir_fd=up.fd(), follow_symlinks=False)
    except FileNotFoundError:
        return False
    return marks.is_whiteout(up, name, st)


def _from_low(tree: UnionState, parent: DirNode, name: bytes, found: Found) -> Resolved:
    if found.kind == IFDIR:
        assert found.low is not None
        st: Stat = found.st if found.st is not None else found.low.stat()
        ino = tree.inodes.shown(found.low.stack[0].branch.fs_index, st.st_ino)
        directory = DirNode(tree.nodes.id_for(parent, name, ino), parent, name, None, found.low, ino)
        tree.nodes.add(directory)
        return Resolved(directory, st)
    st = found.st if found.st is not None else found.place.stat_entry(found.name)
    if st.st_nlink > 1:
        linked = _known_link(tree, parent, name, found, st)
        if linked is not None:
            return linked
    ino = tree.inodes.shown(found.place.branch.fs_index, st.st_ino)
    number = tree.nodes.id_for(parent, name, ino, True)
    node = FileNode(number, parent, name, found.place, found.name, ino, st.st_mode)
    if st.st_nlink > 1:
        _register(tree, node, found.place, st)
    tree.nodes.add(node)
    return Resolved(node, st)


def _register(tree: UnionState, node: FileNode, place: BranchDir, st: Stat) -> None:
    """Register a file with several names by its inode, so that its other names lead to the same node."""
    tree.nodes.register_inode(node, (st.st_dev, st.st_ino))
    if not place.branch.writable and tree.links_or_none is not None:
        node.rare().key = inodes.link_key(place.branch, st)


def _known_link(tree: UnionState, parent: DirNode, name: bytes, found: Found, st: Stat) -> Resolved | None:
    """Return the node, or the copy in the upper, that this name of a lower inode leads to; None if there is none."""
    indexed = _indexed(tree, parent, name, found, st)
    if indexed is not None:
        return indexed
    node = tree.nodes.by_inode.get((st.st_dev, st.st_ino))
    if node is None:
        return None
    _add_name(tree, node, parent, name)
    return Resolved(node, tree.stat(node))


def _indexed(tree: UnionState, parent: DirNode, name: bytes, found: Found, st: Stat) -> Resolved | None:
    """Return the node of the copied-up inode that the index has for a lower inode; None if it has none."""
    links = tree.links_or_none
    if links is None:
        return None
    key = inodes.link_key(found.place.branch, st)
    ino = links.upper_ino(key)
    if ino is None:
        return None
    up_st = links.place.stat_entry(key)
    node = tree.nodes.by_inode.get((up_st.st_dev, up_st.st_ino))
    if node is not None:
        orphan = node.leaf if node.is_dead and node.home is tree.staging.here else None
        if orphan is not None:
            node.home, node.leaf = links.place, key
        _add_name(tree, node, parent, name)
        if orphan is not None:  # as in _from_upper_file
            tree.staging.dispose(orphan)
            up_st = links.place.stat_entry(key)
        return Resolved(node, up_st)
    shown = tree.inodes.shown(found.place.branch.fs_index, st.st_ino)
    number = tree.nodes.id_for(parent, name, shown, True)
    node = FileNode(number, parent, name, links.place, key, shown, up_st.st_mode)
    node.rare().key = key
    find_data(tree, node, up_st)
    tree.nodes.register_inode(node, (up_st.st_dev, up_st.st_ino))
    tree.nodes.add(node)
    return Resolved(node, up_st)


def _add_name(tree: UnionState, node: FileNode, parent: DirNode, name: bytes) -> None:
    """Record one more name of a node."""
    links = node.rare()
    if links.dead:
        links.dead = False
        node.parent, node.name = parent, name
    else:
        links.others.append((parent, name))
    parent.children[name] = node
    tree.nodes.renamed(node)


def _from_upper_file(tree: UnionState, parent: DirNode, name: bytes, st: Stat) -> Resolved:
    up = parent.upper
    assert up is not None
    key = None
    if st.st_nlink > 1:
        known = tree.nodes.by_inode.get((st.st_dev, st.st_ino))
        if known is not None:
            orphan = known.leaf if known.is_dead and known.home is tree.staging.here else None
            if orphan is not None or known.home is tree.links.place:
                known.home, known.leaf = up, name
            _add_name(tree, known, parent, name)
            if orphan is not None:  # after the record has the name: the next daemon must find one of the two
                tree.staging.dispose(orphan)
                st = up.stat_entry(name)
            return Resolved(known, st)
        key = tree.links.key_of(st.st_ino)
    ino, is_metacopy = _upper_marks(tree, up, name, st, key)
    number = tree.nodes.id_for(parent, name, ino, True)
    node = FileNode(number, parent, name, up, name, ino, st.st_mode)
    if key is not None:
        node.rare().key = key
    if st.st_nlink > 1:
        tree.nodes.register_inode(node, (st.st_dev, st.st_ino))
    if is_metacopy:
        find_data(tree, node, st)
    tree.nodes.add(node)
    return Resolved(node, st)


def find_data(tree: UnionState, node: FileNode, st: Stat) -> None:
    """Find the lower file that has the data of a partial file of the upper (core.partial). If the lower file is
    missing, or is not the one that was copied up, these data cannot be read (EIO). Raises EIO for marks that cannot be
    read."""
    found = _partial_marks(node) if st.st_mode & IFMT == IFREG else None
    if found is None:
        return
    links = node.rare()
    data = None
    try:
        data = _data_place(tree, node, found.redirect)
        blocks = data[0].stat_entry(data[1]).st_blocks if data is not None and _is_source(data, found) else -1
    except OSError as exc:
        log_warning("the data of %r cannot be found: %s", node.name, str(exc))
        blocks = -1
    if blocks < 0:
        log_warning(
            "the data of %r cannot be read: the lower file %r is missing or has changed since it was copied up",
            node.name, found.redirect or node.name,
        )  # fmt: skip
    links.data = data if data is not None and blocks >= 0 else (node.home, b"")
    links.partial = partial.Partial(found, st.st_size, blocks)


def relocate_data(tree: UnionState, node: FileNode) -> None:
    """Find the lower file that has the data of a file of the upper again, after the lowers have changed. If there is no
    such file any more, the place known so far stays. Raises OSError."""
    found = _partial_marks(node)
    data = _data_place(tree, node, found.redirect) if found is not None else None
    if found is not None and data is not None and _is_source(data, found):
        node.rare().data = data


def _partial_marks(node: FileNode) -> partial.Marks | None:
    fd = os.open(node.leaf, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=node.home.fd())
    try:
        read = functools.partial(marks.private_xattr, marks.proc_path(fd), on_upper=True)
        return partial.read_marks(read, marks.xattr_names(fd))
    finally:
        os.close(fd)


def _data_place(tree: UnionState, node: FileNode, redirect: bytes | None) -> tuple[BranchDir, bytes] | None:
    components = markers.redirect_components(redirect) if redirect is not None else None
    if components:
        holder = tree.lowers.walk(components[:-1])
        low, name = (holder.low if holder is not None else None), components[-1]
    else:
        low, name = node.parent.low, redirect or node.name
    found = low.find(name) if low is not None else None
    if low is None or found is None or found.kind != IFREG:
        return None
    return tree.lowers.data_place(low, found.place, found.name)


def _is_source(data: tuple[BranchDir, bytes], found: partial.Marks) -> bool:
    """Whether a lower file is the one that a file of the upper was copied from."""
    if found.record is None:
        return True  # the kernel's overlay stores no size or mtime to compare
    st = data[0].stat_entry(data[1])
    return (st.st_size, st.st_mtime_ns, st.st_ino) == found.record[1:4]


def _upper_marks(tree: UnionState, up: BranchDir, name: bytes, st: Stat, key: bytes | None) -> tuple[int, bool]:
    """Return the inode number users see for an upper object (its origin's if it was copied up), and whether it is a
    metacopy."""
    origin = None
    is_metacopy = False
    if key is not None:
        origin = inodes.origin_of_key(key)
    if stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode):
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=up.fd())
        try:
            present = marks.xattr_names(fd)
            if origin is None and markers.ORIGIN_XATTR in present:
                origin = inodes.read_origin(fd)
            is_metacopy = stat.S_ISREG(st.st_mode) and any(mark in present for mark in markers.METACOPY_XATTRS)
        finally:
            os.close(fd)
    shown = tree.inodes.of_origin(origin) if origin is not None else None
    return (shown if shown is not None else tree.inodes.shown(up.branch.fs_index, st.st_ino)), is_metacopy


def upper_number(tree: UnionState, up: BranchDir, name: bytes, st: Stat, key: bytes | None) -> int:
    """Return the inode number users see for an object of the upper. `key`: in the hard-link index, if it has one."""
    return _upper_marks(tree, up, name, st, key)[0]


def _from_upper_dir(tree: UnionState, parent: DirNode, name: bytes, st: Stat) -> Resolved:
    assert parent.upper is not None
    up = parent.upper.child(name)
    low = merged_with(tree, parent, name, up)
    ino, _ = _upper_marks(tree, parent.upper, name, st, None)
    node = DirNode(tree.nodes.id_for(parent, name, ino), parent, name, up, low, ino)
    tree.nodes.add(node)
    return Resolved(node, st)


def merged_with(tree: UnionState, parent: DirNode, name: bytes, up: BranchDir) -> LowDir | None:
    """Return the directory of the lowers that is merged with `up`, the upper's directory `name` in `parent`."""
    seen = marks.read_dir_marks(up)
    if seen.opaque:
        return None
    if seen.redirect is not None:
        components = markers.redirect_components(seen.redirect)
        found = tree.lowers.walk(components) if components is not None else find_low(parent, seen.redirect)
    else:
        found = find_low(parent, name)
    if found is None or found.kind != IFDIR or (seen.redirect is None and _hidden_beside(tree, parent, name)):
        return None
    return found.low


def _hidden_beside(tree: UnionState, parent: DirNode, name: bytes) -> bool:
    """Whether `.wh.NAME` stands beside the upper's directory `name`: then the directory is not merged with the
    lowers."""
    assert parent.upper is not None
    if parent.up_names is not None:
        return name in parent.hidden
    return marks.has_aufs_whiteout(parent.upper, name)

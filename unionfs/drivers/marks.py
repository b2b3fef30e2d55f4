"""Make layers with AUFS marks readable for the kernel's overlayfs, without changing or copying them.

Overlayfs reads 0:0 devices and `user.overlay.` attributes. A layer L with other marks is mounted as three layers:

    over/     hides the mark files of L: a 0:0 device named `.wh.NAME` for each
    L
    under/    hides the marked names in the layers below L: a 0:0 device for each NAME, and opaque directories

Since `under` is below L, an entry of L at a hidden name still shows, as in AUFS, and a directory of L does
not merge with those further below. `over` and `under` contain directories and marks only.

For a layer of the store they are made once and stored beside it, LAYER/overlay next to LAYER/diff; for any other
directory they are made each time, in the caller's directory, since it may have changed.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from unionfs import markers
from unionfs.changes.objects import fd_xattrs
from unionfs.changes.owners import Owner
from unionfs.changes.stage import set_attributes
from unionfs.drivers.driver import DriverError
from unionfs.trees.open_beneath import open_beneath
from unionfs.trees.remove import remove_path

_OVER: Final = "over"
_UNDER: Final = "under"
_OWN_OPAQUE: Final = "user.overlay.opaque"
_DEVICE: Final = stat.S_IFCHR | 0o000
_NOT_FOLLOWED: Final = "the kernel's overlayfs does not follow it without root; --driver fuse does"


@dataclass(slots=True)
class _Marks:
    """The foreign marks of one directory of a layer."""

    files: list[bytes] = field(default_factory=list)  # names of mark files, which must be hidden
    hidden: list[bytes] = field(default_factory=list)  # the names that they hide
    opaque: bool = False


def readable(layer: str, private: str) -> list[str]:
    """The directories to mount for the layer, top first; only the layer if it has no foreign marks. Directories of
    marks are stored beside a layer of the store, else made at `private`.

    Raises: DriverError for marks that overlayfs cannot express, OSError. Preconditions: 0:0 devices can be made.
    """
    beside = _beside(layer)
    if beside is not None and os.path.isdir(beside):
        return _with(layer, beside)
    found = dict(_scan(layer))
    if beside is None or not os.access(os.path.dirname(beside), os.W_OK):
        if not found:
            return [layer]
        _make(layer, found, private)
        return _with(layer, private)
    _sweep(beside)
    building = f"{beside}.{os.getpid()}-{secrets.token_hex(4)}"
    try:
        _make(layer, found, building)
        os.rename(building, beside)
    except OSError:
        remove_path(building)
        if not os.path.isdir(beside):  # else another process was faster
            raise
    return _with(layer, beside)


def _sweep(beside: str) -> None:
    """Remove incomplete directories of killed processes."""
    parent, prefix = os.path.dirname(beside), os.path.basename(beside) + "."
    for name in os.listdir(parent):
        if name.startswith(prefix) and not os.path.exists(f"/proc/{name.removeprefix(prefix).partition('-')[0]}"):
            remove_path(os.path.join(parent, name))


def _beside(layer: str) -> str | None:
    """The directory of marks of a layer of the store; None for any other directory."""
    parent, name = os.path.split(layer)
    if name == "diff" and os.path.exists(os.path.join(parent, "layer.json")):
        return os.path.join(parent, "overlay")
    return None


def _with(layer: str, place: str) -> list[str]:
    over, under = os.path.join(place, _OVER), os.path.join(place, _UNDER)
    return [*([over] if os.path.isdir(over) else ()), layer, *([under] if os.path.isdir(under) else ())]


def _scan(layer: str) -> Iterator[tuple[bytes, _Marks]]:
    """The directories of a layer with foreign marks."""
    root_fd = os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        todo = [b""]
        while todo:
            rel = todo.pop()
            fd = open_beneath(root_fd, rel, os.O_RDONLY | os.O_DIRECTORY) if rel else os.dup(root_fd)
            try:
                marks = _marks_of(layer, rel, fd)
                with os.scandir(fd) as entries:
                    for entry in entries:
                        name = os.fsencode(entry.name)
                        if markers.is_reserved(name):
                            _note(marks, name)
                        elif entry.is_dir(follow_symlinks=False):
                            todo.append(rel + b"/" + name if rel else name)
                        elif entry.is_file(follow_symlinks=False):
                            _refuse_metacopy(layer, rel, entry)
            finally:
                os.close(fd)
            if marks.files or marks.opaque:
                yield rel, marks
    finally:
        os.close(root_fd)


def _marks_of(layer: str, rel: bytes, fd: int) -> _Marks:
    attributes = fd_xattrs(fd, private=True)
    if rel and any(mark in attributes for mark in markers.REDIRECT_XATTRS):
        raise DriverError(f"{os.path.join(layer, os.fsdecode(rel))} is a renamed directory (redirect): {_NOT_FOLLOWED}")
    foreign = any(attributes.get(mark) == b"y" for mark in markers.OPAQUE_XATTRS if mark != _OWN_OPAQUE)
    return _Marks(opaque=foreign and attributes.get(_OWN_OPAQUE) != b"y")


def _note(marks: _Marks, name: bytes) -> None:
    marks.files.append(name)
    hidden = markers.hidden_name(name)
    if name == markers.OPAQUE_NAME:
        marks.opaque = True
    elif hidden is not None and hidden not in (b".", b".."):
        marks.hidden.append(hidden)


def _refuse_metacopy(layer: str, rel: bytes, entry: os.DirEntry[str]) -> None:
    """Whether a file has only attributes (metacopy). Checks the listing's values before it reads attributes."""
    st = entry.stat(follow_symlinks=False)
    if st.st_blocks * 512 >= st.st_size:
        return
    path = os.path.join(layer, os.fsdecode(rel), entry.name)
    try:
        attributes = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return
    if any(mark in attributes for mark in markers.METACOPY_XATTRS):
        raise DriverError(f"{path} holds attributes only (metacopy): {_NOT_FOLLOWED}")


def _make(layer: str, found: dict[bytes, _Marks], place: str) -> None:
    """Make `over` and `under` in the new directory `place`, unless they would be empty. Raises: OSError."""
    os.makedirs(place, 0o755)
    over = {rel: marks.files for rel, marks in found.items() if marks.files}
    under = {rel: marks.hidden for rel, marks in found.items() if marks.hidden or marks.opaque}
    source_fd = os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if over:
            _make_tree(source_fd, os.path.join(place, _OVER), over, ())
        if under:
            opaque = tuple(rel for rel, marks in found.items() if marks.opaque)
            _make_tree(source_fd, os.path.join(place, _UNDER), under, opaque)
    finally:
        os.close(source_fd)


def _make_tree(source_fd: int, place: str, devices: dict[bytes, list[bytes]], opaque: tuple[bytes, ...]) -> None:
    """Make the layer's directories, with 0:0 devices in them."""
    os.mkdir(place, 0o755)
    root_fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        made = _directories(devices)
        for rel in made:
            if rel:
                parent, _, name = rel.rpartition(b"/")
                parent_fd = open_beneath(root_fd, parent, os.O_PATH | os.O_DIRECTORY)
                os.mkdir(name, 0o700, dir_fd=parent_fd)
                os.close(parent_fd)
            fd = open_beneath(root_fd, rel, os.O_RDONLY | os.O_DIRECTORY)
            try:
                for name in devices.get(rel, ()):
                    os.mknod(name, _DEVICE, 0, dir_fd=fd)
                if rel in opaque:
                    os.setxattr(fd, _OWN_OPAQUE, b"y")
            finally:
                os.close(fd)
        for rel in reversed(made):  # times last: making an entry changes them
            _copy_attributes(source_fd, root_fd, rel)
    finally:
        os.close(root_fd)


def _directories(wanted: dict[bytes, list[bytes]]) -> list[bytes]:
    """The wanted directories and all their parents, each before its content."""
    found = {b""}
    for rel in wanted:
        above = rel
        while above and above not in found:
            found.add(above)
            above = above.rpartition(b"/")[0]
    return sorted(found, key=lambda rel: (rel.count(b"/"), rel))


def _copy_attributes(source_fd: int, root_fd: int, rel: bytes) -> None:
    """Copy the attributes of the layer's directory, since the topmost directory of a union is shown."""
    like_fd = open_beneath(source_fd, rel, os.O_RDONLY | os.O_DIRECTORY)
    fd = open_beneath(root_fd, rel, os.O_RDONLY | os.O_DIRECTORY)
    try:
        st = os.fstat(like_fd)
        set_attributes(
            fd,
            Owner(st.st_uid, st.st_gid),
            stat.S_IMODE(st.st_mode),
            fd_xattrs(like_fd),
            (st.st_atime_ns, st.st_mtime_ns),
        )
    finally:
        os.close(fd)
        os.close(like_fd)

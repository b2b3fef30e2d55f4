"""Trees written as text: `tree(upper, "a/.wh.b a/c=hi d/ l->target e=x:0600")`, and rendered back the same way.

Items are separated by white space. An item is a path, what stands there, and how it differs from the defaults:

    a/              directory               p<fifo> s<sock>     fifo, socket
    f=hi            file holding "hi"       n<c:1:3> m<b:7:0>   character device 1:3, block device 7:0
    f=x*5000        5000 times "x"          w<c:0:0>            whiteout as overlayfs writes it
    f               empty file
    l->target       symlink                 h==f                another name of the file `f` of this text

    :0600           permission bits (default 0644, directories 0755)        :0600,5,6   and owner 5, group 6
    @12.000000003   mtime (default MTIME_NS)                                {user.a=1,user.b=}   xattrs

`.` is the root itself (`./:0700`). Parents are made as needed. Any byte can be written as `\\xNN`.
Knows nothing of unions: whiteouts are just files here.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

MTIME_NS: Final = 1_000_000_000_123_456_789
"""The mtime of everything `tree` makes unless the text says otherwise: long ago, and not a whole second."""

_ITEM = re.compile(
    rb"(?P<path>[^\s=:@{<>]+?)"
    rb"(?:(?P<dir>/)|==(?P<same>[^\s:@{]+)|=(?P<data>[^\s:@{]*)|->(?P<target>[^\s:@{]*)|<(?P<node>[^>\s]*)>)?"
    rb"(?::(?P<perm>[0-7]*)(?:,(?P<uid>\d+),(?P<gid>\d+))?)?"
    rb"(?:@(?P<mtime>-?\d+(?:\.\d{1,9})?))?"
    rb"(?:\{(?P<xattrs>[^}\s]*)\})?"
)


class Item(NamedTuple):
    """One object of a tree. `same` names the earlier path this is a hard link of; None fields are the defaults."""

    path: bytes
    kind: int
    data: bytes = b""
    same: bytes | None = None
    rdev: int = 0
    perm: int | None = None
    owner: tuple[int, int] | None = None
    mtime_ns: int | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


def unquote(text: bytes) -> bytes:
    """Replace each `\\xNN` by its byte."""
    return re.sub(rb"\\x([0-9a-fA-F]{2})", lambda match: bytes([int(match[1], 16)]), text)


def quote(data: bytes) -> str:
    """The inverse of `unquote`: everything that is not plainly readable as `\\xNN`."""
    return "".join(chr(b) if (chr(b).isalnum() and b < 128) or b in b"._/+-~" else f"\\x{b:02x}" for b in data)


def parse(text: str) -> list[Item]:
    """Read the notation. Raises ValueError for an item that is none."""
    return [_parse_item(word) for word in text.encode().split()]


def _parse_item(word: bytes) -> Item:
    match = _ITEM.fullmatch(word)
    if match is None:
        raise ValueError(f"not an item of a tree: {word!r}")
    kind, data, rdev = stat.S_IFREG, b"", 0
    if match["dir"]:
        kind = stat.S_IFDIR
    elif match["target"] is not None:
        kind, data = stat.S_IFLNK, unquote(match["target"])
    elif match["node"] is not None:
        kind, rdev = _parse_node(match["node"])
    elif match["data"] is not None:
        unit, _, times = match["data"].partition(b"*")
        data = unquote(unit) * int(times or b"1")
    pairs = [pair.partition(b"=") for pair in (match["xattrs"] or b"").split(b",") if pair]
    return Item(
        path=unquote(match["path"]),
        kind=kind,
        data=data,
        same=None if match["same"] is None else unquote(match["same"]),
        rdev=rdev,
        perm=int(match["perm"], 8) if match["perm"] else None,
        owner=(int(match["uid"]), int(match["gid"])) if match["uid"] else None,
        mtime_ns=None if match["mtime"] is None else _nanoseconds(match["mtime"].decode()),
        xattrs=tuple((unquote(name), unquote(value)) for name, _, value in pairs),
    )


def _parse_node(text: bytes) -> tuple[int, int]:
    if text == b"fifo":
        return stat.S_IFIFO, 0
    if text == b"sock":
        return stat.S_IFSOCK, 0
    letter, major, minor = text.split(b":")
    return {b"c": stat.S_IFCHR, b"b": stat.S_IFBLK}[letter], os.makedev(int(major), int(minor))


def _nanoseconds(text: str) -> int:
    seconds, _, fraction = text.partition(".")
    part = int(fraction.ljust(9, "0")) if fraction else 0
    return int(seconds) * 10**9 + (-part if seconds.startswith("-") else part)


def tree(root: Path, text: str) -> Path:
    """Make under `root` (created if missing) what `text` describes; the mtimes of directories touched are kept."""
    if not root.exists():
        root.mkdir(parents=True, mode=0o755)
        root.chmod(0o755)
        os.utime(root, ns=(MTIME_NS, MTIME_NS))
    base = os.fsencode(root)
    kept: dict[bytes, int] = {base: os.stat(base).st_mtime_ns}
    directories: dict[bytes, Item] = {}
    for item in parse(text):
        path = base if item.path == b"." else base + b"/" + item.path
        _make_parents(base, os.path.dirname(path) if path != base else base, kept)
        if item.kind == stat.S_IFDIR:
            if path not in kept:
                if not os.path.isdir(path):
                    os.mkdir(path, 0o755)
                kept[path] = MTIME_NS
            directories[path] = item
        elif item.same is not None:
            os.link(base + b"/" + item.same, path, follow_symlinks=False)
        else:
            _make_file(path, item)
            _dress(path, item, MTIME_NS)
    for path in sorted(kept, reverse=True):
        _dress(path, directories.get(path, Item(b"", stat.S_IFDIR)), kept[path], explicit=path in directories)
    return root


def _make_parents(base: bytes, directory: bytes, kept: dict[bytes, int]) -> None:
    if directory in kept or len(directory) < len(base):
        return
    _make_parents(base, os.path.dirname(directory), kept)
    try:
        kept[directory] = os.stat(directory).st_mtime_ns
    except FileNotFoundError:
        os.mkdir(directory)
        os.chmod(directory, 0o755)
        kept[directory] = MTIME_NS


def _make_file(path: bytes, item: Item) -> None:
    if item.kind == stat.S_IFLNK:
        os.symlink(item.data, path)
    elif item.kind == stat.S_IFREG:
        with open(path, "xb") as file:
            file.write(item.data)
    else:
        os.mknod(path, item.kind | 0o600, item.rdev)


def _dress(path: bytes, item: Item, mtime_ns: int, *, explicit: bool = True) -> None:
    """Owner before mode (chown clears set-id bits), mode before ACLs (they hold it), times last."""
    if explicit:
        if item.owner is not None:
            os.chown(path, *item.owner, follow_symlinks=False)
        if item.kind != stat.S_IFLNK:
            os.chmod(path, (0o755 if item.kind == stat.S_IFDIR else 0o644) if item.perm is None else item.perm)
        for name, value in item.xattrs:
            os.setxattr(path, name, value, follow_symlinks=False)
    mtime = mtime_ns if item.mtime_ns is None else item.mtime_ns
    os.utime(path, ns=(mtime, mtime), follow_symlinks=False)


def render(items: Iterable[Item]) -> str:
    """The items as text, sorted by path, without plain directories that something below names anyway."""
    ordered = sorted(items)
    parents = {os.path.dirname(item.path) for item in ordered}
    lines = []
    for item in ordered:
        meta = _render_meta(item)
        if item.kind != stat.S_IFDIR or meta or item.path not in parents:
            lines.append(quote(item.path) + _render_kind(item) + meta)
    return " ".join(lines)


def _render_kind(item: Item) -> str:
    if item.same is not None:
        return f"=={quote(item.same)}"
    if item.kind == stat.S_IFDIR:
        return "/"
    if item.kind == stat.S_IFLNK:
        return f"->{quote(item.data)}"
    if item.kind == stat.S_IFREG:
        if len(item.data) > 40 and len(set(item.data)) == 1:
            return f"={quote(item.data[:1])}*{len(item.data)}"
        return f"={quote(item.data)}" if item.data else ""
    if item.kind in (stat.S_IFIFO, stat.S_IFSOCK):
        return "<fifo>" if item.kind == stat.S_IFIFO else "<sock>"
    letter = "c" if item.kind == stat.S_IFCHR else "b"
    return f"<{letter}:{os.major(item.rdev)}:{os.minor(item.rdev)}>"


def _render_meta(item: Item) -> str:
    meta = ""
    if item.perm is not None or item.owner is not None:
        meta += ":" + ("" if item.perm is None else f"{item.perm:04o}")
        meta += "" if item.owner is None else f",{item.owner[0]},{item.owner[1]}"
    if item.mtime_ns is not None:
        sign, value = ("-", -item.mtime_ns) if item.mtime_ns < 0 else ("", item.mtime_ns)
        meta += f"@{sign}{value // 10**9}" + (f".{value % 10**9:09d}" if value % 10**9 else "")
    if item.xattrs:
        meta += "{" + ",".join(f"{quote(name)}={quote(value)}" for name, value in sorted(item.xattrs)) + "}"
    return meta

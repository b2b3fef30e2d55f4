"""`layers diff`: list the differences between two trees."""

from __future__ import annotations

import json
import os
import stat
from typing import Any

from layers.cli import subjects
from layers.cli.command import Parser
from layers.cli.showing import human, json_path, path_text
from layers.compare import ADDED, Change, changes
from layers.errors import FOUND
from layers.tree import LayerTrees, Node, target, xattrs
from unionfs.printable import printable

_DESCRIPTION = """\
List the changes from A to B: A for added, C for changed, D for deleted paths, and the differences of a C. Of images the
merged trees are compared, not the layers. Exit code 3 when there is a difference.

--json prints a list: kind, path, what (type, mode, owner, time, content, target, device, attributes), and old and new
with type, mode, uid, gid, size, mtime_ns, target, device, attributes (in hexadecimal digits)."""


def main(argv: list[str]) -> int:
    """Run `layers diff ARGV`."""
    parser = Parser("diff", _DESCRIPTION)
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--names", action="store_true", help="only kinds and paths")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing, only set the exit code")
    parser.add_argument("--ignore-times", action="store_true", help="ignore files of which only the time differs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    subjects.add_root(parser)
    arguments = parser.parse_args(argv)
    first, second = subjects.parse(arguments.a), subjects.parse(arguments.b)
    found: list[dict[str, Any]] = []
    differ = False
    with (
        subjects.directories(first, arguments) as old,
        subjects.directories(second, arguments) as new,
        LayerTrees() as branches,
    ):
        for change in changes(branches.view(old), branches.view(new)):
            if arguments.ignore_times and change.what == ("time",):
                continue
            differ = True
            if arguments.quiet:
                break
            if arguments.json:
                found.append(_json(change))
            else:
                detail = "" if arguments.names else _detail(change)
                print(f"{change.kind} {path_text(change.path)}{detail}")
    if arguments.json and not arguments.quiet:
        print(json.dumps(found, indent=1))
    return FOUND if differ else 0


def _detail(change: Change) -> str:
    """The differences in words; of an added path its type, mode, owner and size."""
    if change.kind == ADDED:
        assert change.new is not None
        return f"  ({_words(change.new)})"
    old, new = change.old, change.new
    if old is None or new is None or not change.what:
        return ""
    parts = []
    for what in change.what:
        match what:
            case "type":
                parts.append(f"{_words(old)} -> {_words(new)}")
            case "mode":
                parts.append(f"mode {old.mode:04o} -> {new.mode:04o}")
            case "owner":
                parts.append(f"owner {old.uid}:{old.gid} -> {new.uid}:{new.gid}")
            case "content" if old.size != new.size:
                parts.append(f"content, {human(old.size)} -> {human(new.size)}")
            case "target":
                parts.append(f"target {_text(target(old))} -> {_text(target(new))}")
            case "device":
                parts.append(f"device {old.device[0]}:{old.device[1]} -> {new.device[0]}:{new.device[1]}")
            case "attributes":
                parts.append(f"attributes {_attributes(xattrs(old), xattrs(new))}")
            case _:
                parts.append(what)
    return f"  ({', '.join(parts)})"


def _words(node: Node) -> str:
    text = f"{stat.filemode(node.kind | node.mode)} {node.uid}:{node.gid}"
    if node.kind == stat.S_IFREG:
        return f"{text} {human(node.size)}"
    if node.kind == stat.S_IFLNK:
        return f"{text} -> {_text(target(node))}"
    return text


def _attributes(old: dict[str, bytes], new: dict[str, bytes]) -> str:
    """The names of changed attributes, with + for added, - for removed, ~ for changed."""
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return " ".join(("+" if name not in old else "-" if name not in new else "~") + printable(name) for name in names)


def _text(data: bytes) -> str:
    return printable(data)


def _json(change: Change) -> dict[str, Any]:
    value: dict[str, Any] = {"kind": change.kind, "path": json_path(change.path), "what": list(change.what)}
    for side, node in (("old", change.old), ("new", change.new)):
        if node is not None:
            value[side] = _node(node)
    return value


_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def _node(node: Node) -> dict[str, Any]:
    value: dict[str, Any] = {
        "type": _TYPES[node.kind],
        "mode": f"{node.mode:04o}",
        "uid": node.uid,
        "gid": node.gid,
        "size": node.size,
        "mtime_ns": node.mtime_ns,
    }
    if node.kind == stat.S_IFLNK:
        value["target"] = os.fsdecode(target(node))
    if node.kind in (stat.S_IFCHR, stat.S_IFBLK):
        value["device"] = list(node.device)
    if found := xattrs(node):
        value["attributes"] = {name: value.hex() for name, value in sorted(found.items())}
    return value

"""Describe layers and entries as lines that are safe to print. Pure: no widgets."""

from __future__ import annotations

import datetime as dt
import os
import struct
from collections.abc import Sequence
from typing import Final, Protocol

from layers.cli.showing import human, what
from layers.entry import LINK, WORDS
from layers.explore import details, marks, waste
from layers.explore.filters import type_of
from layers.explore.tree_build import IMPLIED
from layers.explore.tree_index import TreeIndex
from unionfs.printable import printable, printable_line

_CAPABILITY: Final = "security.capability"
_REVISION: Final = 0xFF000000  # <linux/capability.h>
_CAPABILITY_NAMES: Final = tuple(
    """chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service
    net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin
    sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override
    mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore""".split()  # noqa: SIM905
)
_VALUE_MAX: Final = 60


class Layer(Protocol):
    """The name of a layer, and the build step that made it."""

    name: str
    digest: str
    created: str
    created_by: str
    packed: int


def command(layer: Layer) -> str:
    """The step of the build, without the prefixes that Docker adds; empty where none is known."""
    text = " ".join(layer.created_by.split()).removeprefix("/bin/sh -c ").removeprefix("#(nop) ")
    return printable_line(text)


def path(tree: TreeIndex, node: int) -> str:
    """The absolute path of a node."""
    return printable("/" + os.fsdecode(tree.path(node)))


def layer(tree: TreeIndex, layers: Sequence[Layer], number: int) -> list[str]:
    """Describe a layer."""
    one, counts = layers[number], tree.layers[number].about["counts"]
    links = counts["symlinks"] + counts["links"]
    stored, hidden = tree.layers[number].about["stored"], tree.hidden_in[number]
    added, changed, removed = tree.effects(number)
    lines = [f"layer {number}: {printable(one.name)}"]
    lines += [command(one)] if one.created_by else []
    lines += [f"made {printable_line(one.created)}"] if one.created else []
    lines += [
        f"{human(stored)} in {counts['files']} files" + (f", {human(one.packed)} packed" if one.packed else ""),
        f"{counts['directories']} directories, {links} links, {counts['special']} others",
        f"adds {added}, changes {changed}, removes {removed} files",
    ]
    held = [f"{counts[name]} {name}" for name in ("whiteouts", "opaque", "redirects") if counts[name]]
    lines += [f"marks: {', '.join(held)}"] if held else []
    lines += [f"{human(hidden)} of it do not show"] if hidden else []
    return lines


def entry(tree: TreeIndex, layers: Sequence[Layer], node: int, level: int, base: int) -> list[str]:
    """Describe a path: its visible entry, and the entry of each layer."""
    lines = [path(tree, node)]
    change = tree.change(node, base, level) if base >= 0 else ""
    if change:
        lines.append(marks.WORDS[change])
    lines += [marks.MARK_WORDS[mark] for mark in marks.marks_of(tree, node, level)]
    shown = tree.shown(node, level)
    if shown >= 0:
        lines += _attributes(tree, shown)
    size, files = tree.size(node, level)
    if shown >= 0 and tree.is_directory(shown):
        lines.append(f"{human(size)} in {files} files below")
    lines.append("")
    for version in details.versions(tree, node, level):
        lines += _version(tree, layers, version)
    return lines


def _attributes(tree: TreeIndex, number: int) -> list[str]:
    if tree.record_of[number] == IMPLIED:
        return ["a directory that no layer has an entry of"]
    layer_index, record = tree.layers[tree.layer_of[number]], tree.record_of[number]
    one = tree.layer_entry(number)
    kind_word = WORDS.get(one.kind, "hard link" if one.kind == LINK else "other")
    lines = [f"{kind_word}  {what(one, tree.stored[number])}"]
    lines += [f"device {one.device[0]}:{one.device[1]}"] if one.device != (0, 0) else []
    if one.mtime_ns:
        when = dt.datetime.fromtimestamp(one.mtime_ns // 10**9, dt.UTC)
        lines.append(f"changed {when:%Y-%m-%d %H:%M:%S} UTC")
    kind = type_of(tree, number)
    lines += [f"content: {kind}"] if kind else []
    digest = layer_index.content(record)
    lines += [f"XXH3-128 {digest.hex()}"] if digest else []
    return lines + [f"{printable(name)} = {attribute(name, value)}" for name, value in one.xattrs]


def attribute(name: str, value: bytes) -> str:
    """The value of an extended attribute: capabilities by name, text as text, all else in hexadecimal digits."""
    if name == _CAPABILITY and len(value) >= 12:
        magic, low, _, *more = struct.unpack_from(f"<{len(value) // 4}I", value)
        permitted = low | (more[0] << 32 if more else 0)
        names = [word for bit, word in enumerate(_CAPABILITY_NAMES) if permitted >> bit & 1]
        if not magic & ~_REVISION & ~1:
            return ",".join(names) + ("+ep" if magic & 1 else "+p")
    text = printable(value)
    if "\\" in text:
        text = value.hex()
    return text if len(text) <= _VALUE_MAX else text[: _VALUE_MAX - 1] + "…"


def _version(tree: TreeIndex, layers: Sequence[Layer], version: details.Version) -> list[str]:
    sign = {details.SHOWS: "=>", details.MERGED: "+ ", details.HIDDEN: "- ", details.MARK: "x "}[version.state]
    if version.state == details.MARK:
        mark = printable_line(details.words_of_mark(tree, version.entry))
        dialect = tree.layers[version.layer].extra(tree.record_of[version.entry]).get("dialect", "")
        lines = [f"{sign} layer {version.layer} has {mark} ({dialect})"]
    else:
        one = tree.layer_entry(version.entry)
        implied = tree.is_implied(version.entry)
        lines = [
            f"{sign} layer {version.layer}: {'below it only' if implied else what(one, tree.stored[version.entry])}"
        ]
    if version.since != version.layer:
        lines.append(f"   shown here from layer {version.since} on")
    if version.why:
        lines.append(f"   hidden: {printable_line(version.why)}")
    step = command(layers[version.layer])
    return [*lines, f"   {step}"] if step else lines


def difference(old: bytes, new: bytes, old_digest: bytes, new_digest: bytes) -> list[str]:
    """Describe the differences of two versions of a file: lines of text, otherwise sizes and digests."""
    if old_digest and old_digest == new_digest:
        return ["The data is the same."]
    lines = details.text_difference(old, new)
    if lines is not None:
        return [printable_line(line) for line in lines] or ["The data is the same."]
    return [
        f"before: {human(len(old))}, XXH3-128 {old_digest.hex() or 'not known'}",
        f"after:  {human(len(new))}, XXH3-128 {new_digest.hex() or 'not known'}",
    ]


def summary(tree: TreeIndex, layers: Sequence[Layer], most: int = 10) -> list[str]:
    """Describe a whole stack, for dumb terminals and pipes."""
    lines = []
    for number in reversed(range(len(layers))):
        lines += [
            "  ".join(layer(tree, layers, number)[:1]),
            *(f"    {line}" for line in layer(tree, layers, number)[1:]),
        ]
    size, files = tree.size(0, tree.top)
    lines += ["", f"{human(size)} in {files} files show"]
    for cause, (wasted, count) in waste.sums(tree).items():
        if count:
            lines.append(f"wasted, {cause}: {human(wasted)} in {count} files")
    for one in waste.largest(tree, most):
        lines.append(wasted_line(tree, layers, one))
    return lines


def wasted_line(tree: TreeIndex, layers: Sequence[Layer], one: waste.Waste) -> str:
    """Describe one wasted file: size, cause, path, and the build step."""
    where = path(tree, tree.node_of[one.entry])
    step = command(layers[one.by])
    return f"{human(one.size):>9}  {where}  in layer {tree.layer_of[one.entry]}: {whose(tree, one)}" + (
        f" ({step})" if step else ""
    )  # fmt: skip


def whose(tree: TreeIndex, one: waste.Waste) -> str:
    """Describe the cause of a waste, with the responsible layer or path."""
    if one.cause == waste.TWICE:
        return f"as {path(tree, tree.node_of[one.other])}"
    changed = " and ".join(waste.differences(tree, one.entry, one.other)) if one.other >= 0 else ""
    what_ = {
        waste.REPLACED: "replaced by", waste.REMOVED_LATER: "removed by", waste.AGAIN: "stored again by",
        waste.METADATA: f"only the {changed} changed by",
    }[one.cause]  # fmt: skip
    return f"{what_} layer {one.by}"

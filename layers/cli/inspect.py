"""`layers inspect`: what is in a layer, or in each layer of an image."""

from __future__ import annotations

import heapq
import json
import os
import stat
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from layers import digest as digests
from layers import image
from layers.attributes import Options
from layers.cli import subjects
from layers.cli.command import Parser
from layers.cli.subjects import IMAGE, TAR, Subject
from layers.compression import Readable
from layers.entry import DIRECTORY, FILE, LINK, OPAQUE, SYMLINK, WHITEOUT
from layers.store import Store
from layers.tarread import entries
from layers.tarstream import TarStream
from layers.tree import Branch, Branches, View

_LARGEST: Final = 10


@dataclass(slots=True)
class Summary:
    """One layer."""

    subject: str
    digest: str = ""  # of a tar as it travels; empty for a directory
    diff_id: str = ""
    packed: int = 0  # bytes as it travels
    size: int = 0  # bytes of its files
    files: int = 0
    directories: int = 0
    symlinks: int = 0
    links: int = 0  # further names of files
    special: int = 0  # devices, fifos, sockets
    whiteouts: dict[str, int] = field(default_factory=dict)  # by dialect
    opaque: dict[str, int] = field(default_factory=dict)  # by dialect
    redirects: int = 0
    largest: list[tuple[int, str]] = field(default_factory=list)

    def add_file(self, size: int, path: str) -> None:
        self.files += 1
        self.size += size
        heapq.heappush(self.largest, (size, path))
        if len(self.largest) > _LARGEST:
            heapq.heappop(self.largest)


def main(argv: list[str]) -> int:
    """Run `layers inspect ARGV`."""
    parser = Parser("inspect", "Sizes, numbers of files and whiteouts, and the largest files.")
    parser.add_argument("layers", metavar="LAYER|IMAGE", nargs="+")
    parser.add_argument("--json", action="store_true", help="print JSON")
    subjects.add_root(parser)
    arguments = parser.parse_args(argv)
    results = []
    for text in arguments.layers:
        subject = subjects.parse(text)
        results.append(_image(subject, Store(arguments.root)) if subject.kind == IMAGE else _layer(subject))
    if arguments.json:
        print(json.dumps(results, indent=1))
    else:
        for result in results:
            _print(result)
    return 0


def _layer(subject: Subject) -> dict[str, Any]:
    if subject.kind == TAR:
        with open(subject.text, "rb") as file:
            return {"layers": [_told(of_tar(file, subject.text))]}
    with Branches() as branches:
        return {"layers": [_told(of_directory(branches.open(subject.text), subject.text))]}


def _image(subject: Subject, store: Store) -> dict[str, Any]:
    named = store.find(subject.text)
    descriptor, item, config = image.read(store, named.descriptor)
    layers = []
    for layer, diff_id in zip(item.layers, config.diff_ids, strict=True):
        with store.open_blob(layer.digest) as blob:
            summary = of_tar(blob, digests.short(layer.digest))
        summary.digest, summary.diff_id, summary.packed = layer.digest, diff_id, layer.size
        layers.append(_told(summary))
    settings = config.settings
    return {
        "name": named.name,
        "digest": descriptor.digest,
        "platform": str(config.platform),
        "created": config.created,
        "author": config.author,
        "config": {
            "user": settings.user,
            "env": list(settings.env),
            "entrypoint": settings.entrypoint,
            "cmd": settings.cmd,
            "working_dir": settings.working_dir,
            "volumes": list(settings.volumes),
            "exposed_ports": list(settings.exposed_ports),
            "labels": dict(settings.labels),
            "stop_signal": settings.stop_signal,
        },
        "layers": layers,
    }


def of_tar(source: Readable, name: str) -> Summary:
    """What the tar of a layer holds. Raises: Refused."""
    summary = Summary(name)
    limits = Options().limits
    with TarStream(source, limits) as stream:
        for entry in entries(stream, limits):
            if entry.kind == FILE:
                summary.add_file(entry.size, os.fsdecode(b"/".join(entry.path)))
            elif entry.kind == DIRECTORY:
                summary.directories += 1
            elif entry.kind == SYMLINK:
                summary.symlinks += 1
            elif entry.kind == LINK:
                summary.links += 1
            elif entry.kind == WHITEOUT:
                summary.whiteouts["oci"] = summary.whiteouts.get("oci", 0) + 1
            elif entry.kind == OPAQUE:
                summary.opaque["oci"] = summary.opaque.get("oci", 0) + 1
            else:
                summary.special += 1
        summary.diff_id, _ = stream.finish()
    return summary


def of_directory(branch: Branch, name: str) -> Summary:
    """What a layer directory holds."""
    summary = Summary(name)
    seen = set()
    for path, node in View([branch]).walk():
        if node.is_dir:
            scan = branch.scan(path)
            summary.directories += 1
            summary.redirects += scan.redirect is not None
            if scan.opaque:
                summary.opaque[scan.opaque] = summary.opaque.get(scan.opaque, 0) + 1
            for dialect in scan.whiteouts.values():
                summary.whiteouts[dialect] = summary.whiteouts.get(dialect, 0) + 1
        elif node.inode in seen:
            summary.links += 1
        elif node.kind == stat.S_IFREG:
            summary.add_file(node.size, os.fsdecode(b"/".join(path)))
        elif node.kind == stat.S_IFLNK:
            summary.symlinks += 1
        else:
            summary.special += 1
        if node.nlink > 1 and not node.is_dir:
            seen.add(node.inode)
    return summary


def _told(summary: Summary) -> dict[str, Any]:
    told = asdict(summary)
    told["largest"] = [{"path": path, "size": size} for size, path in sorted(summary.largest, reverse=True)]
    return told


def _print(result: dict[str, Any]) -> None:
    if "name" in result:
        print(f"{result['name'] or '(no name)'}  {result['digest']}  {result['platform']}  {result['created']}")
    for layer in result["layers"]:
        marks = [f"{count} whiteouts ({dialect})" for dialect, count in layer["whiteouts"].items()]
        marks += [f"{count} opaque directories ({dialect})" for dialect, count in layer["opaque"].items()]
        marks += [f"{layer['redirects']} redirected directories"] if layer["redirects"] else []
        print(
            f"{layer['subject']}: {layer['size']} bytes in {layer['files']} files, {layer['directories']} directories, "
            f"{layer['symlinks']} symlinks, {layer['links']} hard links, {layer['special']} others; "
            f"{', '.join(marks) or 'no marks'}"
        )
        for largest in layer["largest"]:
            print(f"  {largest['size']:>12}  {largest['path'].encode(errors='backslashreplace').decode()}")

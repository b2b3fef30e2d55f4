"""`unionfs export`: write the root filesystem of a container as a tar."""

from __future__ import annotations

import sys
from typing import IO

from layers import pack
from layers.tree import LayerTrees
from unionfs.cli import each, image_flags, notes
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import CommandError
from unionfs.containers import images, pause
from unionfs.containers.record import Container
from unionfs.containers.rootfs import image_file_shown, read_upper
from unionfs.containers.store import ContainerStore
from unionfs.drivers.driver import is_whole
from unionfs.output_file import OutputFile


def main(argv: list[str]) -> int:
    """Run `unionfs export ARGV`."""
    parser = Parser(
        "export",
        "Write the root filesystem of a container, without volumes, as a tar to FILE or stdout.",
        image_flags.EPILOG,
    )
    parser.add_argument("container", metavar="CONTAINER", help="a name, an id, or the beginning of an id")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: stdout")
    each.add_root(parser)
    arguments = parser.parse(argv)
    container = ContainerStore(arguments.root).find(arguments.container)
    if container.config.rootfs.shows_host:
        raise CommandError(f"export failed: {container.name}: it shows this machine itself")
    target = arguments.output
    if target in (None, "-"):
        if sys.stdout.isatty():
            raise CommandError("exporting failed: stdout is a terminal", hint="unionfs export -o FILE", status=2)
        with pause.paused(container, "export", stopped=False):
            return images.with_ids(lambda: _write(container, sys.stdout.buffer, "stdout"))
    with OutputFile(target) as written:
        with pause.paused(container, "export", stopped=False):
            status = images.with_ids(lambda: _write(container, written.file, target))
        if status:
            written.abandon()
    return status


def _write(container: Container, sink: IO[bytes], shown: str) -> int:
    rootfs = container.config.rootfs
    read_upper(container)
    with image_file_shown(container), LayerTrees() as branches:
        view = branches.view([container.upper, *(() if is_whole(rootfs.driver) else rootfs.lowers)])
        with images.writing_to("export", shown):
            epoch = pack.source_date_epoch()
            pack.pack(pack.merged_items(view), sink, "none", epoch=epoch, on_shrunk=notes.note_shrunk)
            sink.flush()
    return 0

"""`unionfs commit`: make an image of a container's image and its changes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any, Final

from layers import compare, reference
from layers.make_image import Committed, ImageOptions
from layers.store import Store
from unionfs.cli import each, image_flags, notes, store_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import CommandError, failed
from unionfs.cli.progress import shown
from unionfs.containers import commit, freeze, images, pause
from unionfs.containers.errors import ContainerError
from unionfs.containers.record import Container
from unionfs.containers.rootfs import image_file_shown
from unionfs.containers.store import ContainerStore
from unionfs.printable import printable

_DESCRIPTION: Final = """\
Make an image: the container's image, and on top of it a layer with the container's changes. Files equal to those of the
image are left out. The image of a running container shows one instant, and no process is stopped: the container is
frozen (see unionfs freeze). With --pause, and where freezing is not possible, it is paused instead; with --no-pause
never.

The new image has the container's command, variables, user and working directory; -c changes them. Volumes
are not part of it. For a container made of directories, each directory becomes a layer of the image."""

_EPILOG: Final = f"""\
example:
  unionfs commit -p -m "with curl" -c 'CMD ["bash"]' box user/box:v0.1

The new image's id is printed; with --json one object: id, digest, layer (digest, size), changes (kind and path, as
`unionfs diff` has them) and equal (files that were written but not changed, and are left out).

{image_flags.EPILOG}"""

_LETTERS: Final = {compare.ADDED: "A", compare.CHANGED: "C", compare.DELETED: "D"}


def main(argv: list[str]) -> int:
    """Run `unionfs commit ARGV`."""
    parser = Parser("commit", _DESCRIPTION, _EPILOG)
    add = parser.add_argument
    add("container", metavar="CONTAINER", help="a name, an id, or the beginning of an id")
    add("name", metavar="NAME[:TAG]", nargs="?", help="[REGISTRY/]NAME[:TAG]; without it the image has only a digest")
    add("-p", "--pause", action="store_true", default=None, help="pause a running container instead of freezing it")
    add("--no-pause", dest="pause", action="store_false", help="never pause it: then files may be incomplete")
    add("-a", "--author", metavar="TEXT", default="", help="the image's author")
    add("-m", "--message", metavar="TEXT", default="", help="for the image's history")
    add("-c", "--change", metavar="INSTRUCTION", action="append", default=[], help="as in a Dockerfile: CMD, ENV ...")
    add("--compression", choices=("gzip", "zstd", "none"), default="gzip", help="default: gzip")
    add("--report", action="store_true", help="list the files in the layer, and the equal files that were left out")
    add("--json", action="store_true", help="print JSON")
    add("-q", "--quiet", action="store_true", help="show no progress")
    add("--iidfile", metavar="FILE", help="write the image's id to FILE, too")
    each.add_root(parser)
    store_flags.add_image_stores(parser)
    arguments = parser.parse(argv)
    store = ContainerStore(arguments.root)
    container = store.find(arguments.container)
    commit.check(container)
    image_store = Store(store.root, (*store_flags.image_stores(arguments), *_store_of_base(container)))
    with images.failures():
        name = str(reference.parse(arguments.name)) if arguments.name else ""
        if "@" in name:
            raise CommandError(failed("commit", arguments.name, "a digest cannot be given"), status=2)
    if container.status == "running" and not arguments.pause and freeze.can_freeze(container):
        frozen = _frozen(container)
        if frozen is not None:
            return images.with_ids(lambda: _commit(arguments, image_store, frozen, name, frozen_only=True))
    with (
        store.changing(container) as current,
        pause.paused(current, "commit", stopped=arguments.pause is not False),
    ):
        return images.with_ids(lambda: _commit(arguments, image_store, current, name))


def _store_of_base(container: Container) -> tuple[str, ...]:
    """The further store that has the container's image, if it is in one."""
    image = container.config.image
    return (image.store,) if image is not None and image.store else ()


def _frozen(container: Container) -> Container | None:
    """The running container with all its changes in frozen branches; None if it is to be paused."""
    if not freeze.has_changes(container):
        return container if container.frozen else None
    try:
        return freeze.freeze(container, warn=notes.warn)
    except ContainerError:
        return None


def _commit(
    arguments: argparse.Namespace, images: Store, container: Container, name: str, *, frozen_only: bool = False
) -> int:
    wanted = ImageOptions(
        name=name,
        author=arguments.author,
        message=arguments.message,
        changes=arguments.change,
        compression=arguments.compression,
    )
    with image_file_shown(container), shown(quiet=arguments.quiet) as progress:
        made = commit.commit(container, images, wanted, progress, notes.note_shrunk, frozen_only=frozen_only)
    if arguments.iidfile:
        with open(arguments.iidfile, "w", encoding="ascii") as file:
            file.write(made.id)
    if arguments.json:
        print(json.dumps(_as_json(made)))
    else:
        if arguments.report:
            _report(made)
        print(made.id)
    sys.stdout.flush()
    return 0


def _report(made: Committed) -> None:
    for change in made.changes:
        print(f"{_LETTERS.get(change.kind, change.kind)} /{printable(_path(change.path))}")
    for change in made.equal:
        print(f"= /{printable(_path(change.path))}")


def _path(path: tuple[bytes, ...]) -> str:
    return os.fsdecode(b"/".join(path))


def _as_json(made: Committed) -> dict[str, Any]:
    return {
        "id": made.id,
        "digest": made.digest,
        "layer": {"digest": made.layer.digest, "size": made.layer.size},
        "changes": [
            {"kind": _LETTERS.get(change.kind, change.kind), "path": f"/{_path(change.path)}"}
            for change in made.changes
        ],
        "equal": [f"/{_path(change.path)}" for change in made.equal],
    }

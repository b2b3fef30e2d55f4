"""`unionfs commit`: make an image of a container, out of what it changed."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from contextlib import suppress
from typing import Any, Final

from layers import diff, make_image, reference
from layers.attributes import Options
from layers.errors import LayerError, NotFound, printable
from layers.make_image import Committed, Wish
from layers.manifest import Descriptor
from layers.store import Store
from unionfs.cli import each, image_store
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import CommandError, failed
from unionfs.cli.progress import shown
from unionfs.containers import freeze, start
from unionfs.containers.job import Job
from unionfs.containers.record import Container
from unionfs.containers.rootfs import mountpoints
from unionfs.containers.store import ContainerStore
from unionfs.drivers.driver import is_whole

_DESCRIPTION: Final = """\
Make an image: that of which the container was made, and on top a layer with what the container changed. Only what
differs goes into the layer. While the container runs it is held still meanwhile, unless --no-pause says otherwise.

The new image runs what the container ran (its command, variables, user, working directory); -c changes that. Volumes
are no part of it. A container on directories gives an image in which each of them is a layer."""

_EPILOG: Final = f"""\
example:
  unionfs commit -p -m "with curl" -c 'CMD ["bash"]' box user/box:v0.1

--json prints one object: digest, layer (digest, size), changes (kind and path, as `unionfs diff` has them) and equal
(what was written but is equal to what was there, and left out).

{image_store.EPILOG}"""

_LETTERS: Final = {diff.ADDED: "A", diff.CHANGED: "C", diff.DELETED: "D"}


def main(argv: list[str]) -> int:
    """Run `unionfs commit ARGV`."""
    parser = Parser("commit", _DESCRIPTION, _EPILOG)
    add = parser.add_argument
    add("container", metavar="CONTAINER", help="a name, an id, or how an id begins")
    add("name", metavar="NAME[:TAG]", nargs="?", help="[REGISTRY/]NAME[:TAG]; without it the image has its digest only")
    add("-p", "--pause", action="store_true", default=True, help="hold a running container still (default)")
    add("--no-pause", dest="pause", action="store_false", help="let it run on: files may be caught half-written")
    add("-a", "--author", metavar="TEXT", default="", help="who made it")
    add("-m", "--message", metavar="TEXT", default="", help="for the image's history")
    add("-c", "--change", metavar="INSTRUCTION", action="append", default=[], help="as in a Dockerfile: CMD, ENV ...")
    add("--compression", choices=("gzip", "zstd", "none"), default="gzip", help="default: gzip")
    add("--report", action="store_true", help="list what is in the layer, and what was left out because it is equal")
    add("--json", action="store_true", help="print JSON")
    add("-q", "--quiet", action="store_true", help="show no progress")
    each.add_root(parser)
    arguments = parser.parse(argv)
    store = ContainerStore(arguments.root)
    container = store.find(arguments.container)
    if container.kind == "run" and any(os.path.realpath(lower) == "/" for lower in container.lowers):
        hint = f"unionfs diff {container.name} lists its changes; an image needs a base that others can have, too"
        raise CommandError(failed("commit", container.name, "it shows this machine itself"), hint=hint)
    if container.kind != "run":
        raise CommandError(failed("commit", container.name, "it is a view of this machine (try)"))
    with image_store.failures():
        name = str(reference.parse(arguments.name)) if arguments.name else ""
        if "@" in name:
            raise CommandError(failed("commit", arguments.name, "a digest cannot be given"), status=2)
    with freeze.held(container, "commit", stopped=arguments.pause):
        return image_store.with_ids(lambda: _commit(arguments, Store(store.root), container, name))


def _commit(arguments: argparse.Namespace, store: Store, container: Container, name: str) -> int:
    options = Options(owners=image_store.owners_here())
    wish = Wish(
        name=name,
        author=arguments.author,
        message=arguments.message,
        created_by=shlex.join(container.command),
        changes=[*_settings(container), *arguments.change],
        compression=arguments.compression,
    )
    with image_store.failures(), shown(quiet=arguments.quiet) as progress, store.adding():
        base, steps = _base(store, container, options)
        try:
            made = make_image.commit(
                store,
                container.upper,
                base,
                wish,
                is_whole=is_whole(container.driver),
                mountpoints=mountpoints(container),
                beneath=(container.ground,) if container.has_ground and is_whole(container.driver) else (),
                options=options,
                progress=progress,
            )
        except NotFound as error:
            raise CommandError(str(error), hint=f"the image {container.image} was removed; pull it again") from error
        finally:
            for step in steps:  # images of their own only until now
                with suppress(LayerError):
                    store.remove_digest(store.find(step).descriptor.digest)
    if arguments.json:
        print(json.dumps(_as_json(made)))
    else:
        if arguments.report:
            _report(made)
        print(made.digest)
    sys.stdout.flush()
    return 0


def _base(store: Store, container: Container, options: Options) -> tuple[str | None, list[str]]:
    """The image that the container was made of, and such as were only made to be that."""
    if container.image_digest:
        from layers.digest import Digest

        digest = Digest(container.image_digest)
        if store.has(digest):  # its name may be another image's by now
            size = os.stat(store.blob_path(digest)).st_size
            store.tag(Descriptor(container.image_type, digest, size), "")
        return digest, []
    base: str | None = None
    steps: list[str] = []
    for lower in reversed(container.lowers):
        made = make_image.commit(store, lower, base, Wish(created_by="unionfs run --lower"), options=options)
        base = str(made.digest)
        steps.append(base)
    return base, steps


def _settings(container: Container) -> list[str]:
    """What the container ran, as instructions of a Dockerfile."""
    if not container.job:
        return []
    job: Job = start.job_of(container)
    rest = job.command[len(job.entrypoint) :]
    found = [f"ENTRYPOINT {_json(job.entrypoint)}", f"CMD {_json(rest)}"]
    found += [f"ENV {name}={shlex.quote(value)}" for name, value in job.environment if name.strip()]
    found += [f"LABEL {shlex.quote(f'{name}={value}')}" for name, value in job.labels if name]
    if job.user:
        found.append(f"USER {job.user}")
    if job.workdir != "/":
        found.append(f"WORKDIR {job.workdir}")
    if job.stop_signal != "SIGTERM":
        found.append(f"STOPSIGNAL {job.stop_signal}")
    return found


def _json(words: tuple[str, ...]) -> str:
    return json.dumps([_text(word) for word in words])


def _text(word: str) -> str:
    return os.fsencode(word).decode(errors="replace")


def _report(made: Committed) -> None:
    for change in made.changes:
        print(f"{_LETTERS.get(change.kind, change.kind)} /{printable(_path(change.path))}")
    for change in made.equal:
        print(f"= /{printable(_path(change.path))}")


def _path(path: tuple[bytes, ...]) -> str:
    return os.fsdecode(b"/".join(path))


def _as_json(made: Committed) -> dict[str, Any]:
    return {
        "digest": made.digest,
        "layer": {"digest": made.layer.digest, "size": made.layer.size},
        "changes": [
            {"kind": _LETTERS.get(change.kind, change.kind), "path": f"/{_path(change.path)}"}
            for change in made.changes
        ],
        "equal": [f"/{_path(change.path)}" for change in made.equal],
    }

"""Make an image of a container: the layers of the container's image, and on top of them a layer with its changes.

The new image has the container's command. If the container is made of directories, each becomes a layer of the image.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections.abc import Sequence
from contextlib import suppress

from layers import make_image
from layers.attributes import Options
from layers.digest import Digest
from layers.errors import LayerError, NotFound
from layers.make_image import Committed, ImageOptions
from layers.manifest import Descriptor
from layers.pack import OnShrunk
from layers.progress import Progress
from layers.store import Store
from unionfs.containers.errors import ContainerError
from unionfs.containers.images import owners_here
from unionfs.containers.record import Container
from unionfs.containers.rootfs import mountpoints, read_upper
from unionfs.drivers.driver import is_whole


def check(container: Container) -> None:
    """Raises: ContainerError if no image can be made of the container."""
    if container.config.kind != "run":
        raise ContainerError("commit", container.name, "it is a view of this machine (try)")
    if container.config.image is not None and container.config.rootfs.restacked:
        hint = f"unionfs export {container.name} writes its whole root filesystem as a tar, for unionfs import"
        raise ContainerError("commit", container.name, "it has other branches than its image", hint=hint)
    if container.config.rootfs.shows_host:
        hint = f"unionfs diff {container.name} lists its changes; an image needs a base that other machines can have"
        raise ContainerError("commit", container.name, "it shows this machine itself", hint=hint)


def commit(
    container: Container,
    images: Store,
    wanted: ImageOptions,
    progress: Progress,
    on_shrunk: OnShrunk,
    *,
    frozen_only: bool = False,
) -> Committed:
    """Make the image, with the container's command and settings, then those of `wanted`. `on_shrunk`: as in
    `layers.pack.pack`. `frozen_only`: without the changes since the last freeze.

    Preconditions: within `images.with_ids`; the container paused or not running, or `frozen_only`.
    Raises: ContainerError, LayerError, OSError.
    """
    options = Options(owners=owners_here())
    whole = is_whole(container.config.rootfs.driver)
    read_upper(container)
    wanted = dataclasses.replace(
        wanted,
        created_by=shlex.join(container.config.process.command),
        changes=[*_settings(container), *wanted.changes],
    )
    upper, *frozen = container.frozen if frozen_only else (container.upper, *container.frozen)
    with images.adding():
        base, steps = _base(images, container, options, on_shrunk)
        try:
            return make_image.commit(
                images,
                upper,
                base,
                wanted,
                is_whole=whole,
                frozen=frozen,
                mountpoints=mountpoints(container),
                beneath=(container.mountpoint_lower,) if container.facts.mountpoint_lower and whole else (),
                options=options,
                progress=progress,
                on_shrunk=on_shrunk,
            )
        except NotFound as error:
            image = container.config.image
            hint = f"the image {image.name if image else ''} was removed; pull it again"
            raise ContainerError("", "", str(error), hint=hint) from error
        finally:
            for step in steps:  # they were needed only as the base of the new image
                with suppress(LayerError):
                    images.remove_digest(images.find(step).descriptor.digest)


def _base(store: Store, container: Container, options: Options, on_shrunk: OnShrunk) -> tuple[str | None, list[str]]:
    """The container's image, and images that were only made as its base."""
    image = container.config.image
    if image is not None:
        digest = Digest(image.digest)
        if store.has_own(digest):  # its name may belong to another image now
            size = os.stat(store.blob_path(digest)).st_size
            store.tag(Descriptor(image.media_type, digest, size), "")
        return digest, []
    base: str | None = None
    steps: list[str] = []
    for lower in reversed(container.base):
        wanted = ImageOptions(created_by="unionfs run --lower")
        made = make_image.commit(store, lower, base, wanted, options=options, on_shrunk=on_shrunk)
        base = str(made.digest)
        steps.append(base)
    return base, steps


def _settings(container: Container) -> list[str]:
    """The container's command and settings as Dockerfile instructions."""
    config, process = container.config, container.config.process
    rest = process.command[len(config.entrypoint) :]
    found = [f"ENTRYPOINT {_json(config.entrypoint)}", f"CMD {_json(rest)}"]
    found += [f"ENV {name}={shlex.quote(value)}" for name, value in process.environment if name.strip()]
    found += [f"LABEL {shlex.quote(f'{name}={value}')}" for name, value in config.labels if name]
    if process.user:
        found.append(f"USER {process.user}")
    if process.workdir != "/":
        found.append(f"WORKDIR {process.workdir}")
    if config.stop_signal != "SIGTERM":
        found.append(f"STOPSIGNAL {config.stop_signal}")
    return found


def _json(words: Sequence[str]) -> str:
    return json.dumps([os.fsencode(word).decode(errors="replace") for word in words])

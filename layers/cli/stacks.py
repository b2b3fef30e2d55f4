"""The stack of layers that a command line names: an image, or directories and tars, the topmost first.

Nothing is unpacked: tars, also those of an image in the store, are read directly.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any

from layers import archive, lookup
from layers import digest as digests
from layers.cli.subjects import ARCHIVE, IMAGE, TAR, Subject
from layers.config import History
from layers.pieces import Piece, TarPieces, of_directory
from layers.store import Store, StoredImage
from layers.tree import LayerTrees


@dataclass(slots=True)
class StackLayer:
    """One layer of a stack. Fields that only layers of images have are empty for others."""

    subject: Subject | None  # None: of an image
    name: str
    store: Store | None = None
    digest: str = ""  # of the tar as stored in the image
    diff_id: str = ""  # for a tar of no image set by reading all its pieces
    packed: int = 0  # bytes of the tar as stored
    created: str = ""
    created_by: str = ""

    def pieces(self, *, fingerprints: bool = True) -> Iterator[Piece]:
        """Read the entries of the layer. Raises: Refused, NotFound, OSError."""
        if self.directory is not None:
            with LayerTrees() as branches:
                yield from of_directory(branches.open(self.directory), fingerprints=fingerprints)
            return
        with self.opened() as source:
            found = TarPieces(source)
            yield from found
            self.diff_id = found.diff_id

    @property
    def directory(self) -> str | None:
        """The host path of a layer that is a directory; None: it is a tar."""
        return self.subject.text if self.subject is not None and self.subject.kind != TAR else None

    def opened(self) -> IO[bytes]:
        """Open the tar. Raises: NotFound, OSError."""
        if self.store is not None:
            return self.store.open_blob(digests.Digest(self.digest))
        assert self.subject is not None
        return open(self.subject.text, "rb")


@dataclass(slots=True)
class Stack:
    """Layers, bottom first, and the metadata of the image for JSON (empty for layers of no image)."""

    layers: list[StackLayer]
    about: dict[str, Any]


def of_image(store: Store, named: StoredImage) -> Stack:
    """The layers of an image. Raises: NotFound, Refused."""
    descriptor, item, config = lookup.read(store, named.descriptor)
    steps = [entry for entry in config.history if not entry.empty_layer]
    layers = []
    for number, (layer, diff_id) in enumerate(zip(item.layers, config.diff_ids, strict=True)):
        step = steps[number] if len(steps) == len(item.layers) else History()
        layers.append(
            StackLayer(
                None,
                digests.short(layer.digest),
                store,
                layer.digest,
                diff_id,
                layer.size,
                step.created,
                step.created_by or step.comment,
            )
        )
    settings = config.settings
    about = {
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
    }
    return Stack(layers, about)


def of_subjects(subjects: list[Subject], arguments: Namespace, keep: ExitStack) -> Stack:
    """The stack of the named layers, the topmost first; an image among them stands for all its layers.

    Archives are opened until `keep` closes.
    """
    layers: list[StackLayer] = []
    about: dict[str, Any] = {}
    for subject in subjects:
        if subject.kind in (IMAGE, ARCHIVE):
            if subject.kind == ARCHIVE:
                store, named = archive.open_archive(subject.text, keep)
            else:
                store = Store(arguments.root)
                named = store.find(subject.text)
            found = of_image(store, named)
            about = found.about if len(subjects) == 1 else {}
            layers = found.layers + layers
        else:
            packed = os.stat(subject.text).st_size if subject.kind == TAR else 0
            layers.insert(0, StackLayer(subject, subject.text, packed=packed))
    return Stack(layers, about)

"""Write an image as one squashfs (see `image_file`).

`sqfstar` (squashfs-tools) makes it from a tar that this module writes: so names, owners and extended attributes are
those of the layers, no name leads outside, and only the caller's user id is needed. Equal images give equal files:
entries are sorted, and the time of the filesystem is SOURCE_DATE_EPOCH, or else that of the newest file.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from layers import image, image_file, lookup, pack
from layers.attributes import Options
from layers.entry import DIRECTORY, FILE, LINK, Entry
from layers.errors import LayerError
from layers.pack import Epoch, Item
from layers.progress import Progress
from layers.safe_open import Path
from layers.store import Store
from layers.tree import LayerTrees, View

PROGRAM: Final = "sqfstar"
_WHAT: Final = "saving an image as squashfs"
_KEY: Final = "squashfs"
_OWN: Final = os.fsencode(image_file.DIRECTORY)
_INSTALL: Final = "install squashfs-tools 4.5 or newer"


def save(store: Store, text: str, path: str, *, separate: bool, options: Options, progress: Progress) -> None:
    """Write the image to the file at `path`. `separate`: each layer in a directory of its own, with its whiteouts.

    Raises: NotFound, LayerError if the program is missing or fails, OSError.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        raise LayerError(_WHAT, text, f"{PROGRAM} is not installed", hint=_INSTALL)
    epoch = pack.source_date_epoch()
    command = [program, "-comp", "zstd", "-no-progress", "-quiet", "-exit-on-error", "-force"]
    with store.adding(), LayerTrees() as branches:
        lowers = image.unpack_image(store, store.find(text).descriptor, options, progress)
        _, manifest, _ = lookup.read(store, lowers.descriptor)
        names = tuple(f"layers/{number:03}" for number in range(len(lowers.lowers))) if separate else ()
        description = image_file.describe(manifest.config.digest, names, store.read_blob(manifest.config.digest))
        views = [branches.view([one]) for one in lowers.lowers] if separate else [branches.view(lowers.lowers)]
        command += [*_root_flags(None if separate else views[0]), path]
        latest = epoch.seconds if epoch else max(map(_newest, views))
        if separate:
            items = _separate(branches, lowers.lowers, names)
        else:
            items = _whole(branches, lowers.lowers)
        progress.begin(_KEY, "saving", None)
        _make(command, latest, itertools.chain(_described(description), items), epoch, progress)
        with open(path, "r+b") as file:
            image_file.append_copy(file.fileno(), path, description)
        progress.end(_KEY, "saved")


def _root_flags(view: View | None) -> list[str]:
    """The flags for the root directory, for which the program accepts no entry: its metadata in the view, or root's."""
    root = view.find(()) if view is not None else None
    mode, uid, gid = (root.mode, root.uid, root.gid) if root is not None else (0o755, 0, 0)
    return ["-root-mode", f"{mode:o}", "-root-uid", str(uid), "-root-gid", str(gid)]


def _newest(view: View) -> int:
    """The latest time of a file, in seconds."""
    return max([0, *(node.mtime_ns for _, node in view.walk())]) // 10**9


def _make(command: list[str], latest: int, items: Iterable[Item], epoch: Epoch | None, progress: Progress) -> None:
    """Run the program on the tar of the items; no time in the file is later than `latest`, in seconds. So the root
    directory, to which the program gives the present time, gets that one. Raises: LayerError, OSError."""
    environment = {**os.environ, pack.EPOCH_VARIABLE: str(latest)}
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment)
        assert child.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # its output has the reason
                pack.pack(items, child.stdin, "none", epoch=epoch, on_read=lambda count: progress.advance(_KEY, count))
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
        except BaseException:
            child.kill()
            child.wait()
            raise
        if child.wait():
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines() or ["no message"]
            raise LayerError(_WHAT, command[-1], f"{PROGRAM} failed: {lines[-1]}", hint=_INSTALL)


def _described(content: bytes) -> Iterator[Item]:
    """The entries of our own directory."""
    yield Item(Entry((_OWN,), DIRECTORY, 0o755))
    fd = os.memfd_create("config")
    os.write(fd, content)
    path = tuple(os.fsencode(part) for part in image_file.CONFIG.split("/"))
    yield Item(Entry(path, FILE, 0o644, size=len(content)), fd)


def _whole(branches: LayerTrees, lowers: Sequence[str]) -> Iterator[Item]:
    """The union of all layers. A directory .unionfs in the image, which was then made of such a file itself, is left
    out."""
    for item in pack.merged_items(branches.view(lowers)):
        if item.entry.path[:1] != (_OWN,):
            yield item
        elif item.data_fd is not None:
            os.close(item.data_fd)


def _separate(branches: LayerTrees, lowers: Sequence[str], names: Sequence[str]) -> Iterator[Item]:
    """The layers, each in the directory of its name, the lowest first."""
    yield Item(Entry((b"layers",), DIRECTORY, 0o755))
    for lower, name in zip(reversed(lowers), names, strict=True):
        above: Path = tuple(os.fsencode(part) for part in name.split("/"))
        for item in pack.layer_items(branches.open(lower)):
            entry = item.entry
            link = (*above, *entry.link) if entry.kind == LINK else ()
            yield item._replace(entry=entry._replace(path=(*above, *entry.path), link=link))

"""The implementation of `import layers`: reading images and layers. The names in `layers.__all__` are public.

Nothing is mounted and nothing is run. Images and tars are untrusted: malformed, dangerous or too large content, and
content that does not match its digest, is refused (`Refused`).
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Literal, Self

from layers import archive, compare, image, lookup
from layers.config import History
from layers.entry import BLOCK, CHARACTER, DIRECTORY, FIFO, FILE, LINK, OPAQUE, SYMLINK, WHITEOUT
from layers.entry import Entry as TarEntry
from layers.errors import NotFound, Refused
from layers.manifest import Descriptor
from layers.pieces import Piece, TarPieces, of_directory
from layers.progress import Silent
from layers.safe_open import Path
from layers.size_report import effects, visible_effects
from layers.store import Store, StoredImage
from layers.tar_directory import own_options, unpacked_tar
from layers.tree import LayerTrees
from unionfs.store_files import default_root

StrPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

Kind = Literal[
    "file", "directory", "symlink", "link", "fifo", "socket", "character", "block", "whiteout", "opaque"
]  # fmt: skip
_KINDS: Final[dict[int, Kind]] = {
    FILE: "file", DIRECTORY: "directory", SYMLINK: "symlink", LINK: "link", FIFO: "fifo", stat.S_IFSOCK: "socket",
    CHARACTER: "character", BLOCK: "block", WHITEOUT: "whiteout", OPAQUE: "opaque",
}  # fmt: skip
_CHANGES: Final[dict[str, Literal["added", "changed", "deleted"]]] = {
    compare.ADDED: "added", compare.CHANGED: "changed", compare.DELETED: "deleted",
}  # fmt: skip
_WHAT: Final = "opening an image"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a layer. A `whiteout` hides its path in the layers beneath, an `opaque` hides the content of its
    directory in them; a `link` is a further name of the file at `link`."""

    path: str  # with a leading slash; names that are not UTF-8 by surrogateescape
    kind: Kind
    mode: int  # permission bits
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: str = ""  # of a symlink
    link: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The effect of one layer on a path: it `brings` the path, `hides` it by a whiteout, `empties` it by an opaque
    mark, `covers` it by a file at a directory above it, or only `passes` through: it has files below, but no entry of
    it. `shows`: the image shows this layer's entry."""

    layer: Layer
    does: Literal["brings", "hides", "empties", "covers", "passes"]
    at: str  # the path of the entry that has this effect: the path itself, or one above it
    shows: bool
    entry: Entry | None  # that entry, if it brings or covers the path


@dataclass(frozen=True, slots=True)
class Difference:
    """One path of `diff`. `what` lists the differences of a changed one: type, mode, owner, time, content, target,
    device, attributes; it is empty for a directory of which only the content changed."""

    kind: Literal["added", "changed", "deleted"]
    path: str
    what: tuple[str, ...]


class Layer:
    """One layer. Iterating it gives its entries; each iteration reads it again."""

    def __init__(
        self, path: str, *, digest: str = "", diff_id: str = "", size: int = 0, created_by: str = "", index: int = 0
    ) -> None:
        self.path: Final = path  # the path of its tar, compressed or not, or of its directory
        self.digest: Final = digest  # of the tar as stored in the image; empty if it is of no image
        self.diff_id: Final = diff_id  # of the tar without compression; likewise
        self.size: Final = size  # bytes of the tar as stored; 0 for a directory
        self.created_by: Final = created_by  # the build step that made it, as the image's history says
        self.index: Final = index  # in its image, 0 at the bottom

    def __repr__(self) -> str:
        return f"<Layer {self.digest or self.path}>"

    def __iter__(self) -> Iterator[Entry]:
        """The entries in their order. Raises Refused, also at the end if the digest is not the image's; OSError."""
        return (_entry(piece.entry) for piece in self._pieces())

    def _pieces(self) -> Iterator[Piece]:
        if os.path.isdir(self.path):
            with LayerTrees() as branches:
                yield from of_directory(branches.open(self.path), fingerprints=False)
            return
        with open(self.path, "rb") as source:
            found = TarPieces(source)
            yield from found
        if self.diff_id and found.diff_id != self.diff_id:
            raise Refused("reading a layer", self.digest, f"it is {found.diff_id}, the image says {self.diff_id}")

    def _directories(self, stack: ExitStack) -> list[str]:
        """Its layer directory, as a list; a tar is unpacked into a temporary one that `stack` removes."""
        if os.path.isdir(self.path):
            return [self.path]
        return [stack.enter_context(unpacked_tar(self.path, own_options()))]


class Image:
    """An open image. Use it in a `with`, or close it: an archive's blobs are in a temporary directory until then."""

    def __init__(self, store: Store, found: StoredImage, stack: ExitStack) -> None:
        self._store: Final = store
        self._stack: Final = stack
        descriptor, item, config = lookup.read(store, found.descriptor)
        self._descriptor: Final[Descriptor] = descriptor
        self.name: Final = found.name  # empty if it has none
        self.digest: Final[str] = descriptor.digest  # of its manifest
        self.platform: Final = str(config.platform)
        self.config: Final[dict[str, Any]] = json.loads(store.read_blob(item.config.digest))  # as the image has it
        steps = [step for step in config.history if not step.empty_layer]
        if len(steps) != len(item.layers):
            steps = [History()] * len(item.layers)  # a history with another number of layers does not describe these
        self.layers: Final = tuple(
            Layer(
                store.blob_path(layer.digest),
                digest=layer.digest,
                diff_id=diff_id,
                size=layer.size,
                created_by=step.created_by or step.comment,
                index=number,
            )
            for number, (layer, diff_id, step) in enumerate(zip(item.layers, config.diff_ids, steps, strict=True))
        )  # bottom first

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Image {self.name or self.digest}, {len(self.layers)} layers>"

    def close(self) -> None:
        """Remove the temporary directory. The layers of an archive cannot be read afterwards."""
        self._stack.close()

    def why(self, path: StrPath) -> list[Verdict]:
        """The effects of the layers on a path, the topmost first; empty if there are none. Raises Refused, OSError."""
        return explain(self.layers, path)

    def _directories(self, stack: ExitStack) -> list[str]:
        with self._store.adding():
            resolved = image.unpack_image(self._store, self._descriptor, own_options(), Silent())
        return resolved.lowers


def open_image(subject: StrPath, *, name: str = "", root: StrPath | None = None) -> Image:
    """Open an image: an OCI layout (a directory), an archive of `docker save` or OCI (a file, compressed or not), or if
    no such path exists, an image of the store `root` by name, id or digest. `name` selects one of several images.

    Nothing is fetched. Raises NotFound, Refused, LayerError, OSError.
    """
    text = os.fsdecode(subject)
    with ExitStack() as stack:
        if os.path.isdir(text):
            store = _of_layout(text, stack)
            found = archive.only_image(store.list_images() if not name else [store.find(name)], text)
        elif os.path.exists(text):
            store, found = archive.open_archive(text, stack, name)
        else:
            store = Store(default_root() if root is None else os.fsdecode(root))
            found = store.find(text)
        return Image(store, found, stack.pop_all())
    raise AssertionError("unreachable")


def open_layer(path: StrPath) -> Layer:
    """Open one layer: its tar, compressed or not, or its directory. Raises NotFound."""
    text = os.path.abspath(os.fsdecode(path))
    if not os.path.exists(text):
        raise NotFound("opening a layer", text, "there is no such file or directory")
    return Layer(text, size=0 if os.path.isdir(text) else os.path.getsize(text))


def explain(layers: Iterable[Layer], path: StrPath) -> list[Verdict]:
    """The effects of layers, given bottom first, on a path: `Image.why` for layers that belong to no image."""
    stack = list(layers)
    names = tuple(part for part in os.fsencode(path).split(b"/") if part not in (b"", b"."))
    found = effects([layer._pieces() for layer in stack], names)
    shown = visible_effects(found)
    verdicts = [
        Verdict(
            stack[effect.layer],
            _does(effect.what),
            _text(effect.at),
            number in shown,
            None if effect.piece is None else _entry(effect.piece.entry),
        )
        for number, effect in enumerate(found)
    ]
    return sorted(verdicts, key=lambda verdict: -stack.index(verdict.layer))


def diff(old: Image | Layer, new: Image | Layer) -> list[Difference]:
    """The changes that make `new` out of `old`, sorted by path. Of images the merged trees are compared. Layers in tars
    are unpacked for this into a temporary directory, those of an image into its store. Raises Refused, OSError."""
    with ExitStack() as stack:
        branches = stack.enter_context(LayerTrees())
        views = [branches.view(one._directories(stack)) for one in (old, new)]
        return [Difference(_CHANGES[one.kind], _text(one.path), one.what) for one in compare.changes(*views)]
    raise AssertionError("unreachable")


def _does(what: str) -> Literal["brings", "hides", "empties", "covers", "passes"]:
    for known in ("brings", "hides", "empties", "covers"):
        if what == known:
            return known
    return "passes"


def _of_layout(path: str, stack: ExitStack) -> Store:
    if not os.path.exists(os.path.join(path, "oci-layout")):
        hint = "layers.open_layer opens a layer's directory"
        raise Refused(_WHAT, path, "the directory is not an OCI layout: it has no file oci-layout", hint=hint)
    root = stack.enter_context(tempfile.TemporaryDirectory(prefix="layers-"))
    os.symlink(os.path.abspath(path), os.path.join(root, "images"))
    return Store(root)


def _entry(found: TarEntry) -> Entry:
    return Entry(
        _text(found.path), _KINDS[found.kind], found.mode, found.uid, found.gid, found.size, found.mtime_ns,
        os.fsdecode(found.target), _text(found.link) if found.kind == LINK else "", found.device, dict(found.xattrs),
    )  # fmt: skip


def _text(path: Path) -> str:
    return "/" + os.fsdecode(b"/".join(path))

"""Layers and images: read, make, store, pull and push them.

A *layer* is one tar of an image; unpacked, it is a directory that a union uses as a lower branch. No module here knows
unions, mounts, containers or terminals. Imports only the ground floor (`unionfs.markers`, `unionfs.syscalls` and
others).

As a library (docs/library.md): `open` an image or `open_layer` a layer, iterate its entries, explain a path (`why`),
`diff` two. The names in `__all__` are public; all modules of this package are private. They are imported when the
first of these names is used.

Rules of this package:

1. Tars, manifests and registries are untrusted. Malformed, dangerous or too large content is refused with the reason
   (`errors.Refused`); no file is written outside of its directory, and no partial result stays.
2. Every blob is built in a temporary file, verified against its digest, then renamed into place: it exists complete or
   not at all.
3. sha256 is identity. XXH3-128 only shows whether an unpacked file was changed.
4. File names are `bytes`, and are accessed as (directory descriptor, name), through no symlink.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing would take longer than importing this package
if TYPE_CHECKING:
    from layers.api import Difference as Difference
    from layers.api import Entry as Entry
    from layers.api import Image as Image
    from layers.api import Layer as Layer
    from layers.api import Verdict as Verdict
    from layers.api import diff as diff
    from layers.api import explain as explain
    from layers.api import open_image as open
    from layers.api import open_layer as open_layer
    from layers.errors import LayerError as LayerError
    from layers.errors import NotFound as NotFound
    from layers.errors import Refused as Refused

    __version__: str

__all__ = [
    "Difference",
    "Entry",
    "Image",
    "Layer",
    "LayerError",
    "NotFound",
    "Refused",
    "Verdict",
    "__version__",
    "diff",
    "explain",
    "open",
    "open_layer",
]

_OF_ERRORS = ("LayerError", "NotFound", "Refused")


def __getattr__(name: str) -> object:
    """Import a public name when it is used for the first time (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("unionfs")
    elif name in __all__:
        from unionfs import compiled

        compiled.use_compiled()  # comes before the first import of a hot module
        from layers import api, errors

        value = getattr(errors if name in _OF_ERRORS else api, "open_image" if name == "open" else name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

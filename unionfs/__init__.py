"""unionfs: merge read-only lower directories and one writable upper into one tree, in userspace, and run
containers on it.

As a library (docs/library.md): `Union` is a union in this process, `mount` mounts a union for all programs,
`list_changes` lists the changes of an upper, `Session` is a view of this machine that can be forked. The names in
`__all__` are public and stable; all modules of this package are private, and are imported when the first of these
names is used.

The main packages: `core` is the union itself; `fuse` passes requests to it; `daemon` joins both; `launcher` runs a
process in a root filesystem; `api` implements `__all__`; `cli` is the command line. See ARCHITECTURE.md.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing for its TYPE_CHECKING costs more than the rest of this module
if TYPE_CHECKING:
    from unionfs.api.changes import Change as Change
    from unionfs.api.changes import Side as Side
    from unionfs.api.changes import list_changes as list_changes
    from unionfs.api.mounting import Mounted as Mounted
    from unionfs.api.mounting import mount as mount
    from unionfs.api.sessions import AsyncSession as AsyncSession
    from unionfs.api.sessions import MergeConflict as MergeConflict
    from unionfs.api.sessions import MergeConflictError as MergeConflictError
    from unionfs.api.sessions import Session as Session
    from unionfs.api.sessions import SessionChange as SessionChange
    from unionfs.api.sessions import SessionError as SessionError
    from unionfs.api.union import Union as Union
    from unionfs.core.options import OptionError as OptionError
    from unionfs.fuse.mounting import MountError as MountError

    __version__: str

__all__ = [
    "AsyncSession",
    "Change",
    "MergeConflict",
    "MergeConflictError",
    "MountError",
    "Mounted",
    "OptionError",
    "Session",
    "SessionChange",
    "SessionError",
    "Side",
    "Union",
    "__version__",
    "list_changes",
    "mount",
]

_PLACES = {
    "AsyncSession": "unionfs.api.sessions",
    "Change": "unionfs.api.changes",
    "MergeConflict": "unionfs.api.sessions",
    "MergeConflictError": "unionfs.api.sessions",
    "MountError": "unionfs.fuse.mounting",
    "Mounted": "unionfs.api.mounting",
    "OptionError": "unionfs.core.options",
    "Session": "unionfs.api.sessions",
    "SessionChange": "unionfs.api.sessions",
    "SessionError": "unionfs.api.sessions",
    "Side": "unionfs.api.changes",
    "Union": "unionfs.api.union",
    "list_changes": "unionfs.api.changes",
    "mount": "unionfs.api.mounting",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is used for the first time (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("unionfs")
    elif name in _PLACES:
        from importlib import import_module

        from unionfs import compiled

        compiled.use_compiled()  # comes before the first import of the core
        value = getattr(import_module(_PLACES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

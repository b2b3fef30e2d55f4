"""How requests reach the core: the transports and the mount itself.

Knows FUSE and the door of the core (`core.union`, `core.attrs`, `core.options`); knows nothing behind that door.
The two transports, `via_pyfuse3` and `kernel`, never import each other.
"""

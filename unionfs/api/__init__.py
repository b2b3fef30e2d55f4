"""The implementation of `import unionfs`: a union as a library, in the caller's process or mounted by a daemon.

The public names are those in `unionfs.__all__` (docs/library.md); this package implements them, and
its modules are private. Knows `core.union`, mounting and unmounting, and `unionfs.changes`. Does not
know command lines, containers or images, and prints nothing.
"""

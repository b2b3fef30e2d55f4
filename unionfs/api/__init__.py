"""What `import unionfs` gives: a union as a library, in the caller's process or mounted by a daemon.

The names that users may rely on are those in `unionfs.__all__` (docs/library.md); this package is where they live, and
its own modules are private. Knows the core's door, the ways of mounting and unmounting, and `unionfs.changes`. Does not
know command lines, containers or images, and prints nothing.
"""

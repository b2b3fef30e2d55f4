"""unionfs: merge read-only lower directories and one writable upper into one tree, in userspace, and run
containers on it.

The rooms: `markers` and `syscalls` are the ground floor; `core` is the union itself; `fuse` carries requests to it;
`launcher` runs a process in a root filesystem; `daemon` ties core and transport together; `cli` is what the user types.
"""

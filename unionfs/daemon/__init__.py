"""The daemon of a mounted union: its start, its options, its keeper, its upgrade.

Knows the core, the transports and the parent of the mounts. Does not know command lines; prints nothing.
"""

"""The daemon of a mounted union: how it is started, what it serves, and who continues it.

Knows the core, the transports and the parent of the mounts. Does not know command lines; prints nothing.
"""

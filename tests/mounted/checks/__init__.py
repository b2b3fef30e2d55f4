"""The behaviour a file system must show, one file per kind of behaviour.

Each check runs in a child process of its own, with its own prepared directory as current directory. It knows nothing of
mounts, branches or transports: all it sees is a directory, which must behave as its man page says.
"""

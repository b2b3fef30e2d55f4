"""The union itself: it reads and writes the directories of branches.

Owns the semantics: which branch provides a name, what a whiteout hides, when a file is copied up, and how each change
survives a crash. Knows branches, markers and system calls. Does not know FUSE, trio, threads, command lines or images.

Rules of this package:

1. Everything is synchronous. State (nodes, listings) is used on one thread only, so a function is a critical section.
   Work that may block for long (copying bytes, fsync) is a function of file descriptors, without access to nodes.
2. Files are named by `(dirfd, name)`, never by a host path, and symlinks are never followed: nothing in a layer can
   lead outside its branch.
3. Expected failures are `OSError`. With several branches, the error of the first branch that decides is raised.
4. There is no open-file state: a request names a node, and descriptors are a cache that can be dropped at any time.
5. Lower branches are never written. In the upper, files are built in `work/` and renamed into place.
"""

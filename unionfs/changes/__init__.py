"""What an upper changed, and putting that in place somewhere else.

Owns the reading of a writable branch from the outside (`listing`: which paths were added, changed or deleted, found
from the upper alone) and the careful way of making those changes to a directory tree (`check`, `stage`, `commit`).
Knows branch directories, markers and system calls. Does not know the core, mounts, containers, or how to print.

Rules of the room:

1. A branch is data from strangers. Everything is opened beneath the branch's root, through no symlink and into no other
   mount; no path is ever built from names, so depth and length do not matter; names are bytes.
2. Looking changes nothing: no mark, attribute or change time of an upper or lower is touched by `listing` and `check`.
3. Owners are compared as the union showed them (`ids`), not as the branch's filesystem stores them.
4. Applying is: check everything, build everything aside, then rename into place from a written plan. Until the plan is
   complete nothing is visible and all of it can be taken back; from then on each path is old or new, never in between,
   and whatever stopped the work, the plan can be carried on.
"""

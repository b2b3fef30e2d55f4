"""List the changes of an upper, and apply them to another directory tree.

Reads an upper without its daemon (`listing`: added, changed and deleted paths, found by walking only the upper), and
applies the changes to a directory tree (`check`, `stage`, `commit`).
Knows branch directories, markers and system calls. Does not know the core, mounts or containers, and does not print.

Rules of this package:

1. A branch is untrusted. Everything is opened beneath the branch's root, through no symlink and into no other
   mount; no path is ever built from names, so depth and length do not matter; names are bytes.
2. `listing` and `check` change no mark, attribute or change time of an upper or lower.
3. Owners are compared as the union showed them (`ids`), not as the branch's filesystem stores them.
4. An apply checks everything, builds all new files under temporary names, then renames them by a plan in the journal.
Until the plan is complete nothing is visible and all can be undone; from then on each path is old or new, never in
between, and after any interruption the plan can be resumed.
"""

"""Shared code of the tests: users, scratch directories, child processes that cannot hang, mounts, root filesystems.

Uses the project only through its command line, so that a test cannot pass by using internals. No module here accesses a
mount in a process that may be needed to serve it or to clean up.
"""

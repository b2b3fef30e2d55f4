"""A snapshotter for containerd: it makes layer directories and upper directories, which containerd mounts by `unionfs`.

Owns the service (`wire`, `service`, `server`), the record of snapshots (`database`) and their directories (`store`).
Knows directories, SQLite and gRPC. Does not know the core, mounts or images: containerd applies the layers and runs the
mount program itself, with the options that `mounts` writes.

Rules of this package:

1. The database is authoritative. A directory without a row is garbage, and a row is committed only once its directory
   exists. So a crash at any instruction loses only calls that have no answer yet.
2. All changes are made under the one write lock of the database; slow work (removing, measuring) is done outside of it.
3. Numbers of snapshots, which are the names of their directories, are never used twice.
"""

"""Snapshots for containerd: layers and writable directories that it asks for over gRPC and mounts through `unionfs`.

Owns the service (`wire`, `service`, `server`), the record of snapshots (`database`) and their directories (`store`).
Knows directories, SQLite and gRPC. Does not know the core, mounts or images: containerd applies the layers and runs the
mount program itself, with the options that `mounts` writes.

Rules of the room:

1. The database is the truth. A directory that no row names is garbage, whoever left it, and a row is only committed
   when its directory exists: so it may end at any instruction, and nothing is lost but what nobody was told of.
2. All changes are made under the one write lock of the database; what takes long (removing, measuring) is done outside.
3. Numbers of snapshots, which are the names of their directories, are never used twice.
"""

"""The drivers of root filesystems: one interface (`driver`), and a module for each way of making one.

    fuse      our union (daemon, core); the default, and the only one that can show this machine's own `/`
    overlay   the kernel's overlay; `marks` gives it layers with AUFS marks in the dialect that it reads
    vfs       a full copy of everything (`whole`), reflinked where the filesystem can
    btrfs     a snapshot of a subvolume that holds such a copy, made once for all containers of the same layers

Knows branch directories, mounts and the union's daemon. Does not know containers' records, images or command lines.
Layers are read and never written, whatever the driver.
"""

"""The drivers of root filesystems: one interface (`driver`), and a module for each driver.

    fuse          our union (daemon, core); the default, and the only one that can show this machine's own `/`
    overlay       the kernel's overlayfs; `marks` makes layers with AUFS marks readable for it
    vfs           a full copy (`merged_copy`), by reflinks if the filesystem supports them
    btrfs         a snapshot of a subvolume that holds such a copy, made once for all containers of the same layers
    devicemapper  a snapshot of a block device for each layer and container (`thin_pool`, `device_tools`)

Knows branch directories, mounts and the union's daemon. Does not know containers' records, images or command lines.
No driver writes to layers.
"""

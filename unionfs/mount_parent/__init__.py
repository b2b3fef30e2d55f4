"""The parent of a user's mounts: a small process with all modules imported, which forks a daemon for each further
mount.

    identity   whether two processes have the same ids, namespaces, cgroup and capabilities; the socket's name
    messages   one message on the socket: bytes and descriptors
    client     asks the parent; imported by each mount, so it imports few modules
    forked     the forked process takes over the caller's properties, and becomes the daemon
    parent     the parent itself: it ends some time after its last mount
    leave      starts the parent, after an ordinary mount

If the parent cannot make a mount, the command makes an ordinary one, in a new interpreter; `unionfs stats` and the
daemon's log say why.
"""

"""The parent of a user's mounts: a small process that has everything loaded and forks a daemon for each further mount.

    identity   whether two processes have the same ids, namespaces, cgroup and capabilities; the socket's name
    messages   one message on the socket: bytes and descriptors
    client     asks the parent; imported by each mount, so it imports next to nothing
    forked     the forked process takes over what the caller has, and becomes the daemon
    parent     the parent itself: it ends some time after its last mount has gone
    leave      leaves it behind; called by what has made an ordinary mount

Whatever does not fit makes an ordinary mount, in a new interpreter; `unionfs stats` and the daemon's log say why.
"""

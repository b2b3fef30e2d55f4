"""What the tests share: users, scratch directories, child processes that cannot hang, mounts, root filesystems.

Knows the project only through its command line, so that a test cannot pass by looking behind the door.
Nothing here touches a mount from the process that might be needed to serve or clean it.
"""

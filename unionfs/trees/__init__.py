"""Read and remove untrusted directory trees safely; and the rule by which a union merges several trees.

Ground floor: knows system calls and marks (`unionfs.markers`), and imports nothing else of ours. Does not know
nodes, images, containers or mounts.
"""

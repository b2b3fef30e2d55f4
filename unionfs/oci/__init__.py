"""An OCI runtime: creates and starts containers of bundles, by the commands of runc.

A bundle's config.json becomes a checked `config.Config`; `create` makes namespaces, mounts and a process that waits at
a socket; `start` connects to it, and the process executes the command. Between the commands a container is a directory
with its state. The process of the container is a child of the subreaper above the runtime (conmon, containerd's shim),
which waits for it. Knows nothing of images; the steps, capabilities and terminals are the launcher's. Raises
`errors.OciError`, and neither prints nor exits, except in processes that it has forked.

Source: OCI runtime specification 1.2; the commands as runc(8) documents them.
"""

"""The snapshotter: its parts by themselves, and as a process that is called over gRPC and killed."""

"""A Slurm cluster on this machine: not part of `make test`, see `make test-cluster`."""

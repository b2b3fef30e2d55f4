"""Containers: their records, their root filesystems, running them. Knows no command line."""

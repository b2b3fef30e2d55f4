"""The parent of a user's mounts: real mounts, made by real users."""

"""Layers and images: what they are made of, where they are kept, how they travel.

A *layer* is one tar of an image; unpacked, it is a directory that a union takes as a lower branch. Nothing here knows
unions, mounts, containers or terminals. Imports only the ground floor (`unionfs.markers`, `unionfs.syscalls`).

Rules of the house:

1. Tars, manifests and registries are written by strangers. What is malformed, dangerous or too large is refused with
   the reason (`errors.Refused`); nothing is written outside the directory it belongs to, nothing partial stays.
2. Every blob is built aside, verified against its digest, then renamed into place. A name that exists is whole.
3. sha256 is identity. XXH3-128 only answers "is this file still what was unpacked?".
4. File names are `bytes` and always meet the disk as (directory descriptor, name), through no symlink.
"""

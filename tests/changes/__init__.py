"""Tests of `unionfs.changes`: what an upper says, in every dialect, and how it is put in place."""

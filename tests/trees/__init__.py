"""Tests of `unionfs.trees`."""

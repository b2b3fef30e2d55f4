"""Tests of unionfs.build and of the verb."""

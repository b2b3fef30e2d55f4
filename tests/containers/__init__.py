"""Tests of unionfs.containers: records, the store, logs, copies, without command lines."""

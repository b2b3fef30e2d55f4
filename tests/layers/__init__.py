"""Tests of the package layers: pure modules on values, others on real directories, the registry part on a real one."""

"""Tests of the layers house: pure parts on values, disk parts on real directories, the registry part on a real one."""

"""Tests of `layers.explore` and `layers explore`."""

"""Test what this machine offers for `unionfs run` (`machine`), and name what it lacks and how to get it
(`diagnosis`)."""

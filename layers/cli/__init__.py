"""The `layers` command: one file per verb. Prints and exits; everything it does is in the house behind it.

It is called through `unionfs.cli.layers`, which first gives it the ids that the files of layers need. `python -m
layers` runs it with those there are.
"""

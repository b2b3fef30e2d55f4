"""The `layers` command: one file per verb, with its flags, output and exit codes; the work is done by `layers`.

It is called through `unionfs.cli.layers`, which first enters a user namespace with the ids that files of layers need.
`python -m layers` runs it with the ids of the caller.
"""

"""Measure union filesystems side by side: the engine of `unionfs bench` and of the benchmarks of a checkout.

    systems       each system: why it is missing, how it is mounted, unmounted and ended; its version
    rounds        the order of interleaved rounds, medians and spread, what was left out
    child         calls with a time limit in a child process, which leaves nothing behind; namespaces of a run
    run_directory     the directory of a run and of its sessions; removes the remains of dead runs
    facts         the machine
    filesystems       filesystems to put the branches on: loop files, tmpfs, the directory itself

These modules measure the cost of copy-up with it:

    cases         series of points, and the size of a run; values only
    trees         the lowers that the cases need, made in a branch filesystem
    first_write   one timed first write, in the child process that makes it
    copyup        a run: a worker that measures all series within a time budget
    summary       the object that --json writes, and questions to it
    claims        claims about copy-up by file and by block, each with our figure beside it
    table, plots, page, markdown    a run on a terminal, as pictures, as one HTML file, for a README

No module here imports the core: every system, also ours, is started by its command, as users start it.
"""

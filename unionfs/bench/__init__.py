"""What copy-up costs, measured on union filesystems side by side: the room behind `unionfs bench`.

    cases         what is asked: series of points, and the size of a run; values only
    trees         the lowers that the cases need, made in a branch filesystem
    filesystems       filesystems to put the branches on: loop files, tmpfs, the directory itself
    systems       how each peer shows a lower to be changed, and why one may be missing
    acts          one timed first write, in the child process that does it
    child         a child process with a time limit, which leaves nothing behind
    runs          the directory of a run, a worker in namespaces of its own, the sweeping of dead runs
    copyup        the run itself: interleaved rounds within a time budget
    facts         the machine and the versions
    summary       medians and spread: the object that --json writes, and questions to it
    claims        what people say about copy-up, each with our figure beside it
    table, plots, page, markdown    the same for a terminal, as pictures, as one HTML file, for a README

Knows nothing of the core: every system is started as a user would start it, ours too.
"""

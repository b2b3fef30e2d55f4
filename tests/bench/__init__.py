"""The room unionfs.bench, and the verb `unionfs bench`."""

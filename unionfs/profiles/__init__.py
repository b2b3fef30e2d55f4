"""Where the time of a job on a union went: `unionfs profile`. Prints nothing."""

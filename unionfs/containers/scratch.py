"""The scratch directory of a user, in which containers of jobs are: on a disk of the node, not in the home directory.

    SCRATCH/unionfs-UID   a store of containers, of mode 0700

SCRATCH may be a directory that all users share, such as /tmp: so the store must belong to this user and be closed to
others, and is made if it is missing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Final

from unionfs.containers.errors import ContainerError

_JOBS: Final = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID")
_DIRECTORIES: Final = ("SLURM_TMPDIR", "TMPDIR")


def default(environment: Mapping[str, str] = os.environ) -> str:
    """The scratch directory of a job: $SLURM_TMPDIR, else $TMPDIR. Empty outside of jobs of a scheduler."""
    if not any(environment.get(name) for name in _JOBS):
        return ""
    return next((environment[name] for name in _DIRECTORIES if environment.get(name)), "")


def store_in(directory: str) -> str:
    """The root of the store of containers in a scratch directory, made if missing. Raises: ContainerError."""
    root = os.path.join(os.path.realpath(directory), f"unionfs-{os.geteuid()}")
    what = "using the scratch directory"
    try:
        try:
            os.mkdir(root, 0o700)
        except FileExistsError:
            pass
        st = os.lstat(root)
    except OSError as error:
        raise ContainerError.of(what, error, hint="--scratch DIR, or UNIONFS_SCRATCH, names another one") from error
    if not stat.S_ISDIR(st.st_mode) or st.st_uid != os.geteuid():
        raise ContainerError(what, root, "it is not a directory of this user", hint="--scratch DIR names another one")
    if st.st_mode & 0o077:
        raise ContainerError(what, root, "other users may enter it", hint=f"chmod 700 {root}")
    return root

"""Convert an exception to the errno of a FUSE answer; the only place that does."""

from __future__ import annotations

import errno
import logging

log = logging.getLogger(__name__)


def errno_of(exc: Exception) -> int:
    """Return the errno to answer for `exc`. A bug answers EIO and leaves its traceback in the log."""
    if isinstance(exc, OSError) and exc.errno:
        return exc.errno
    log.error("bug while serving a request", exc_info=exc)
    return errno.EIO

"""The one place where an exception becomes the errno of a FUSE answer."""

from __future__ import annotations

import errno
import logging

log = logging.getLogger(__name__)


def errno_of(exc: Exception) -> int:
    """The errno to answer for `exc`. A bug answers EIO and leaves its traceback in the log."""
    if isinstance(exc, OSError) and exc.errno:
        return exc.errno
    log.error("bug while serving a request", exc_info=exc)
    return errno.EIO

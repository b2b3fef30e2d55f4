"""Answer INIT, the first request on a new mount, before slow imports.

The kernel sends INIT as soon as the union is mounted. So the daemon knows whether the engine can serve the mount before
it reports that the mount is ready.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from unionfs.fuse.kernel import abi, encode
from unionfs.fuse.kernel.device import Device
from unionfs.fuse.kernel.session import Session, Tuning, UnsupportedError
from unionfs.fuse.options import ServeOptions

_WAIT_MS: Final = 10_000
"""Seconds to wait for INIT, which the kernel sends at the mount: if it does not come, another process reads the
descriptor, or nothing is mounted."""


def negotiate(fd: int, options: ServeOptions, tuning: Tuning | None = None) -> Session:
    """Answer INIT on `fd` and return the negotiated session.

    Raises: UnsupportedError when the kernel and this engine have no protocol in common (INIT is answered EPROTO); Gone
    when the mount has ended; OSError: EBUSY when another process serves the descriptor, ETIMEDOUT when no INIT comes.
    """
    device, session = Device(fd), Session(options, tuning or Tuning())
    while not session.negotiated:
        length = device.receive()
        if not length:
            if not device.wait(_WAIT_MS):
                why = "the kernel sends no INIT: nothing is mounted with this descriptor, or it is served already"
                raise TimeoutError(errno.ETIMEDOUT, why)
            continue
        opcode, unique = abi.IN_HEADER.unpack_from(device.request)[1:3]
        if opcode != abi.Op.INIT:
            device.send(encode.error(unique, errno.EIO))
            raise OSError(errno.EBUSY, "another process has begun to serve this descriptor")
        session.counts[opcode] += 1
        try:
            device.send(session.init(unique, device.request, length))
        except UnsupportedError:
            device.send(encode.error(unique, errno.EPROTO))
            raise
    if options.passthrough:
        _check_passthrough(device)
    return session


def _check_passthrough(device: Device) -> None:
    """Raises: UnsupportedError."""
    fd = os.memfd_create("unionfs")
    try:
        device.close_backing(device.open_backing(fd))
    except OSError as exc:
        code = exc.errno or errno.EIO
        why = f"the kernel refuses passthrough: {os.strerror(code)}"
        if code == errno.EPERM:
            why = "passthrough needs root of the machine (CAP_SYS_ADMIN in the initial user namespace)"
        raise UnsupportedError(code, why) from None
    finally:
        os.close(fd)

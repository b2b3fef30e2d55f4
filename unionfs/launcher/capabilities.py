"""Capabilities of containers: names, numbers, and the default set. Pure.

Numbers are those of <linux/capability.h>. Names here are in capitals without CAP_; users may write them in lower case
and with CAP_.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

NUMBERS: Final = {
    name: number
    for number, name in enumerate(
        (
            *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
            *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER"),
            *("SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
            *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL"),
            *("SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON"),
            *("BPF", "CHECKPOINT_RESTORE"),
        )
    )
}

USUAL: Final = (
    *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE"),
    *("NET_RAW", "SYS_CHROOT", "MKNOD", "AUDIT_WRITE", "SETFCAP"),
)
"""The capabilities that docker and podman leave to a container's root by default."""


def mask(names: Iterable[str]) -> int:
    """Return the names as a bit mask. Raises: KeyError for a name that is not in NUMBERS."""
    found = 0
    for name in names:
        found |= 1 << NUMBERS[name]
    return found


def chosen(added: Iterable[str], dropped: Iterable[str]) -> tuple[str, ...]:
    """Return USUAL with `added` and without `dropped`; ALL means every capability. `added` has priority over ALL in
    `dropped`.

    Raises: KeyError with a name that is no capability.
    """
    adding, dropping = (tuple(map(_plain, names)) for names in (added, dropped))
    kept = set(NUMBERS) if "ALL" in adding else set() if "ALL" in dropping else set(USUAL)
    kept |= {name for name in adding if name != "ALL"}
    kept -= {name for name in dropping if name != "ALL"}
    return tuple(name for name in NUMBERS if name in kept)


def _plain(name: str) -> str:
    plain = name.upper().removeprefix("CAP_")
    if plain != "ALL" and plain not in NUMBERS:
        raise KeyError(name)
    return plain

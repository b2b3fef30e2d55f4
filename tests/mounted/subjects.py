"""What the checks can run on: a plain directory or a union, behind which transport, as whom, with what in which branch.

Descriptions only; `mounted_subject` builds and mounts them.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import Final

from tests.mounted.checking import CHOWN, DEVICES, STRANGERS, UNION, Check
from tests.support import machine, mounts, users

NATIVE: Final = "native"
OURS: Final = mounts.TRANSPORTS
PASSTHROUGH: Final = "passthrough"
"""The kernel transport with --passthrough, for root."""
PEERS: Final = ("overlay", "fuse-overlayfs")
"""Other unions, run on request only ($UNIONFS_TEST_PEERS=1): they show whether a check asks too much."""

_OFFERS: Final = {
    "root": frozenset({CHOWN, DEVICES, STRANGERS}),
    "user": frozenset[str](),
    "userns": frozenset({CHOWN, STRANGERS}),
}


@dataclass(frozen=True, slots=True)
class Subject:
    """What to run the checks on. `who`: root, user, or userns (root of a user namespace with subordinate ids)."""

    transport: str
    who: str
    layout: str  # plain: everything prepared lies in one lower; scattered: over the upper and three lowers
    whiteout: str = "aufs"

    def __str__(self) -> str:
        return f"{self.transport}-{self.who}-{self.layout}"

    @property
    def runs_as(self) -> str:
        """As the report at the end of a run counts users."""
        return "root" if self.who == "root" else "ordinary"

    @property
    def is_ours(self) -> bool:
        """Whether it is mounted by `unionfs mount`."""
        return self.transport in (*OURS, PASSTHROUGH)

    @property
    def is_native(self) -> bool:
        return self.transport == NATIVE

    def can_run(self, check: Check) -> bool:
        """Whether `check` says anything about this subject."""
        offers = _OFFERS[self.who] | (frozenset() if self.is_native else {UNION})
        return check.needs <= offers


def all_subjects() -> list[Subject]:
    """Every subject, the controls first; the peers only if the environment asks for them.

    A transport knows neither what lies in which branch nor as whom the core runs: the second transport has each layout
    and each user once. A user namespace allows no check that root is not allowed, too: it needs no control.
    """
    found = [Subject(NATIVE, who, "plain") for who in ("root", "user")]
    for transport in (*OURS, *(PEERS if os.environ.get("UNIONFS_TEST_PEERS") else ())):
        found += [Subject(transport, "root", "scattered", "overlay"), Subject(transport, "user", "plain")]
        if transport != "pyfuse3":
            found += [Subject(transport, "root", "plain"), Subject(transport, "userns", "scattered")]
    found.append(Subject(PASSTHROUGH, "root", "scattered", "overlay"))
    return [subject for subject in found if (subject.transport, subject.who) != ("overlay", "user")]


def unavailable(subject: Subject) -> str | None:
    """Why `subject` cannot be had on this machine, or None. Users are the business of the fixtures."""
    if subject.transport == "kernel" and not (users.CHECKOUT / "unionfs/fuse/kernel/server.py").exists():
        return "the kernel transport is not part of this version"
    if subject.transport == PASSTHROUGH and (why := machine.lacks_passthrough()):
        return why
    if subject.who == "userns" and not (shutil.which("unshare") and shutil.which("newuidmap")):
        return "unshare or newuidmap is missing (Debian packages util-linux, uidmap)"
    if subject.transport == "fuse-overlayfs" and not shutil.which("fuse-overlayfs"):
        return "fuse-overlayfs is not installed"
    return None

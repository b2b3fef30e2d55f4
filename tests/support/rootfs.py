"""Small Debian root filesystems for containers: made once per machine by mmdebstrap, unpacked for each user.

The tar is kept in /var/cache/unionfs-tests (root) or $XDG_CACHE_HOME/unionfs-tests. Its name holds a digest of how it
was made, so a change here makes a new one. An ordinary user's tree is unpacked inside a user namespace that maps its
subordinate ids: root's files belong to the user, the others to its subordinate ids, as in any rootless container.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.support.timing import limit
from tests.support.users import User

_SUITE = "bookworm"
_RECIPE = (
    "mmdebstrap",
    "--quiet",
    "--variant=minbase",
    "--format=tar",
    # apt and dpkg come with minbase; passwd brings useradd and su. Without usr-is-merged, usrmerge would bring all of
    # Perl: a third of the bytes and of the files.
    "--include=python3-minimal,passwd,usr-is-merged",
    "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
    # No device nodes: a user namespace could not unpack them, and a container gets a /dev of its own.
    "--skip=output/dev",
    "--aptopt=Acquire::Languages none",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/lib/*/gconv/*",
    _SUITE,
)
_BUILD_TIMEOUT_S = 600
_UNPACK_TIMEOUT_S = 300

IN_USER_NAMESPACE = ("unshare", "--map-root-user", "--map-auto", "--")
"""Prefix of a command that must see an ordinary user's tree as the container will: owned by root."""


class NoRootfsError(Exception):
    """A root filesystem cannot be made here; the message says why."""


def debian_tar(*packages: str) -> Path:
    """The tar of a minimal Debian with python3, dpkg, apt, useradd, su and `packages`. Takes half a minute at first.

    Raises: NoRootfsError when mmdebstrap is missing or fails (most often: no network).
    """
    cache = _cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    wanted = (*_RECIPE[:-1], f"--include={','.join(packages)}", _RECIPE[-1]) if packages else _RECIPE
    recipe = hashlib.sha256("\0".join(wanted).encode()).hexdigest()[:12]
    tar = cache / f"debian-{_SUITE}-{recipe}.tar"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at once make it once
        if not tar.exists():
            _make(tar, wanted)
    return tar


def unpack(tar: Path, into: Path, user: User) -> Path:
    """Unpack `tar` into the new directory `into`, owned as `user`'s containers need it. Returns `into`.

    Raises: NoRootfsError when the user has no subordinate ids or the machine allows it no user namespace.
    """
    into.mkdir(mode=0o755)
    user.own(into)
    # The tar is opened here and handed over: the cache may be closed to the user.
    with tar.open("rb") as archive:
        unpacked = subprocess.run(
            [*user.prefix, *as_container_root(user), "sh", "-c", "tar -xp --numeric-owner && mkdir -p dev"],
            stdin=archive,
            capture_output=True,
            text=True,
            env=dict(user.env),
            cwd=into,
            timeout=limit(_UNPACK_TIMEOUT_S),
            check=False,
        )
    if unpacked.returncode != 0:
        raise NoRootfsError(f"{user.kind} user cannot unpack {tar.name}: {unpacked.stderr.strip()[-300:]}")
    return into


def as_container_root(user: User) -> tuple[str, ...]:
    """Prefix of a command of `user` that must own all files of an unpacked tree. Empty for root."""
    return () if user.uid == 0 else IN_USER_NAMESPACE


def _cache_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/cache/unionfs-tests")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unionfs-tests"


def _make(tar: Path, recipe: tuple[str, ...]) -> None:
    if not shutil.which("mmdebstrap"):
        raise NoRootfsError("mmdebstrap is not installed")
    # In /var/tmp and not in the cache: mmdebstrap's own helpers must be able to write there under another user id.
    with tempfile.TemporaryDirectory(prefix="unionfs-rootfs-", dir="/var/tmp") as aside:
        part = Path(aside) / "part.tar"
        try:
            made = subprocess.run(
                [*recipe, os.fspath(part)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                env={**os.environ, "TMPDIR": "/var/tmp"},
                timeout=limit(_BUILD_TIMEOUT_S),
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise NoRootfsError(f"mmdebstrap did not end within {_BUILD_TIMEOUT_S} s") from None
        if made.returncode != 0:
            raise NoRootfsError(f"mmdebstrap failed: {made.stderr.strip()[-500:]}")
        beside = tar.with_suffix(".part")
        shutil.copyfile(part, beside)
        beside.rename(tar)

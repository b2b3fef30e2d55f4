"""A git repository as a context: `URL[#REF[:DIRECTORY]]`, as for docker and podman, fetched by git(1).

The repository and its server are untrusted. Git runs without the configuration, hooks and credentials of this machine,
over http, https and git only; submodules are not fetched, and neither filters nor other programs of the repository run.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import Final, NamedTuple

from unionfs.containers.errors import ContainerError
from unionfs.trees.open_beneath import open_in_root
from unionfs.trees.remove import remove_path

_REF: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+@-]*")  # never an option, nor a refspec
_SETTINGS: Final = (
    "protocol.allow=never",
    *(f"protocol.{name}.allow=always" for name in ("http", "https", "git")),
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "transfer.fsckObjects=true",
    "advice.detachedHead=false",
)
_ENVIRONMENT: Final = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_LFS_SKIP_SMUDGE": "1",
    "LC_ALL": "C.UTF-8",
}
_INHERITED: Final = ("PATH", "http_proxy", "https_proxy", "no_proxy", "all_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR")
_SAID_MAX: Final = 500


class Repository(NamedTuple):
    """The repository, revision and directory that a URL names."""

    url: str
    ref: str  # a branch, a tag or a commit; empty: the server's default branch
    directory: str  # within it; empty: the whole


def parse(text: str) -> Repository | None:
    """The repository that a context names; None for another kind of context. Raises: ContainerError."""
    url, _, fragment = text.partition("#")
    if not (url.startswith("git://") or (url.startswith(("http://", "https://")) and url.endswith(".git"))):
        return None
    ref, _, directory = fragment.partition(":")
    if ref and (not _REF.fullmatch(ref) or ".." in ref):
        raise ContainerError("opening the context", text, f"{ref!r} is no branch, tag or commit")
    return Repository(url, ref, directory)


def fetch(wanted: Repository, into: str) -> str:
    """Check the repository out into the new directory `into`; returns the path of the context's directory.

    Raises: ContainerError when git fails or is missing, or the repository has no such directory; OSError.
    """
    os.mkdir(into, 0o700)
    _git(wanted, "init", "--quiet", "--template=", into)
    _git(wanted, "-C", into, "fetch", "--quiet", "--depth=1", "--no-tags", "--", wanted.url, wanted.ref or "HEAD")
    _git(wanted, "-C", into, "checkout", "--quiet", "--detach", "FETCH_HEAD")
    remove_path(os.path.join(into, ".git"))
    if not wanted.directory:
        return into
    root_fd = os.open(into, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = open_in_root(root_fd, wanted.directory)
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
    except OSError as error:
        why = f"{wanted.directory} is not in the repository: {error.strerror}"
        raise ContainerError("opening the context", wanted.url, why) from None
    finally:
        os.close(root_fd)


def _git(wanted: Repository, *words: str) -> None:
    settings = [word for setting in _SETTINGS for word in ("-c", setting)]
    inherited = {
        name: os.environ[name] for known in _INHERITED for name in (known, known.upper()) if name in os.environ
    }
    try:
        done = subprocess.run(
            ["git", *settings, *words],
            env={**inherited, **_ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
            umask=0o022,
        )
    except FileNotFoundError:
        raise ContainerError("opening the context", wanted.url, "git is not installed") from None
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip()[-_SAID_MAX:]
        raise ContainerError("opening the context", wanted.url, f"git: {why or f'it returned {done.returncode}'}")

"""`unionfs build` as root, as an ordinary user with subordinate ids, and as one without; each has a store."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.support import tiny
from tests.support.users import User, without_ids

TIMEOUT_S: Final = 120.0
BASE: Final = "tiny:1"
_REF_NAME: Final = "org.opencontainers.image.ref.name"


class Entry(NamedTuple):
    """A file of an image, as its layers say."""

    kind: str  # file, dir, link, or what tarfile calls it
    mode: int
    owner: tuple[int, int]
    content: str = ""  # or the target of a symlink


class Builder:
    """`unionfs` as one user, with a store that has `BASE`, and a place for contexts."""

    def __init__(self, user: User, root: Path, where: Path) -> None:
        self.user = user
        self.root = root
        self.where = where

    def __call__(
        self,
        verb: str,
        *words: str | os.PathLike[str],
        check: bool = True,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        environment = {"UNIONFS_ROOT": os.fspath(self.root), **(env or {})}
        argv = [*self.user.unionfs_cmd, verb, *words]
        return self.user.run(argv, env=environment, timeout_s=TIMEOUT_S, check=check, stdin=stdin)

    def context(self, containerfile: str, files: Mapping[str, str | bytes] | None = None) -> Path:
        """A new directory with a Containerfile and files; a name that ends with a slash is a directory, and one with !
        at its end an executable."""
        directory = self.where / f"context-{os.urandom(4).hex()}"
        directory.mkdir()
        (directory / "Containerfile").write_text(textwrap.dedent(containerfile))
        for name, content in (files or {}).items():
            path = directory / name.rstrip("/!")
            if name.endswith("/"):
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
            path.chmod(0o755 if name.endswith("!") else 0o644)
        self.user.own(directory)
        return directory

    def build(
        self,
        containerfile: str,
        *flags: str | os.PathLike[str],
        files: Mapping[str, str | bytes] | None = None,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Build `containerfile` as t:1 in a new context."""
        context = self.context(containerfile, files)
        return self("build", "-t", "t:1", *flags, context, check=check, env=env)

    def refused(self, containerfile: str, *flags: str, files: Mapping[str, str | bytes] | None = None) -> str:
        """What is said of a Containerfile that cannot be built."""
        done = self.build(containerfile, *flags, files=files, check=False)
        assert done.returncode == 125, done
        return done.stderr

    def config(self, name: str = "t:1") -> dict[str, Any]:
        """The configuration of an image, as it is in the store."""
        images = json.loads((self.root / "images/index.json").read_text())["manifests"]
        wanted = name if "/" in name else f"docker.io/library/{name}"
        (entry,) = [one for one in images if one.get("annotations", {}).get(_REF_NAME) == wanted]
        manifest = json.loads(self.blob(entry["digest"]))
        return {**json.loads(self.blob(manifest["config"]["digest"])), "manifest": manifest}

    def blob(self, digest: str) -> bytes:
        return (self.root / "images/blobs/sha256" / digest.partition(":")[2]).read_bytes()

    def layers(self, name: str = "t:1") -> list[dict[str, Entry]]:
        """The layers that are not the base's, bottom first: path -> entry."""
        base = self.config(BASE)["manifest"]["layers"]
        layers = self.config(name)["manifest"]["layers"]
        new = layers[len(base) :] if layers[: len(base)] == base else layers
        return [entries(self.blob(one["digest"])) for one in new]

    def history(self, name: str = "t:1") -> str:
        return "\n".join(one.get("created_by", "") for one in self.config(name)["history"])

    def sh(self, script: str, name: str = "t:1") -> str:
        """What a script prints in a container of the image, made with what the store has unpacked."""
        return self("run", "--rm", name, "/bin/sh", "-ec", script).stdout

    def is_clean(self) -> bool:
        """Whether nothing half-made is in the store, and all layers are what they were when they were put there."""
        told = [str(path) for path in (self.root / "aside").rglob("*")]
        checked = self.user.run(["layers", "verify", "--root", self.root], timeout_s=TIMEOUT_S, check=False)
        told.append(checked.stdout + checked.stderr)
        assert (told, checked.returncode) == ([""], 0)
        return True


def entries(blob: bytes) -> dict[str, Entry]:
    """The entries of a layer."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
        for one in tar:
            kind = "file" if one.isfile() else "dir" if one.isdir() else "link" if one.issym() else one.type.decode()
            data = tar.extractfile(one) if one.isfile() else None
            content = one.linkname if data is None else data.read().decode(errors="replace")
            found["/" + one.name.strip("./")] = Entry(kind, one.mode, (one.uid, one.gid), content)
    return found


@pytest.fixture(scope="session")
def tiny_tar(run_dir: Path) -> Path:
    path = run_dir / "tiny-build.tar"
    if not path.exists():
        tiny.make(path)
    return path


@pytest.fixture(scope="session")
def stores(run_dir: Path) -> dict[str, Path]:
    """Stores that have BASE, by kind of user. Filled by `made_builder`."""
    return {}


def _builder(user: User, kind: str, stores: dict[str, Path], tiny_tar: Path, scratch: Path) -> Builder:
    if kind not in stores:
        stores[kind] = user.home / f"build-store-{kind}"
        Builder(user, stores[kind], scratch)("import", "-q", tiny_tar, BASE)
    user.own(scratch)
    return Builder(user, stores[kind], scratch)


@pytest.fixture(params=["root", "ordinary", "one-id"])
def builder(
    request: pytest.FixtureRequest, stores: dict[str, Path], tiny_tar: Path, scratch: Path, fuse_device: Path
) -> Builder:
    """As each kind of user in turn."""
    return made_builder(request, str(request.param), stores, tiny_tar, scratch)


@pytest.fixture
def user_builder(
    request: pytest.FixtureRequest, stores: dict[str, Path], tiny_tar: Path, scratch: Path, fuse_device: Path
) -> Builder:
    """As an ordinary user."""
    return made_builder(request, "ordinary", stores, tiny_tar, scratch)


def made_builder(
    request: pytest.FixtureRequest, kind: str, stores: dict[str, Path], tiny_tar: Path, scratch: Path
) -> Builder:
    """A builder of a kind of user."""
    if kind == "root":
        return _builder(request.getfixturevalue("root_user"), kind, stores, tiny_tar, scratch)
    user = request.getfixturevalue("ordinary_user")
    if kind == "one-id":
        if os.geteuid() != 0:
            pytest.skip("only root can hide subordinate ids")
        user = without_ids(user)
    return _builder(user, kind, stores, tiny_tar, scratch)

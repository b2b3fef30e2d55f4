"""The forms of `forms` built by podman and by us: configuration, history, and every file with its attributes.

As root, with podman's chroot isolation, which works on every machine. Podman's images have Docker's format, since in
OCI's they lose ONBUILD, HEALTHCHECK and SHELL.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.build import forms
from tests.build.conftest import Builder
from tests.support import process, share
from tests.support.users import User
from unionfs.__main__ import main

_MADE_TO_MOUNT_ON: Final = ("etc/hosts", "etc/resolv.conf", "etc/hostname", "run", "proc", "sys", "dev")
_CAPABILITY: Final = "0100000200040000000000000000000000000000"  # cap_net_bind_service=ep, vfs_cap_data of revision 2
_STEPWISE: Final = ("variables",)  # in one layer, podman makes the directory of VOLUME, and so root owns those above it
_LAST: Final = {"scratch": "scratch-form", "entrypoint": "other-entrypoint"}  # where it has not the name of the form


class Image(NamedTuple):
    """An image that was built."""

    config: dict[str, Any]
    tree: dict[str, tuple[object, ...]]  # what its layers come to


@pytest.fixture(scope="module")
def base_tar(run_dir: Path, tiny_tar: Path) -> Path:
    """The base, with a program that has a capability and an attribute."""
    path = run_dir / "forms-base.tar"
    shutil.copy(tiny_tar, path)
    with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo("bin/able")
        entry.size, entry.mode, entry.mtime = 3, 0o755, 1_700_000_000
        value = bytes.fromhex(_CAPABILITY).decode("utf-8", "surrogateescape")
        entry.pax_headers = {"SCHILY.xattr.security.capability": value, "SCHILY.xattr.user.note": "kept"}
        tar.addfile(entry, io.BytesIO(b"abc"))
    return path


@pytest.fixture(scope="module")
def podman(run_dir: Path, root_user: User, base_tar: Path) -> Iterator[list[str]]:
    """What stands before podman's verbs: on the kernel's overlay, or where that cannot be on copies."""
    for program in ("podman", "skopeo"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian packages podman, skopeo)")
    where = run_dir / "podman-build"
    stores = [
        ["podman", "--root", f"{where}/{driver}", "--runroot", f"{run_dir}/pr-{driver}", "--storage-driver", driver]
        for driver in ("overlay", "vfs")
    ]
    imported = ("import", "-q", os.fspath(base_tar), forms.BASE)
    command = stores[root_user.run([*stores[0], *imported], timeout_s=100, check=False).returncode != 0]
    if command == stores[1]:
        root_user.run([*command, *imported], timeout_s=100)
    yield command
    root_user.run([*command, "rmi", "-af"], timeout_s=100, check=False)
    shutil.rmtree(where, ignore_errors=True)


@pytest.mark.parametrize("builder", ["root"], indirect=True)
def test_same_images(builder: Builder, podman: list[str], base_tar: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All forms are stages of one file, so that ours is started once. The forms take turns (tests.support.share)."""
    chosen = {"c", *share.of(forms.FORMS)}
    context = builder.context(_whole(chosen), {**forms.FILES, "app.tar.gz": _archive()})
    theirs = _of_podman(builder, podman, context, chosen)
    ours = _of_unionfs(builder, base_tar, context, chosen, capsys)
    assert ours.keys() == theirs.keys() == chosen
    told = {name: found for name in ours if (found := _differences(ours[name], theirs[name]))}
    assert not told, "\n".join(f"{name}: {pair}" for name, pairs in told.items() for pair in pairs)[:5000]
    archive = builder.where / "ours.tar"
    builder("save", "-o", archive, "localhost/form-c:1")
    loaded = builder.user.run([*podman, "load", "-q", "-i", archive], timeout_s=100).stdout
    assert "localhost/form-c:1" in loaded
    process.run(["skopeo", "inspect", f"oci-archive:{archive}"], timeout_s=60)


def _whole(chosen: set[str]) -> str:
    """All forms in one file, with a last stage that needs the chosen ones."""
    text = forms.GLOBAL + "".join(map(textwrap.dedent, forms.FORMS.values()))
    taken = {"scratch": "/a", "go": "/app"}
    copies = "".join(
        f"COPY --from={_LAST.get(name, name)} {taken.get(name, '/etc/motd')} /{name}\n"
        for name in forms.FORMS
        if name in chosen
    )
    return f"{text}FROM scratch\n{copies}"


def _differences(ours: Image, theirs: Image) -> list[object]:
    paths = {*ours.tree, *theirs.tree} - {*_MADE_TO_MOUNT_ON}
    pairs: list[tuple[object, object]] = [
        (_settings(ours.config), _settings(theirs.config)),
        (_history(ours.config), _history(theirs.config)),
        *(((path, ours.tree.get(path)), (path, theirs.tree.get(path))) for path in sorted(paths)),
    ]
    return [pair for pair in pairs if pair[0] != pair[1]]


def _of_podman(builder: Builder, podman: list[str], context: Path, chosen: set[str]) -> dict[str, Image]:
    """Each form as a target, with one layer: podman's time goes into the commits, and there would be one for each
    step."""
    flags = ["-q", "--isolation", "chroot", "--format", "docker"]
    tags = {f"localhost/theirs-{name}:1": name for name in forms.FORMS if name in chosen}
    for tag, name in tags.items():
        target = ["--target", _LAST.get(name, name), "-t", tag, f"--layers={str(name in _STEPWISE).lower()}"]
        builder.user.run([*podman, "build", *flags, *target, context], timeout_s=100)
    archive = builder.where / "theirs.tar"
    save = ["save", "-q", "-m", "--format", "docker-archive", "-o", os.fspath(archive)]
    builder.user.run([*podman, *save, *tags], timeout_s=100)
    found: dict[str, Image] = {}
    with tarfile.open(archive) as outer:
        read = functools.cache(lambda path: _content(outer, path))
        for image in json.loads(read("manifest.json")):
            tree: dict[str, tuple[object, ...]] = {}
            for layer in image["Layers"]:
                _apply(read(layer), tree)
            (tag,) = image["RepoTags"]
            found[tags[tag]] = Image(json.loads(read(image["Config"])), tree)
    return found


def _of_unionfs(
    builder: Builder, base_tar: Path, context: Path, chosen: set[str], capsys: pytest.CaptureFixture[str]
) -> dict[str, Image]:
    builder("import", "-q", base_tar, forms.BASE)
    file = context / "Containerfile"
    builder("build", context)
    found = {}
    for name in chosen:  # all their steps are cached, so that nothing is executed or forked
        tag = f"localhost/form-{name}:1"
        target = ["--target", _LAST.get(name, name), "-t", tag]
        assert main(["build", "--root", str(builder.root), "-q", "-f", str(file), *target, str(context)]) == 0
        config = builder.config(tag)
        tree: dict[str, tuple[object, ...]] = {}
        for layer in config["manifest"]["layers"]:
            _apply(builder.blob(layer["digest"]), tree)
        found[name] = Image(config, tree)
    capsys.readouterr()
    return found


def _content(archive: tarfile.TarFile, path: str) -> bytes:
    found = archive.extractfile(path)
    assert found is not None
    return found.read()


def _archive() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for path, uid in (("app/bin", 0), ("app/owned", 5)):
            entry = tarfile.TarInfo(path)
            entry.size, entry.uid, entry.mode, entry.mtime = 3, uid, 0o750, 1_000_000_000
            tar.addfile(entry, io.BytesIO(b"abc"))
    return data.getvalue()


def _apply(layer: bytes, tree: dict[str, tuple[object, ...]]) -> None:
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        members = tar.getmembers()
        for member in members:
            parent, name = os.path.split(member.name.strip("./") if member.name != "." else "")
            if name.startswith(".wh."):
                hidden = os.path.join(parent, name[4:])
                for path in [one for one in tree if one == hidden or one.startswith(hidden + "/")]:
                    del tree[path]
                if name == ".wh..wh..opq":
                    for path in [one for one in tree if one.startswith(parent + "/")]:
                        del tree[path]
        for member in members:
            path = member.name.removeprefix("./").strip("/")
            if os.path.basename(path).startswith(".wh.") or path in ("", "."):
                continue
            data = tar.extractfile(member) if member.isfile() else None
            if member.islnk():
                tree[path] = tree[member.linkname.removeprefix("./").strip("/")]
                continue
            if not member.isdir():
                for below in [one for one in tree if one.startswith(path + "/")]:
                    del tree[below]
            content = hashlib.sha256(data.read()).hexdigest() if data is not None else member.linkname
            mode = 0o777 if member.issym() else member.mode & 0o7777  # podman writes the type there, too
            kind = member.type if not member.isfile() else b"0"
            attributes = {name: value for name, value in member.pax_headers.items() if name.startswith("SCHILY.xattr.")}
            tree[path] = (kind, mode, member.uid, member.gid, content, attributes)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in config.get("config", {}).items() if value and key != "Hostname"}
    labels = {key: value for key, value in found.pop("Labels", {}).items() if key != "io.buildah.version"}
    for key in ("Env", "Volumes", "ExposedPorts"):
        if key in found:
            found[key] = sorted(found[key])
    return {**found, "labels": labels, "author": config.get("author", "")}


def _history(config: Mapping[str, Any]) -> list[str]:
    """Without what is copied, of which each tool has a digest of its own, and without what the base has."""
    steps = [str(one.get("created_by", "")).strip() for one in config["history"]]
    own = [step for step in steps if step != "unionfs import" and not re.search(r"ADD file:[0-9a-f]+ in /$", step)]
    named = [re.sub(r"(?:file|dir|multi):[0-9a-f]+", "WHAT", step) for step in own]
    return [step for step in named if "#(nop) ARG" not in step]  # podman names some of them more than once, or not

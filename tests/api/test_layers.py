"""`import layers`: images of every form and layers of both, their entries, why, diff."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

import layers
from tests.core.trees import tree

_BOTTOM = {"etc/motd": b"bottom", "etc/gone": b"x", "bin/tool": b"tool"}
_TOP = {"etc/motd": b"top", "etc/.wh.gone": b"", "new": b"n"}


def _tar(files: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o640
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def layout(where: Path, *stack: dict[str, bytes]) -> Path:
    """An OCI layout with one image, its layers bottom first."""
    blobs = where / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, media_type: str) -> dict[str, object]:
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": f"sha256:{name}", "size": len(data)}

    tars = [_tar(files) for files in stack]
    config = {
        "architecture": "amd64", "os": "linux", "config": {"Env": ["A=b"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars]},
        "history": [{"created_by": f"step {number}"} for number in range(len(tars))],
    }  # fmt: skip
    manifest = {
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), "config.v1+json"),
        "layers": [blob(tar, "layer.v1.tar") for tar in tars],
    }  # fmt: skip
    named = blob(json.dumps(manifest).encode(), "manifest.v1+json")
    (where / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    (where / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return where


@pytest.fixture(params=["layout", "archive"])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An image of two layers, as a directory and as a file."""
    made = layout(tmp_path / "layout", _BOTTOM, _TOP)
    if request.param == "layout":
        return made
    with tarfile.open(tmp_path / "image.tar.gz", "w:gz") as tar:
        tar.add(made, ".")
    return tmp_path / "image.tar.gz"


def test_an_image_is_opened_and_its_entries_are_listed(subject: Path) -> None:
    with layers.open(subject) as image:
        assert (image.name, image.platform, image.config["config"]) == ("", "linux/amd64", {"Env": ["A=b"]})
        assert [layer.created_by for layer in image.layers] == ["step 0", "step 1"]
        bottom, top = ([(one.path, one.kind, one.size) for one in layer] for layer in image.layers)
    assert bottom == [("/etc/motd", "file", 6), ("/etc/gone", "file", 1), ("/bin/tool", "file", 4)]
    assert top == [("/etc/motd", "file", 3), ("/etc/gone", "whiteout", 0), ("/new", "file", 1)]


def test_why_explains_a_path(subject: Path) -> None:
    with layers.open(subject) as image:
        told = {
            path: [(one.layer.index, one.does, one.shows) for one in image.why(path)]
            for path in ("/etc/motd", "etc/gone", b"bin/tool", "/none")
        }
    assert told == {
        "/etc/motd": [(1, "brings", True), (0, "brings", False)],
        "etc/gone": [(1, "hides", False), (0, "brings", False)],
        b"bin/tool": [(0, "brings", True)],
        "/none": [],
    }


def test_two_images_differ_as_their_trees_do(tmp_path: Path, subject: Path) -> None:
    other = layout(tmp_path / "other", {"etc/motd": b"bottom", "bin/tool": b"tool"})
    with layers.open(other) as old, layers.open(subject) as new:
        found = [(one.kind, one.path, one.what) for one in layers.diff(old, new)]
        assert layers.diff(new, new) == []
    assert found == [
        ("changed", "/", ()),
        ("changed", "/etc", ()),
        ("changed", "/etc/motd", ("content",)),
        ("added", "/new", ()),
    ]
    assert sorted(os.listdir(other)) == ["blobs", "index.json", "oci-layout"]


def test_layers_alone(tmp_path: Path) -> None:
    (tmp_path / "layer.tar").write_bytes(_tar(_TOP))
    directory = tree(tmp_path / "directory", "etc/motd=other etc/.wh.gone new=n")
    packed, plain = layers.open_layer(tmp_path / "layer.tar"), layers.open_layer(directory)
    assert [one.path for one in packed if one.kind == "whiteout"] == ["/etc/gone"]
    assert [one.path for one in plain if one.kind == "whiteout"] == ["/etc/gone"]
    assert [(one.layer, one.shows) for one in layers.explain([packed, plain], "new")] == [
        (plain, True),
        (packed, False),
    ]
    assert ("changed", "/etc/motd") in [(one.kind, one.path) for one in layers.diff(packed, plain)]


def test_wrong_content_and_missing_files_are_refused(tmp_path: Path) -> None:
    made = layout(tmp_path / "layout", _BOTTOM)
    with layers.open(made) as image:
        path = Path(image.layers[0].path)
        path.write_bytes(_tar(_TOP))
        with pytest.raises(layers.Refused):
            list(image.layers[0])
    with pytest.raises(layers.Refused, match="oci-layout"):
        layers.open(tmp_path)
    with pytest.raises(layers.NotFound):
        layers.open("no-such-image:latest", root=tmp_path / "store")
    with pytest.raises(layers.NotFound):
        layers.open_layer(tmp_path / "none.tar")

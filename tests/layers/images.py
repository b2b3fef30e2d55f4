"""Images for the tests, made without any of our own code that is under test: OCI layouts written by hand."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def put(layout: Path, data: bytes) -> tuple[str, int]:
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / hashlib.sha256(data).hexdigest()).write_bytes(data)
    return digest(data), len(data)


def layout(
    directory: Path,
    layers: list[bytes],
    *,
    name: str = "t",
    settings: dict[str, Any] | None = None,
    compress: bool = True,
    manifest_changes: dict[str, Any] | None = None,
) -> str:
    """An OCI layout of one image with these layers (tars, bottom first); the digest of its manifest."""
    suffix = "+gzip" if compress else ""
    described = []
    for layer in layers:
        name_, size = put(directory, gzip.compress(layer, mtime=0) if compress else layer)
        described.append(
            {"mediaType": f"application/vnd.oci.image.layer.v1.tar{suffix}", "digest": name_, "size": size}
        )
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": settings or {},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
    }
    config_digest, config_size = put(directory, json.dumps(config).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config_digest,
            "size": config_size,
        },
        "layers": described,
    } | (manifest_changes or {})
    manifest_digest, manifest_size = put(directory, json.dumps(manifest).encode())
    entry = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": manifest_digest,
        "size": manifest_size,
        "annotations": {"org.opencontainers.image.ref.name": name},
    }
    (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return manifest_digest

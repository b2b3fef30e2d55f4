"""Containers before they run: what is described is the container that would be made, and nothing is made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unionfs.containers import create
from unionfs.containers.config import ContainerConfig, Mounts, RootFilesystem, Volume
from unionfs.containers.errors import ContainerError
from unionfs.containers.store import ContainerStore
from unionfs.launcher.spec import Process


def config(lower: Path, mounts: Mounts | None = None) -> ContainerConfig:
    return ContainerConfig(Process(("true",)), RootFilesystem((str(lower),)), mounts or Mounts())


def test_describing_makes_nothing_and_knows_volumes_without_a_name(tmp_path: Path) -> None:
    store = ContainerStore(str(tmp_path / "root"))
    container = create.new(store, config(tmp_path, Mounts(anonymous=("/data",))), "web")
    described = create.describe(container)
    assert described[0] == f"make a container web in {container.directory}"
    assert f"set the hostname to {container.id[:12]}" in described
    assert [line for line in described if line.startswith(f"bind {store.root}/volumes/") and line.endswith(" on /data")]
    assert not os.path.exists(store.root)


def test_the_described_container_is_the_one_made(tmp_path: Path) -> None:
    store = ContainerStore(str(tmp_path / "root"))
    made = create.create(store, config(tmp_path), "web")
    assert (made.facts, made.config) == (create.new(store, made.config).facts, config(tmp_path))
    assert store.load(made.id) == made


@pytest.mark.parametrize(
    ("volume", "why"),
    [
        (Volume("/nonexistent", "/x"), "binding the volume failed: /nonexistent: No such file or directory"),
        (Volume("/etc/passwd", "/x", overlay=True), "only a directory can be shown with :O"),
    ],
)
def test_sources_are_checked_before_anything_is_made(tmp_path: Path, volume: Volume, why: str) -> None:
    store = ContainerStore(str(tmp_path / "root"))
    with pytest.raises(ContainerError, match=why):
        create.create(store, config(tmp_path, Mounts((volume,))))
    assert not os.path.exists(store.root)

"""What the two packages export, exactly, and that importing them costs nothing."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import unionfs

_UNIONFS = [
    "AsyncSession",
    "Change",
    "MergeConflict",
    "MergeConflictError",
    "MountError",
    "Mounted",
    "OptionError",
    "Session",
    "SessionChange",
    "SessionError",
    "Side",
    "Union",
    "__version__",
    "list_changes",
    "mount",
]
_LAYERS = [
    "Difference",
    "Entry",
    "Image",
    "Layer",
    "LayerError",
    "NotFound",
    "Refused",
    "Verdict",
    "__version__",
    "diff",
    "explain",
    "open",
    "open_layer",
]
_FACES = {"unionfs": _UNIONFS, "layers": _LAYERS}


@pytest.mark.parametrize("package", _FACES)
def test_the_exported_names(package: str) -> None:
    face = importlib.import_module(package)
    assert sorted(face.__all__) == sorted(_FACES[package])
    assert [name for name in face.__all__ if getattr(face, name, None) is None] == []
    assert set(face.__all__) <= set(dir(face))
    with pytest.raises(AttributeError):
        face.no_such_name  # noqa: B018


@pytest.mark.parametrize("package", _FACES)
def test_no_module_has_an_exported_name(package: str) -> None:
    """Importing `unionfs.x` sets the attribute `x` of the package, whatever it was before."""
    below = Path(importlib.import_module(package).__path__[0])
    modules = {path.stem for path in below.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert modules & set(_FACES[package]) == set()
    assert (below / "py.typed").exists()


def test_the_version_is_the_package_s() -> None:
    assert unionfs.__version__ == version("unionfs")


@pytest.mark.parametrize("package", _FACES)
def test_importing_a_package_imports_no_module_of_it(package: str) -> None:
    code = f"import sys, __future__; old = set(sys.modules); import {package}; print(*sorted(set(sys.modules) - old))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == [package]

"""The build backend (PEP 517, PEP 660): setuptools's own, told that the setup script is `.build/setup.py`."""

from __future__ import annotations

from setuptools import build_meta

_SCRIPT = ".build/setup.py"


class _Backend(build_meta._BuildMetaBackend):
    """As setuptools.build_meta, with the script elsewhere than at the top of the checkout."""

    def run_setup(self, setup_script: str = _SCRIPT) -> None:
        """Run our script, whatever setuptools takes to be its name."""
        super().run_setup(_SCRIPT)


_backend = _Backend()
build_wheel = _backend.build_wheel
build_sdist = _backend.build_sdist
build_editable = _backend.build_editable
get_requires_for_build_wheel = _backend.get_requires_for_build_wheel
get_requires_for_build_sdist = _backend.get_requires_for_build_sdist
get_requires_for_build_editable = _backend.get_requires_for_build_editable
prepare_metadata_for_build_wheel = _backend.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = _backend.prepare_metadata_for_build_editable

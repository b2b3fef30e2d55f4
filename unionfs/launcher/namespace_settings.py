"""Kernel settings that refuse user namespaces to ordinary users, and the values that allow them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_ALLOWING: Final = (
    ("kernel.unprivileged_userns_clone", "0", "1"),  # Debian's kernel before 11
    ("user.max_user_namespaces", "0", "15000"),  # namespaces(7); RHEL's hardening guides set 0
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),  # Ubuntu since 23.10
)
"""Each with the value that refuses, and one that allows."""

SETTINGS: Final = tuple(name for name, _, _ in _ALLOWING)


def read() -> dict[str, str]:
    """The settings that this kernel has."""
    found = {}
    for name in SETTINGS:
        try:
            with open(f"/proc/sys/{name.replace('.', '/')}", encoding="ascii") as file:
                found[name] = file.read().strip()
        except OSError:
            continue
    return found


def change_that_allows(settings: Mapping[str, str]) -> str:
    """NAME=VALUE of the first setting that refuses user namespaces; empty if none does. Pure."""
    return next((f"{name}={allows}" for name, refuses, allows in _ALLOWING if settings.get(name) == refuses), "")

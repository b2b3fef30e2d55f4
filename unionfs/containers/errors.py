"""What can go wrong with containers."""

from __future__ import annotations

from unionfs.cli.errors import CommandError


class ContainerError(CommandError):
    """What the user asked of containers cannot be done."""

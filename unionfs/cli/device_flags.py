"""The flags --device and --cdi-spec-dir."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace

from unionfs.cli.errors import OWN_FAILURE, CommandError
from unionfs.containers.config import DeviceNames


def add(parser: ArgumentParser) -> None:
    """Add the flags to the parser of a verb that makes containers."""
    parser.add_argument(
        "--device",
        metavar="NAME",
        action="append",
        help="give the container a device: VENDOR/CLASS=NAME as its description names it, such as nvidia.com/gpu=0, or "
        "PATH[:PATH_IN_CONTAINER]",
    )
    parser.add_argument(
        "--cdi-spec-dir",
        metavar="DIR",
        action="append",
        help="read the descriptions of devices here (default: /etc/cdi, then /var/run/cdi; the last one has priority)",
    )


def devices_of(arguments: Namespace) -> DeviceNames:
    """The devices by --device. Raises: CommandError."""
    if arguments.device and arguments.runtime:
        raise CommandError("run: --device and --runtime exclude each other", status=OWN_FAILURE)
    directories = tuple(map(os.path.abspath, arguments.cdi_spec_dir or ()))
    return DeviceNames(tuple(arguments.device or ()), directories)

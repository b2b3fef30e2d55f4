"""The flags of the verbs that make containers (`run`, `create`), and the configuration that they ask for."""

from __future__ import annotations

import argparse
import os
from argparse import Namespace
from collections.abc import Iterable
from typing import Final

from unionfs.cli import (
    as_me_flags,
    device_flags,
    mount_flags,
    network_flags,
    remote_flags,
    signals,
    store_flags,
    union_flags,
)
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import CommandError
from unionfs.containers.config import ContainerConfig, RootFilesystem
from unionfs.drivers.names import FUSE, NAMES
from unionfs.launcher import resources
from unionfs.launcher.capabilities import chosen
from unionfs.launcher.spec import PASTA, SLIRP, Process

CONTAINER_ENDS: Final = "; the container then ends"


def partial_from(arguments: Namespace, *, by_default: int) -> int:
    """The size in bytes from which files are copied up in part: --partial-from, or `by_default`."""
    asked: int | None = arguments.partial_from
    return by_default if asked is None else asked


def config_of(arguments: Namespace) -> ContainerConfig:
    """The configuration of the flags, still without a root filesystem and a command.

    Raises: CommandError for invalid flags.
    """
    if arguments.stop_signal:
        signals.number_of(arguments.stop_signal)
    return ContainerConfig(
        process=Process(
            command=(),
            environment=environment(arguments),
            user=arguments.user,
            workdir=mount_flags.inside("working directory", arguments.workdir or "/"),
            interactive=arguments.interactive,
            terminal=arguments.tty,
            capabilities=_capabilities(arguments.cap_add or (), arguments.cap_drop or ()),
            no_new_privileges=not arguments.allow_new_privileges,
            limits=tuple(map(_limit, arguments.ulimit or ())),
        ),
        rootfs=RootFilesystem(
            lowers=(),
            driver=arguments.driver,
            read_only=arguments.read_only,
            transport=arguments.transport,
            whiteout=arguments.whiteout,
            durability=arguments.durability,
            passthrough=_passthrough(arguments),
            keeper=not arguments.no_keeper,
            partial_from=partial_from(arguments, by_default=0),
        ),
        mounts=mount_flags.mounts_of(arguments),
        devices=device_flags.devices_of(arguments),
        network=network_flags.network_of(arguments),
        hostname=_hostname(arguments.hostname),
        stop_signal=arguments.stop_signal or "SIGTERM",
        labels=tuple((label.partition("=")[0], label.partition("=")[2]) for label in arguments.label or ()),
        runtime=_runtime(arguments.runtime),
        logged=arguments.detach or not (arguments.rm or arguments.log_driver == "none"),
        remove=arguments.rm,
    )


def parser(verb: str, description: str, epilog: str) -> Parser:
    """The flags of the verbs that make containers."""
    made = Parser(verb, description, epilog, short_help=False)  # -h is docker's hostname
    made.usage = (
        f"unionfs {verb} [OPTIONS] IMAGE [COMMAND [ARG...]]\n"
        f"       unionfs {verb} [OPTIONS] DIRECTORY|/ COMMAND [ARG...]\n"
        f"       unionfs {verb} [OPTIONS] --lower DIR... COMMAND [ARG...]"
    )
    add = made.add_argument
    add("words", metavar="ROOTFS COMMAND", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    add("--lower", metavar="DIR", action="append", help="a directory of the root filesystem; repeat it, topmost first")
    add("-i", "--interactive", action="store_true", help="let the command read standard input")
    add("-t", "--tty", action="store_true", help="give the command a terminal")
    add("-d", "--detach", action="store_true", help="return when the command has started, and print the container's id")
    add("--rm", action="store_true", help="remove the container and its changes when the command ends")
    add("--name", help="the container's name (default: a random one)")
    add(
        "-v",
        "--volume",
        metavar="SRC:DST[:ro|:O]",
        action="append",
        help="show SRC of this machine, or the volume of that name, at DST; ro: read-only; O: the command's changes "
        "of it are discarded; without SRC an anonymous volume",
    )
    add(
        "--mount",
        metavar="KEY=VALUE,...",
        action="append",
        help="the same as type=bind|volume|tmpfs,src=,dst=,readonly",
    )
    add(
        "--tmpfs",
        metavar="DIR[:OPTIONS]",
        action="append",
        help="mount a tmpfs at DIR; size=64m, mode=700",
    )
    add("--init", action="store_true", help="no effect: process 1 always reaps and forwards signals")
    add(
        "-e",
        "--env",
        metavar="NAME[=VALUE]",
        action="append",
        help="set a variable; without =, to its value here, if it is set",
    )
    add("--env-file", metavar="FILE", action="append", help="a file of variables, one on a line; # begins a comment")
    add("-w", "--workdir", metavar="DIR", help="the working directory, made if missing (default: the image's, or /)")
    add(
        "-u",
        "--user",
        metavar="USER[:GROUP]",
        default="",
        help="user and group of the command, by names or numbers of the container (default: the image's, or root)",
    )
    as_me_flags.add(made)
    device_flags.add(made)
    add("-l", "--label", metavar="NAME=VALUE", action="append", help="store a label with the container")
    add("-h", "--hostname", metavar="NAME", help="the hostname in the container (default: its id)")
    add(
        "--network",
        choices=("host", "none", "private", PASTA, SLIRP),
        default="host",
        help="this machine's network, none, or a private one connected through pasta or slirp4netns, whichever "
        "is installed (default: host)",
    )
    add("--add-host", metavar="NAME:ADDRESS", action="append", help="add a line to the container's /etc/hosts")
    add("--dns", metavar="ADDRESS", action="append", help="use this name server instead of this machine's")
    add(
        "-p",
        "--publish",
        metavar="[[IP:]PORT:]PORT[/udp]",
        action="append",
        help="forward a port of this machine to one of the container; needs --network private",
    )
    add(
        "--read-only",
        action="store_true",
        help="allow changes only in volumes, and in /run, /tmp and /var/tmp, which are in memory",
    )
    add("--entrypoint", metavar="PROGRAM", help="execute PROGRAM with COMMAND as its arguments; empty: no entrypoint")
    add("--stop-signal", metavar="SIGNAL", help="the signal of `unionfs stop` (default: the image's, or SIGTERM)")
    add(
        "--log-driver",
        choices=("json-file", "none"),
        default="json-file",
        help="store the command's output for `unionfs logs`, or not (default: stored, except with --rm)",
    )
    add(
        "--pull",
        choices=("missing", "always", "never"),
        default="missing",
        help="when to fetch the image (default: missing)",
    )
    add(
        "--platform",
        metavar="OS/ARCH[/VARIANT]",
        help="which image of several platforms (default: this machine's platform)",
    )
    add("-q", "--quiet", action="store_true", help="show no progress of a pull")
    add("--cap-add", metavar="CAP", action="append", help="add a capability to the default ones, or ALL")
    add("--cap-drop", metavar="CAP", action="append", help="remove a capability, or ALL")
    add(
        "--ulimit",
        metavar="NAME=SOFT[:HARD]",
        action="append",
        help="limit a resource, such as nofile=1024:4096; -1: unlimited",
    )
    add("--allow-new-privileges", action="store_true", help="let set-user-id programs such as sudo have their effect")
    add(
        "--driver",
        choices=NAMES,
        default=FUSE,
        help="how the root filesystem is made: fuse, our union; overlay, the kernel's; vfs, a copy; btrfs, a "
        f"snapshot; devicemapper, a snapshot of a block device, for root only (default: {FUSE})",
    )
    add(
        "--pool",
        metavar="DEVICE",
        help="the thin pool of all devices of this store with --driver devicemapper, chosen once (default: files in "
        "the store)",
    )
    add(
        "--runtime",
        metavar="PROGRAM",
        default="",
        help="let an OCI runtime run the container, crun or runc (default: unionfs itself)",
    )
    union_flags.add_transport(made)
    union_flags.add_upper(made)
    add(
        "--passthrough",
        action="store_true",
        help="let the kernel itself read and write the files of the image (see unionfs mount); for root of the machine",
    )
    union_flags.add_no_keeper(made, CONTAINER_ENDS)
    # Only verbs that complete it read the upper of a container.
    union_flags.add_partial_from(made, default=None, by_default="16M for images of the store, otherwise 0")
    store_flags.add_root(made)
    store_flags.add_image_stores(made)
    add(
        "--scratch",
        metavar="DIR",
        help="keep the container and its changes in DIR/unionfs-UID, and only images in the store; other verbs find it "
        "with --root DIR/unionfs-UID (default: $SLURM_TMPDIR or $TMPDIR in a job of a scheduler)",
    )
    add("--dry-run", action="store_true", help="only print the steps")
    add("--debug", action="store_true", help="log everything to the container's daemon.log; show tracebacks")
    remote_flags.add(made)
    return made


def environment(arguments: Namespace) -> tuple[tuple[str, str], ...]:
    """The variables that -e and --env-file set. Raises: CommandError."""
    lines: list[str] = []
    for path in arguments.env_file or ():
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                lines += [line for line in map(str.strip, file) if line and not line.startswith("#")]
        except OSError as error:
            raise CommandError.of("reading variables", error) from error
    return tuple(entry for entry in map(_environment_entry, (*lines, *(arguments.env or ()))) if entry)


def _environment_entry(text: str) -> tuple[str, str] | None:
    name, equals, value = text.partition("=")
    if not name:
        raise mount_flags.bad("environment variable", text, "it has no name")
    if equals:
        return name, value
    return (name, os.environ[name]) if name in os.environ else None


def _hostname(name: str | None) -> str:
    if name is not None and not 0 < len(os.fsencode(name)) <= 64:
        raise mount_flags.bad("hostname", name, "it must have 1 to 64 bytes")
    return name or ""


def _runtime(name: str) -> str:
    if name in ("", "unionfs"):
        return ""
    import shutil

    found = shutil.which(name)
    if found is None:
        hint = f"install the package {name}" if name in ("crun", "runc") else "crun and runc are supported"
        raise CommandError(f"run: no such runtime: {name}", hint=hint)
    return os.path.abspath(found)


def _capabilities(added: Iterable[str], dropped: Iterable[str]) -> tuple[str, ...]:
    try:
        return chosen(added, dropped)
    except KeyError as error:
        raise mount_flags.bad("capability", str(error.args[0]), "there is no such capability") from None


def _passthrough(arguments: Namespace) -> bool:
    """Whether --passthrough is given. Raises: CommandError if the driver is not our own union."""
    if arguments.passthrough and arguments.driver != FUSE:
        raise mount_flags.bad("driver", arguments.driver, f"--passthrough is for {FUSE}, our own union")
    return bool(arguments.passthrough)


def _limit(text: str) -> resources.Limit:
    try:
        return resources.parse(text)
    except ValueError as error:
        raise mount_flags.bad("limit", text, str(error)) from None

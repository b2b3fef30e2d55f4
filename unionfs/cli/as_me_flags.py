"""The flags --as-me and --env-exclude: a container whose command runs as the user who starts it."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace

from unionfs.cli import notes
from unionfs.cli.errors import OWN_FAILURE, CommandError
from unionfs.containers.config import ContainerConfig


def add(parser: ArgumentParser) -> None:
    """Add the flags to the parser of a verb that makes containers."""
    parser.add_argument(
        "--as-me",
        action="store_true",
        help="run as this user: name, ids, groups, umask, environment, standard input, terminal; with its home and "
        "working directory, /tmp, /var/tmp, $TMPDIR, /dev/shm, host name and IPC of this machine; implies --rm unless "
        "there is a --name",
    )
    parser.add_argument(
        "--env-exclude",
        metavar="PATTERN",
        action="append",
        help="with --as-me: do not pass variables whose name matches, besides PATH, LD_*, UNIONFS_*, XDG_RUNTIME_DIR "
        "and DBUS_SESSION_BUS_ADDRESS",
    )


def apply(config: ContainerConfig, arguments: Namespace) -> ContainerConfig:
    """The configuration with the values that --as-me adds. Raises: CommandError."""
    if not arguments.as_me:
        if arguments.env_exclude:
            raise CommandError("run: --env-exclude is for --as-me", status=OWN_FAILURE)
        return config
    for flag in ("user", "runtime"):
        if getattr(arguments, flag):
            raise CommandError(f"run: --as-me and --{flag} exclude each other", status=OWN_FAILURE)
    import socket

    from unionfs.containers import as_me

    asked = config.process.workdir if arguments.workdir else None
    try:
        me = as_me.find(asked, arguments.env_exclude or ())
    except OSError as error:
        raise CommandError.of("run: the working directory", error, hint="choose one with -w DIR") from error
    mounts = config.mounts
    given = [*(one.target for one in mounts.volumes), *(one.target for one in mounts.tmpfs)]
    # With -w the directory is the container's own, as without --as-me.
    mine = as_me.volumes(me, given if asked is None else (*given, asked))
    shown = {one.target for one in mine}
    if me.home not in (*shown, *given) and not as_me.may_show(me.home):
        notes.warn(f"note: the home {me.home} is not shown: it is no directory of this machine, or one of the system")
    return config._replace(
        me=me,
        process=config.process._replace(
            interactive=not arguments.detach,
            terminal=arguments.tty or (not arguments.detach and all(map(os.isatty, (0, 1, 2)))),
        ),
        mounts=mounts._replace(
            volumes=(*mounts.volumes, *mine), anonymous=tuple(one for one in mounts.anonymous if one not in shown)
        ),
        hostname=config.hostname or socket.gethostname(),
        logged=arguments.detach,
        remove=config.remove or not arguments.name,
    )

"""What the verbs on images share: the store, the ids with which layers are unpacked, registries, and how they fail.

An ordinary user's layers hold files of many owners. They are made and removed in a child that is root of a user
namespace with the user's subordinate ids (`mapped`), where all of them exist. A user who has none keeps owners noted
beside the files.
"""

from __future__ import annotations

import argparse
import errno
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from layers import owners
from layers.attributes import Options
from layers.cli.showing import aligned
from layers.config import Settings
from layers.credentials import Credentials
from layers.digest import Digest
from layers.endpoints import Wishes
from layers.errors import EXIT_CODES, LayerError
from layers.image import Remote
from layers.limits import Limits
from layers.manifest import Descriptor
from layers.store import Store
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import INTERRUPTED, OWN_FAILURE, CommandError, tell
from unionfs.containers.store import ContainerStore, default_root
from unionfs.launcher import idmap, mapped
from unionfs.launcher.errors import LaunchError

EPILOG: Final = EXIT_CODES

_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True, slots=True)
class Ids:
    """Which owners layers can be given here. `limited` says why there is only one id; else it is empty."""

    id_map: idmap.NamespaceMap | None  # None: this process is root
    limited: str = ""

    @property
    def owners(self) -> str:
        return owners.NOTED if self.limited else owners.MAPPED


def ids() -> Ids:
    """The best this user can have."""
    if idmap.is_privileged():
        return Ids(None)
    found = idmap.find(os.geteuid(), os.getegid())
    return Ids(found, found.limited)


def with_ids(body: Callable[[], int]) -> int:
    """The exit code of `body`, run where all owners of layers exist.

    In a child of a user namespace what `body` raises as CommandError is printed there. SIGINT and SIGTERM are passed on
    to it, unless this process ignores them, and it ends with us.
    """
    chosen = ids()
    if chosen.id_map is None:
        return body()
    parent = os.getpid()

    def run() -> int:
        _end_with(parent)
        try:
            with failures():
                return body()
        except CommandError as error:
            print(tell(error), file=sys.stderr)
            return error.status
        except KeyboardInterrupt:
            return INTERRUPTED

    try:
        child = mapped.fork(chosen.id_map, 0, run)
    except LaunchError as error:
        raise CommandError(str(error), hint=error.hint) from error
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as a background job of a script ignores SIGINT
            signal.signal(number, lambda caught, frame: os.kill(child, caught))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _end_with(parent: int) -> None:
    from unionfs.syscalls.namespaces import set_parent_death_signal

    set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(OWN_FAILURE)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def options(arguments: argparse.Namespace) -> Options:
    """How layers are unpacked, as the ids and the command line say. Preconditions: as `with_ids` runs things."""
    size = getattr(arguments, "max_layer_size", None)
    limits = Limits() if size is None else Limits(max_bytes=size, max_ratio=None)
    return Options(owners=owners_here(), limits=limits)


def owners_here() -> str:
    """In the namespace of a user without subordinate ids there is one id."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        count = sum(int(line.split()[2]) for line in file)
    return owners.MAPPED if count > 1 else owners.NOTED


@contextmanager
def failures() -> Iterator[None]:
    """What layers and the disk raise, as a verb's failure."""
    try:
        yield
    except LayerError as error:
        raise CommandError(str(error), hint=error.hint, status=error.exit_code) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "layers gc frees what nothing needs; what was fetched is kept, and a second try goes on from there"
        raise CommandError.of("working on images", error, hint=hint if full else "") from error


def add_root(parser: Parser) -> None:
    parser.add_argument(
        "--root", metavar="DIR", help="where images and containers are kept (default: $XDG_DATA_HOME/unionfs)"
    )
    parser.set_defaults(root=default_root())


def add_debug(parser: Parser) -> None:
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def store_of(arguments: argparse.Namespace) -> Store:
    return Store(arguments.root)


def in_use(arguments: argparse.Namespace) -> list[str]:
    """The layer directories that containers are made of."""
    return layers_in_use(arguments.root)


def layers_in_use(root: str) -> list[str]:
    """Likewise, of the containers below `root`."""
    return [lower for container in _containers(root).list() for lower in container.lowers]


def bases(root: str) -> list[Descriptor]:
    """The manifests of the images that containers are made of: without them nothing could be committed on top."""
    return [
        Descriptor(container.image_type, Digest(container.image_digest), 0)
        for container in _containers(root).list()
        if container.image_digest
    ]


def _containers(root: str) -> ContainerStore:
    return ContainerStore(root if root != default_root() else None)


def add_remote(parser: Parser) -> None:
    """Flags of the verbs that talk to a registry."""
    add = parser.add_argument
    add(
        "--tls-verify",
        metavar="BOOL",
        type=_boolean,
        nargs="?",
        const=True,
        help="false: take any certificate, and plain HTTP too (default: as registries.conf says, else true)",
    )
    add(
        "--cert-dir", metavar="DIR", help="a directory with authorities (*.crt) and our own certificate (*.cert, *.key)"
    )
    add("--creds", metavar="USER[:PASSWORD]", help="instead of what `unionfs login` keeps")
    add("--authfile", metavar="FILE", help="the file that keeps names and passwords")
    add("--mirror", metavar="HOST", action="append", default=[], help="ask there first; may be repeated")


def remote(arguments: argparse.Namespace) -> Remote:
    """What the flags of `add_remote` say."""
    if arguments.authfile:
        os.environ["REGISTRY_AUTH_FILE"] = arguments.authfile
    credentials = None
    if arguments.creds:
        name, colon, password = arguments.creds.partition(":")
        credentials = Credentials(name, password if colon else ask_password())
    wishes = Wishes(arguments.tls_verify, arguments.cert_dir, tuple(arguments.mirror))
    return Remote(wishes, credentials, warn=warn)


@functools.cache
def warn(text: str) -> None:
    """Print a warning, once: several images, and mirrors beside, have the same to say."""
    print(f"unionfs: warning: {text}", file=sys.stderr)


def ask_password() -> str:
    """A password from the terminal, not shown."""
    import getpass

    try:
        return getpass.getpass("Password: ", sys.stderr)
    except EOFError:
        raise CommandError("login failed: no password given", hint="--password-stdin reads it from a pipe") from None


def add_limits(parser: Parser) -> None:
    parser.add_argument(
        "--max-layer-size",
        metavar="SIZE",
        type=size,
        help="refuse larger layers, and let smaller ones be packed as tightly as they may; 10G, 500M (default: 64G)",
    )


def size(text: str) -> int:
    """Bytes of a text such as 10G."""
    number, unit = text.strip().lower().removesuffix("b"), ""
    if number and number[-1] in _UNITS:
        number, unit = number[:-1], number[-1]
    if not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 500M or 10G")
    return int(number) * _UNITS[unit]


def print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, heading: bool = True) -> None:
    """Columns as wide as they need to be."""
    lines = [head, *rows] if heading else list(rows)
    if lines:
        print("\n".join(aligned(head, lines, gap="   ")))


def settings_json(settings: Settings) -> dict[str, Any]:
    """The settings of an image in Docker's words."""
    return {
        "User": settings.user,
        "Env": list(settings.env),
        "Entrypoint": settings.entrypoint,
        "Cmd": settings.cmd,
        "WorkingDir": settings.working_dir,
        "Volumes": list(settings.volumes),
        "ExposedPorts": list(settings.exposed_ports),
        "Labels": dict(settings.labels),
        "StopSignal": settings.stop_signal,
    }


def _boolean(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")

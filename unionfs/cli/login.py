"""`unionfs login`: try a user name and a password at a registry, and store them."""

from __future__ import annotations

import os
import sys
from argparse import Namespace

from layers import credentials, reference
from layers.endpoints import Wishes, registry_itself
from layers.session import Session
from unionfs.cli import image_flags, remote_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import CommandError
from unionfs.containers import images
from unionfs.printable import printable

_DESCRIPTION = """\
Store a user name and a password for REGISTRY (default: docker.io), if the registry accepts them.

They are stored in ~/.docker/config.json, which only you can read, or by the credential helper that this file names.
Credentials that `podman login` stored are used, too."""


def main(argv: list[str]) -> int:
    """Run `unionfs login ARGV`."""
    parser = Parser("login", _DESCRIPTION, image_flags.EPILOG)
    parser.add_argument("registry", metavar="REGISTRY", nargs="?", default=reference.DEFAULT_REGISTRY)
    parser.add_argument("-u", "--username", metavar="NAME")
    parser.add_argument(
        "-p",
        "--password",
        metavar="PASSWORD",
        help="unsafe: all users of this machine can see it; use --password-stdin",
    )
    parser.add_argument("--password-stdin", action="store_true", help="read the password from stdin")
    parser.add_argument("--get-login", action="store_true", help="only print who is logged in")
    remote_flags.add(parser)
    image_flags.add_debug(parser)
    arguments = parser.parse(argv)
    with images.failures():
        registry = reference.check_registry(arguments.registry)
        if arguments.authfile:
            os.environ["REGISTRY_AUTH_FILE"] = arguments.authfile
        if arguments.get_login:
            return _print_login(registry)
        username = arguments.username or _ask("Username: ")
        given = credentials.Credentials(username, _password(parser, arguments.password, arguments.password_stdin))
        _try(registry, given, arguments)
        print(f"Login succeeded, stored in {printable(credentials.store(registry, given))}")
    return 0


def _print_login(registry: str) -> int:
    found = credentials.find(registry, warn=image_flags.warn)
    if found is None:
        raise CommandError(f"login failed: {registry}: no user is logged in", status=7)
    print(printable(found.username) or "(a token)")
    return 0


def _try(registry: str, given: credentials.Credentials, arguments: Namespace) -> None:
    import trio

    wishes = Wishes(arguments.tls_verify, arguments.cert_dir)
    endpoint = registry_itself(registry, wishes)

    async def ping() -> None:
        async with Session(endpoint, given) as session:
            await session.ping()

    trio.run(ping)


def _password(parser: Parser, given: str | None, from_stdin: bool) -> str:
    if given is not None and from_stdin:
        parser.error("--password and --password-stdin exclude each other")
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    return image_flags.ask_password() if given is None else given


def _ask(prompt: str) -> str:
    if not sys.stdin.isatty():
        raise CommandError("login failed: no name given", hint="unionfs login --username NAME", status=2)
    print(prompt, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()

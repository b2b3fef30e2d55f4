"""The network of a container: the flags --network, -p, --add-host and --dns, with docker's syntax."""

from __future__ import annotations

from argparse import Namespace

from unionfs.cli.errors import OWN_FAILURE, CommandError
from unionfs.containers.config import Network
from unionfs.launcher.spec import Port

_PROTOCOLS = ("tcp", "udp")


def network_of(arguments: Namespace) -> Network:
    """The network by --network, -p, --add-host and --dns. Raises: CommandError for invalid values."""
    chosen = arguments.network
    if arguments.publish and chosen in ("host", "none"):
        why = (
            "with --network host the container uses this machine's ports" if chosen == "host" else "there is no network"
        )
        raise CommandError(f"run: --publish is not possible: {why}", hint="--network private")
    return Network(
        private=chosen != "host",
        uplink=chosen if chosen not in ("host", "none") else "",
        published=tuple(map(port_from, arguments.publish or ())),
        hosts=tuple(map(host_from, arguments.add_host or ())),
        nameservers=tuple(map(nameserver_from, arguments.dns or ())),
    )


def port_from(text: str) -> Port:
    """The port of a value of -p; if it names no port of this machine, a free one is chosen. Raises: CommandError."""
    rest, _, protocol = text.partition("/")
    address, outside, inside = _parts(rest)
    if protocol and protocol not in _PROTOCOLS:
        raise _bad(text, f"{protocol!r} is not one of {', '.join(_PROTOCOLS)}")
    if address:
        _check_address(text, address)
    chosen = _number(text, outside) if outside else _free(address, protocol or "tcp")
    return Port(address, chosen, _number(text, inside), protocol or "tcp")


def host_from(text: str) -> tuple[str, str]:
    """Name and address of a value of --add-host. Raises: CommandError."""
    name, _, address = text.partition(":")
    address = address.removeprefix("[").removesuffix("]")
    if not name or any(char.isspace() for char in name):
        raise CommandError(f"run: bad host: {text}: expected NAME:ADDRESS", status=OWN_FAILURE)
    _check_address(text, address)
    return name, address


def nameserver_from(text: str) -> str:
    """The address of a value of --dns. Raises: CommandError."""
    _check_address(text, text)
    return text


def _parts(text: str) -> tuple[str, str, str]:
    """Address, port outside, port inside; an IPv6 address is in brackets."""
    if text.startswith("["):
        address, _, ports = text[1:].partition("]:")
        outside, _, inside = ports.rpartition(":")
        return address, outside, inside
    words = text.split(":", 2)
    address, outside, inside = [""] * (3 - len(words)) + words
    return address, outside, inside


def _number(text: str, number: str) -> int:
    if not (number.isascii() and number.isdecimal()) or not 0 < int(number) < 65536:
        raise _bad(text, f"{number!r} is not a port")
    return int(number)


def _check_address(text: str, address: str) -> None:
    import ipaddress

    try:
        ipaddress.ip_address(address)
    except ValueError:
        raise CommandError(f"run: bad address: {text}: {address!r} is not an IP address", status=OWN_FAILURE) from None


def _free(address: str, protocol: str) -> int:
    import socket

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM) as any_socket:
        any_socket.bind((address, 0))
        return int(any_socket.getsockname()[1])


def _bad(text: str, why: str) -> CommandError:
    return CommandError(f"run: bad port: {text}: {why}", hint="expected [[IP:]PORT:]PORT[/udp]", status=OWN_FAILURE)

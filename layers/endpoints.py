"""The endpoints of a registry: mirrors, other locations, plain HTTP, certificates. Reads the machine's configuration.

    /etc/containers/registries.conf, registries.conf.d/*.conf, the same below ~/.config/containers   (TOML, version 2)
        [[registry]] prefix location insecure blocked, [[registry.mirror]] location insecure
    /etc/containers/certs.d, /etc/docker/certs.d, ~/.config/containers/certs.d
        HOST[:PORT]/*.crt are authorities, *.cert with *.key is our own certificate

A registry on this machine (localhost, 127.*, ::1) may use plain HTTP without a flag, as with Docker.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from layers.errors import LayerError, Refused
from layers.origins import is_loopback_name, may_have_what_was_given
from layers.reference import DEFAULT_REGISTRY, Reference
from unionfs import store_files

if TYPE_CHECKING:  # imported only for fetching: every `unionfs run IMAGE` imports this module
    import ssl

_DOCKER_HOST: Final = "registry-1.docker.io"  # serves docker.io


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that has a repository, and how it is reached."""

    host: str  # HOST[:PORT]
    repository: str
    registry: str  # whose credentials are used
    insecure: bool = False  # certificates are not verified, and plain HTTP is allowed
    certificates: tuple[str, ...] = ()  # directories like certs.d/HOST with certificates of authorities
    own_certificates: tuple[str, ...] = ()  # likewise, with client certificates

    @property
    def may_be_plain(self) -> bool:
        return self.insecure or is_loopback(self.host)


@dataclass(frozen=True, slots=True)
class Wishes:
    """The flags of the command line that concern registries."""

    tls_verify: bool | None = None  # None: as configured
    cert_dir: str | None = None
    mirrors: tuple[str, ...] = ()


def endpoints(reference: Reference, wishes: Wishes, *, to_push: bool = False) -> list[Endpoint]:
    """The endpoints of a repository: mirrors first, the registry itself last; only that `to_push`.

    Raises: Refused for a registry that the machine's configuration blocks, or a configuration that cannot be read.
    """
    rule = _rule_for(reference, _configuration())
    location = reference.name
    mirrors: list[tuple[str, bool]] = [(f"{mirror}/{reference.repository}", False) for mirror in wishes.mirrors]
    insecure = False
    if rule is not None:
        if rule.get("blocked") is True:
            raise Refused("reaching a registry", reference.name, "registries.conf blocks it")
        prefix = str(rule.get("prefix") or rule.get("location") or "")
        insecure = rule.get("insecure") is True
        rest = location.removeprefix(prefix)
        if rule.get("location") and not prefix.startswith("*."):
            location = str(rule["location"]) + rest
        wanted = (None, "all", "digest-only" if reference.digest else "tag-only")
        mirrors += [
            (str(mirror.get("location", "")) + rest, mirror.get("insecure") is True)
            for mirror in rule.get("mirror", [])
            if mirror.get("pull-from-mirror") in wanted
        ]
    places = [(location, insecure)] if to_push else [*mirrors, (location, insecure)]
    return [_endpoint(where, insecure, reference, wishes) for where, insecure in places]


def registry_itself(registry: str, wishes: Wishes) -> Endpoint:
    """The endpoint of a registry by its own name, also if registries.conf gives another location: for `login`."""
    reference = Reference(registry, "login", None)
    found = endpoints(reference, wishes, to_push=True)[0]
    return found if found.registry == registry else _endpoint(reference.name, False, reference, wishes)


def is_loopback(host: str) -> bool:
    """Whether HOST[:PORT] is a loopback address or localhost, judged by its name."""
    name, colon, port = host.rpartition(":")
    return is_loopback_name((name if colon and port.isdecimal() else host).strip("[]"))


def tls_context(endpoint: Endpoint, *, with_own_certificate: bool = True) -> ssl.SSLContext:
    """A TLS context with the trusted authorities and the client certificate. Raises: LayerError."""
    import ssl

    context = ssl.create_default_context()
    if endpoint.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for path in _files(endpoint.certificates, "crt"):
        with _said(path):
            context.load_verify_locations(path)
    for path in _files(endpoint.own_certificates if with_own_certificate else (), "cert"):
        with _said(path):
            context.load_cert_chain(path, path.removesuffix(".cert") + ".key")
    return context


def _files(directories: Iterable[str], suffix: str) -> list[str]:
    return [
        path
        for directory in directories
        for path in sorted(glob.glob(os.path.join(glob.escape(directory), f"*.{suffix}")))
    ]


@contextmanager
def _said(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # ssl.SSLError is one
        raise LayerError("reading certificates", path, str(error)) from None


def _endpoint(where: str, insecure: bool, reference: Reference, wishes: Wishes) -> Endpoint:
    host, _, repository = where.partition("/")
    registry = DEFAULT_REGISTRY if host in (DEFAULT_REGISTRY, _DOCKER_HOST) else host
    if wishes.tls_verify is not None:
        insecure = not wishes.tls_verify
    directories = [
        os.path.join(base, name)
        for base in ("/etc/docker/certs.d", "/etc/containers/certs.d", _user_config("certs.d"))
        for name in {host, registry}
        if os.path.isdir(os.path.join(base, name))
    ]
    given = () if wishes.cert_dir is None else (wishes.cert_dir,)
    return Endpoint(
        _DOCKER_HOST if host == DEFAULT_REGISTRY else host,
        repository or reference.repository,
        registry,
        insecure,
        (*directories, *given),
        (*directories, *(given if may_have_what_was_given(registry, reference.registry) else ())),
    )


def _rule_for(reference: Reference, rules: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The rule of the longest prefix that fits (containers-registries.conf(5), "Choosing a [[registry]]")."""
    best: Mapping[str, Any] | None = None
    length = -1
    for rule in rules:
        prefix = str(rule.get("prefix") or rule.get("location") or "")
        if _fits(prefix, reference) and len(prefix) > length:
            best, length = rule, len(prefix)
    return best


def _fits(prefix: str, reference: Reference) -> bool:
    if prefix.startswith("*."):
        return reference.registry.endswith(prefix[1:])
    name = str(reference)
    return bool(prefix) and name.startswith(prefix) and name[len(prefix) : len(prefix) + 1] in ("", "/", ":", "@")


def _configuration() -> list[Mapping[str, Any]]:
    import tomllib

    named = os.environ.get("CONTAINERS_REGISTRIES_CONF")
    own = _user_config("registries.conf")
    paths = [named or (own if os.path.exists(own) else "/etc/containers/registries.conf")]
    if not named:
        for directory in ("/etc/containers/registries.conf.d", _user_config("registries.conf.d")):
            paths += sorted(glob.glob(os.path.join(glob.escape(directory), "*.conf")))
    rules: list[Mapping[str, Any]] = []
    for path in paths:
        try:
            value = tomllib.loads(store_files.read_linked(path).decode())
        except FileNotFoundError:
            continue
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise Refused("reading registries", path, str(error)) from None
        found = value.get("registry", [])
        if not isinstance(found, list) or not all(
            isinstance(rule, dict) and isinstance(rule.get("mirror", []), list) for rule in found
        ):
            raise Refused("reading registries", path, "[[registry]] is malformed")
        rules += found
    return rules


def _user_config(name: str) -> str:
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(base, "containers", name)

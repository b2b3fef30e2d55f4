"""Parse references, the names of images: `[REGISTRY[:PORT]/]NAME[:TAG][@DIGEST]`. Pure.

The grammar and the defaults (`docker.io`, `library/`, `latest`) are those of Docker's references and of the OCI
distribution specification ("Pulling manifests").
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from layers import digest as digests
from layers.digest import Digest
from layers.errors import Malformed

DEFAULT_REGISTRY: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
_OFFICIAL: Final = "library/"
_DEFAULT_ALIASES: Final = ("index.docker.io", "registry-1.docker.io", "registry.hub.docker.com")

_NAME_MAX: Final = 255  # Docker's limit of registry and repository together
_HOST_PART: Final = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_REGISTRY: Final = re.compile(rf"(?:{_HOST_PART}(?:\.{_HOST_PART})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?", re.ASCII)
_COMPONENT: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*", re.ASCII)
_TAG: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII)
_IMAGE_ID: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Reference(NamedTuple):
    """A complete reference; parts that were left out have their defaults."""

    registry: str
    repository: str
    tag: str | None
    digest: Digest | None = None

    @property
    def name(self) -> str:
        """REGISTRY/REPOSITORY."""
        return f"{self.registry}/{self.repository}"

    @property
    def target(self) -> str:
        """The digest if there is one, else the tag: the last part of the URL of a manifest."""
        return self.digest or self.tag or DEFAULT_TAG

    @property
    def familiar(self) -> str:
        """The shortest form, without Docker's default registry and `library/`."""
        name = self.name
        if self.registry == DEFAULT_REGISTRY:
            name = self.repository.removeprefix(_OFFICIAL) if self.repository.count("/") == 1 else self.repository
        return _with_target(name, self.tag, self.digest)

    def with_digest(self, digest: Digest) -> Reference:
        return self._replace(digest=digest)

    def __str__(self) -> str:
        return _with_target(self.name, self.tag, self.digest)


def parse(text: str) -> Reference:
    """Parse a reference. Without a tag and a digest the tag is `latest`. Raises Malformed."""
    rest, at, digest_text = text.partition("@")
    if at and not digest_text:
        raise _bad(text, "nothing follows the '@'")
    digest = digests.parse(digest_text) if at else None
    slash, colon = rest.rfind("/"), rest.rfind(":")
    tag = None
    if colon > slash:
        rest, tag = rest[:colon], rest[colon + 1 :]
        if not _TAG.fullmatch(tag):
            raise _bad(text, f"the tag {tag[:130]!r} is not made of at most 128 letters, digits, '_', '.' and '-'")
    registry, repository = _split_registry(rest)
    _check_name(text, registry, repository)
    if tag is None and digest is None:
        if _IMAGE_ID.fullmatch(rest):
            raise _bad(text, "64 hexadecimal digits are a digest, not a name", "write NAME@sha256:DIGITS")
        tag = DEFAULT_TAG
    return Reference(registry, repository, tag, digest)


def check_registry(text: str) -> str:
    """Parse the name or URL of a registry; Docker's aliases become `docker.io`. Raises Malformed."""
    name = text.removeprefix("https://").removeprefix("http://").rstrip("/")
    name = name.removesuffix("/v1").removesuffix("/v2")
    if not _REGISTRY.fullmatch(name) or not _port_fits(name):
        raise _bad(text, "not the name of a registry: HOST or HOST:PORT")
    return DEFAULT_REGISTRY if name in _DEFAULT_ALIASES else name


def _split_registry(rest: str) -> tuple[str, str]:
    first, slash, remainder = rest.partition("/")
    if not slash or not (set(".:[") & set(first) or first == "localhost" or first != first.lower()):
        registry, repository = DEFAULT_REGISTRY, rest
    else:
        registry, repository = first, remainder
    if registry in _DEFAULT_ALIASES:
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = _OFFICIAL + repository
    return registry, repository


def _check_name(text: str, registry: str, repository: str) -> None:
    if not _REGISTRY.fullmatch(registry) or not _port_fits(registry):
        raise _bad(text, f"{registry[:100]!r} is not the name of a registry")
    for component in repository.split("/"):
        if not _COMPONENT.fullmatch(component):
            if component != component.lower():
                raise _bad(text, f"{component[:100]!r} has upper-case letters; names are lower case")
            raise _bad(text, f"{component[:100]!r} is not a valid part of a name")
    if len(registry) + 1 + len(repository) > _NAME_MAX:
        raise _bad(text, f"a name is at most {_NAME_MAX} characters long")


def _port_fits(registry: str) -> bool:
    _, colon, port = registry.rpartition(":")
    return not colon or not port.isdecimal() or 0 < int(port) < 65536


def _with_target(name: str, tag: str | None, digest: Digest | None) -> str:
    return name + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")


def _bad(text: str, why: str, hint: str = "[REGISTRY[:PORT]/]NAME[:TAG][@DIGEST]") -> Malformed:
    return Malformed("reading a reference", text[:300], why, hint=hint)

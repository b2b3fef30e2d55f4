"""Credentials for registries, in the files of Docker and podman, read and written as these do.

    $REGISTRY_AUTH_FILE                                      podman's variable; alone if set
    $XDG_RUNTIME_DIR/containers/auth.json                    podman login
    ${XDG_CONFIG_HOME:-~/.config}/containers/auth.json
    ${DOCKER_CONFIG:-~/.docker}/config.json                  docker login, and ours

Read in this order; the first file with an entry for the registry counts; containers-auth.json(5). A file may name a
program that keeps the secrets (`credHelpers`, `credsStore`: docker-credential-NAME). Files are written with mode 0600;
unknown keys in them are kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from layers.errors import AuthError, LayerError, NotFound, Refused
from layers.reference import DEFAULT_REGISTRY
from unionfs import store_files

_DOCKER_KEY: Final = "https://index.docker.io/v1/"
_TOKEN_USER: Final = "<token>"  # the user name with which helpers mark an identity token
_HELPER_TIMEOUT_S: Final = 60
_HELPER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_FILE_MAX: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Credentials:
    """Either a name and a password, or an identity token that is exchanged for others (OAuth2)."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


def files(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The files that may have credentials, in the order in which they are read."""
    if named := environment.get("REGISTRY_AUTH_FILE"):
        return [named]
    home = environment.get("HOME") or os.path.expanduser("~")
    found = []
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        found.append(os.path.join(runtime, "containers", "auth.json"))
    config = environment.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    return [*found, os.path.join(config, "containers", "auth.json"), own_file(environment)]


def own_file(environment: Mapping[str, str] = os.environ) -> str:
    """The file that `login` writes."""
    if named := environment.get("REGISTRY_AUTH_FILE"):
        return named
    home = environment.get("HOME") or os.path.expanduser("~")
    return os.path.join(environment.get("DOCKER_CONFIG") or os.path.join(home, ".docker"), "config.json")


def no_warning(warning: str) -> None:
    """Drop a warning."""


def find(
    registry: str,
    repository: str = "",
    environment: Mapping[str, str] = os.environ,
    warn: Callable[[str], None] = no_warning,
) -> Credentials | None:
    """Find the credentials for a repository of a registry. A helper that fails is skipped with one warning, since most
    images are public. Raises: LayerError for a file that cannot be read."""
    failed: dict[str, LayerError] = {}  # by helper
    found = None
    for path in files(environment):
        value = _read(path) or {}
        for key in _keys(registry, repository):
            found = found or _from_file(path, value, key, failed)
    for failure in failed.values():
        warn(f"{failure}" + (f" ({failure.hint})" if failure.hint else ""))
    return found


def store(registry: str, credentials: Credentials, path: str | None = None) -> str:
    """Store credentials in the file, or with the helper that it names. Returns the file or the helper's program."""
    path = path or own_file()
    value = _read(path) or {}
    helper = _helper_for(path, value, registry)
    if helper:
        said = {
            "ServerURL": _file_key(registry),
            "Username": _TOKEN_USER if credentials.identity_token else credentials.username,
            "Secret": credentials.identity_token or credentials.password,
        }
        _run_helper(helper, "store", json.dumps(said))
        _table(path, value, "auths").setdefault(_file_key(registry), {})
        _write(path, value)
        return f"docker-credential-{helper}"
    import base64

    text = f"{credentials.username}:{credentials.password}".encode()
    entry = {"auth": base64.b64encode(text).decode()}
    if credentials.identity_token:
        entry["identitytoken"] = credentials.identity_token
    _table(path, value, "auths")[_file_key(registry)] = entry
    _write(path, value)
    return path


def erase(registry: str, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Remove the credentials for a registry from all files and helpers; returns these. Raises: NotFound when there are
    none; the error of a helper that failed, after the others were done."""
    erased = []
    failure: LayerError | None = None
    for path in files(environment):
        value = _read(path)
        if value is None:
            continue
        helper = _helper_for(path, value, registry)
        try:
            if helper and _ask_helper(helper, _file_key(registry)) is not None:
                _run_helper(helper, "erase", _file_key(registry))
                erased.append(f"docker-credential-{helper}")
        except LayerError as error:
            failure = error
        table = _table(path, value, "auths")
        known = [key for key in table if _normal(key) == registry]
        for key in known:
            del table[key]
        if known:
            _write(path, value)
            erased.append(path)
    if failure is not None:
        raise failure
    if not erased:
        raise NotFound("logging out", registry, "there are no credentials for it")
    return erased


def _keys(registry: str, repository: str) -> Iterator[str]:
    """The keys of credentials for a repository, the most specific first (containers-auth.json(5))."""
    parts = repository.split("/") if repository else []
    for count in range(len(parts), -1, -1):
        yield "/".join([registry, *parts[:count]])


def _from_file(path: str, value: Mapping[str, Any], key: str, failed: dict[str, LayerError]) -> Credentials | None:
    helper = _helper_for(path, value, key, particular="/" in key)
    if helper and helper not in failed:
        try:
            found = _ask_helper(helper, _file_key(key))
        except LayerError as error:
            found, failed[helper] = None, error
        if found is not None:
            return found
    for name, entry in _mapping(value.get("auths")).items():
        if _normal(name) == key and isinstance(entry, dict):
            found = _entry(path, name, entry)
            if found is not None:
                return found
    return None


def _entry(path: str, name: str, entry: Mapping[str, Any]) -> Credentials | None:
    token = entry.get("identitytoken", "")
    text = entry.get("auth", "")
    if not isinstance(token, str) or not isinstance(text, str):
        raise Refused("reading credentials", path, f"the entry of {name} is malformed")
    username, password = entry.get("username", ""), entry.get("password", "")
    if text:
        import base64
        import binascii

        try:  # some tools break the lines
            text = text.replace("\n", "").replace("\r", "")
            username, colon, password = base64.b64decode(text, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            colon = ""
        if not colon:
            raise Refused(
                "reading credentials", path, f"the entry of {name} is malformed", hint=f"unionfs login {name}"
            )
    return Credentials(username, password.strip("\0"), token) if username or token else None


def _helper_for(path: str, value: Mapping[str, Any], registry: str, *, particular: bool = False) -> str:
    """The helper for a registry, or empty; with `particular` for a repository, for which credsStore does not count."""
    helpers = _mapping(value.get("credHelpers"))
    general = "" if particular else value.get("credsStore", "")
    helper = next((name for key, name in helpers.items() if _normal(key) == registry), general)
    if not isinstance(helper, str) or (helper and not _HELPER_NAME.fullmatch(helper)):
        raise Refused("reading credentials", path, f"{str(helper)[:50]!r} is not the name of a credential helper")
    return helper


def _ask_helper(helper: str, key: str) -> Credentials | None:
    """Get the credentials for `key` from a helper; None when it has none."""
    try:
        said = json.loads(_run_helper(helper, "get", key))
        username, secret = said["Username"], said["Secret"]
    except NotFound:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise LayerError(
            "reading credentials", f"docker-credential-{helper}", f"its answer is malformed: {error}"
        ) from None
    if username == _TOKEN_USER:
        return Credentials(identity_token=str(secret))
    return (
        Credentials(str(username), str(secret)) if username else None
    )  # some helpers answer empty values if they have none


def _run_helper(helper: str, verb: str, said: str) -> str:
    import subprocess

    program = f"docker-credential-{helper}"
    try:
        ended = subprocess.run(
            [program, verb], input=said, capture_output=True, text=True, timeout=_HELPER_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        hint = f"install {program}, or take credHelpers and credsStore out of the file"
        raise AuthError("reading credentials", program, "there is no such program", hint=hint) from None
    except subprocess.TimeoutExpired:
        raise AuthError("reading credentials", program, f"no answer within {_HELPER_TIMEOUT_S} s") from None
    if ended.returncode == 0:
        return ended.stdout
    why = (ended.stdout or ended.stderr).strip()
    if "not found" in why:  # "credentials not found in native keychain", the message of every helper
        raise NotFound("reading credentials", program, why[:300])
    raise AuthError("reading credentials", program, why[:300] or f"it ended with {ended.returncode}")


def _file_key(registry: str) -> str:
    return _DOCKER_KEY if registry == DEFAULT_REGISTRY else registry


def _normal(key: str) -> str:
    """Normalize a key of a file to the name of a registry: of a URL (https://HOST/path) the host, as Docker and podman
    do; else HOST[/NAMESPACE]; Docker's old names become docker.io."""
    address = key.removeprefix("https://").removeprefix("http://")
    if address != key:
        key = address.partition("/")[0]
    key = key.rstrip("/").removesuffix("/v1").removesuffix("/v2")
    return DEFAULT_REGISTRY if key in ("index.docker.io", "registry-1.docker.io") else key


def _table(path: str, value: dict[str, Any], key: str) -> dict[str, Any]:
    table = value.setdefault(key, {})
    if not isinstance(table, dict):
        raise Refused("reading credentials", path, f"{key} is not an object")
    return table


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _read(path: str) -> dict[str, Any] | None:
    try:
        data = store_files.read_linked(path, _FILE_MAX)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        value = json.loads(data or b"{}")
    except (ValueError, RecursionError) as error:
        raise Refused("reading credentials", path, f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused("reading credentials", path, "not a JSON object")
    return value


def _write(path: str, value: Mapping[str, Any]) -> None:
    """Replace the file, or the target of a symlink, atomically by one that only its owner may read.

    Raises: Refused for a symlink of another user on the way, which would choose the place.
    """
    if (link := store_files.foreign_link(path)) is not None:
        raise Refused("writing credentials", path, f"{link} is a symbolic link of another user")
    path = os.path.realpath(path)
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    aside = f"{path}.{os.urandom(4).hex()}"
    try:
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            json.dump(value, file, indent="\t")
            file.write("\n")
        os.rename(aside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        raise

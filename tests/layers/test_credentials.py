"""Names and passwords in Docker's and podman's files, credential helpers, and where registries are asked."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path

import pytest

from layers import credentials, endpoints, reference
from layers.credentials import Credentials
from layers.endpoints import Wishes
from layers.errors import AuthError, NotFound, Refused

HELPER = """#!/bin/sh
# docker-credential-test: keeps one secret for each server in a file
server=$(cat)
case $1 in
get) [ -f "$KEEP/$(echo "$server" | tr / _)" ] || { echo "credentials not found in native keychain"; exit 1; }
     cat "$KEEP/$(echo "$server" | tr / _)" ;;
store) name=$(echo "$server" | sed 's/.*"ServerURL": "\\([^"]*\\)".*/\\1/' | tr / _); echo "$server" > "$KEEP/$name" ;;
erase) rm "$KEEP/$(echo "$server" | tr / _)" ;;
esac
"""


@pytest.fixture
def home(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, with a credential helper called `test` in PATH."""
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME", "CONTAINERS_REGISTRIES_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(scratch))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(scratch / "run"))
    monkeypatch.setenv("KEEP", str(scratch / "keep"))
    monkeypatch.setenv("PATH", f"{scratch / 'bin'}:/usr/bin:/bin")
    (scratch / "keep").mkdir()
    (scratch / "bin").mkdir()
    (scratch / "bin/docker-credential-test").write_text(HELPER)
    (scratch / "bin/docker-credential-test").chmod(0o755)
    return scratch


def auth(name: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{name}:{password}".encode()).decode()}


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def test_what_is_stored_is_found_and_only_ours_to_read(home: Path) -> None:
    assert credentials.find("r.example") is None
    kept = credentials.store("r.example:5000", Credentials("me", "a:b ü"))
    assert kept == str(home / ".docker/config.json")
    assert stat.S_IMODE(Path(kept).stat().st_mode) == 0o600
    assert credentials.find("r.example:5000", "any/repo") == Credentials("me", "a:b ü")
    assert credentials.find("r.example") is None
    assert credentials.erase("r.example:5000") == [kept]
    with pytest.raises(NotFound):
        credentials.erase("r.example:5000")


def test_the_rest_of_the_file_stays_even_behind_a_symlink(home: Path) -> None:
    write(home / "real.json", {"auths": {"other": auth("a", "b")}, "psFormat": "x"})
    (home / ".docker").mkdir()
    (home / ".docker/config.json").symlink_to(home / "real.json")
    credentials.store("r.example", Credentials("me", "pw"))
    assert (home / ".docker/config.json").is_symlink()
    value = json.loads((home / "real.json").read_text())
    assert value["psFormat"] == "x"
    assert sorted(value["auths"]) == ["other", "r.example"]


def test_docker_hub_is_filed_as_docker_does(home: Path) -> None:
    credentials.store("docker.io", Credentials("me", "pw"))
    assert list(json.loads((home / ".docker/config.json").read_text())["auths"]) == ["https://index.docker.io/v1/"]
    assert credentials.find("docker.io", "library/debian") == Credentials("me", "pw")


def test_podmans_files_come_first_and_the_most_particular_entry_counts(home: Path) -> None:
    write(home / ".docker/config.json", {"auths": {"r.example": auth("docker", "1")}})
    assert credentials.find("r.example") == Credentials("docker", "1")
    write(home / ".config/containers/auth.json", {"auths": {"r.example": auth("config", "2")}})
    assert credentials.find("r.example") == Credentials("config", "2")
    entries = {"r.example": auth("host", "3"), "r.example/a/b": auth("repo", "4"), "r.example/a": auth("space", "5")}
    write(home / "run/containers/auth.json", {"auths": entries})
    assert credentials.find("r.example", "x") == Credentials("host", "3")
    assert credentials.find("r.example", "a/c") == Credentials("space", "5")
    assert credentials.find("r.example", "a/b") == Credentials("repo", "4")


def test_an_identity_token_is_read(home: Path) -> None:
    write(home / ".docker/config.json", {"auths": {"r.example": {"identitytoken": "t"} | auth("<token>", "")}})
    found = credentials.find("r.example")
    assert found is not None
    assert found.identity_token == "t"


@pytest.mark.parametrize("config", [{"credsStore": "test"}, {"credHelpers": {"r.example": "test"}}])
def test_a_helper_keeps_the_secret(home: Path, config: dict[str, object]) -> None:
    write(home / ".docker/config.json", config)
    assert credentials.find("r.example") is None
    assert credentials.store("r.example", Credentials("me", "pw")) == "docker-credential-test"
    assert "pw" not in (home / ".docker/config.json").read_text()
    assert credentials.find("r.example") == Credentials("me", "pw")
    assert "docker-credential-test" in credentials.erase("r.example")
    assert credentials.find("r.example") is None
    credentials.store("r.example", Credentials(identity_token="tok"))
    assert credentials.find("r.example") == Credentials(identity_token="tok")


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("{", Refused),
        ("[]", Refused),
        ('{"auths": {"r.example": {"auth": "%%%"}}}', Refused),
        ('{"auths": {"r.example": {"auth": 5}}}', Refused),
        ('{"credsStore": "../../bin/sh"}', Refused),
    ],
)
def test_a_bad_file_is_said_to_be_bad(home: Path, text: str, failure: type[Exception]) -> None:
    (home / ".docker").mkdir()
    (home / ".docker/config.json").write_text(text)
    with pytest.raises(failure):
        credentials.find("r.example")


@pytest.mark.parametrize(
    ("helper", "why"),
    [
        ("", "there is no such program"),
        ("echo 'pass not initialized: exit status 1'; exit 1", "pass not initialized"),
        ("exit 3", "it ended with 3"),
        ("echo hello", "its answer is malformed"),
        ("echo null", "its answer is malformed"),
        ("echo 'credentials not found in native keychain'; exit 1", None),
        ("""echo '{"ServerURL": "", "Username": "", "Secret": ""}'""", None),
    ],
)
def test_a_helper_that_cannot_help_is_passed_over_with_one_warning(home: Path, helper: str, why: str | None) -> None:
    if helper:
        (home / "bin/docker-credential-odd").write_text(f"#!/bin/sh\n{helper}\n")
        (home / "bin/docker-credential-odd").chmod(0o755)
    write(home / ".docker/config.json", {"credsStore": "odd", "auths": {"r.example": auth("me", "pw")}})
    warnings: list[str] = []
    assert credentials.find("other.example", "a/b/c", warn=warnings.append) is None
    assert credentials.find("r.example", "a/b/c", warn=warnings.append) == Credentials("me", "pw")
    assert len(warnings) == (0 if why is None else 2)
    assert all(f"docker-credential-odd: {why}" in warning for warning in warnings)


def test_logout_deletes_other_credentials_if_the_helper_is_missing(home: Path) -> None:
    write(home / ".docker/config.json", {"credsStore": "missing", "auths": {"r.example": auth("me", "pw")}})
    with pytest.raises(AuthError, match="no such program"):
        credentials.erase("r.example")
    assert json.loads((home / ".docker/config.json").read_text())["auths"] == {}


@pytest.mark.parametrize(
    ("key", "registry", "repository", "fits"),
    [
        ("https://r.example/path", "r.example", "", True),
        ("https://r.example/path", "r.example", "other/repo", True),
        ("http://r.example:5000/v2/", "r.example:5000", "a", True),
        ("https://r.example:5000", "r.example", "", False),
        ("r.example/path", "r.example", "path/x", True),
        ("r.example/path", "r.example", "other", False),
        ("r.example/path", "r.example", "pathological", False),
        ("https://r.example.evil/", "r.example", "", False),
        ("https://index.docker.io/v1/", "docker.io", "library/x", True),
        ("https://registry-1.docker.io/v2/", "docker.io", "library/x", True),
    ],
)
def test_the_keys_of_a_file_are_read_as_docker_and_podman_do(
    home: Path, key: str, registry: str, repository: str, fits: bool
) -> None:
    write(home / ".docker/config.json", {"auths": {key: auth("me", "pw")}})
    assert (credentials.find(registry, repository) == Credentials("me", "pw")) is fits


def test_an_entry_may_be_broken_into_lines(home: Path) -> None:
    text = base64.encodebytes(b"me:" + b"x" * 100).decode()
    assert text.count("\n") == 2
    write(home / ".docker/config.json", {"auths": {"r.example": {"auth": text.replace("\n", "\r\n")}}})
    assert credentials.find("r.example") == Credentials("me", "x" * 100)


def test_no_password_is_printed() -> None:
    assert "pw" not in repr(Credentials("me", "pw", "token"))
    assert "token" not in repr(Credentials("me", "pw", "token")).replace("identity_token", "")


def test_registries_conf_names_mirrors_and_blocks(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "r.conf").write_text(
        """
        [[registry]]
        prefix = "docker.io"
        location = "docker.io"
        [[registry.mirror]]
        location = "mirror.example/hub"
        [[registry.mirror]]
        location = "127.0.0.1:5000"
        insecure = true
        [[registry]]
        prefix = "docker.io/library/secret"
        blocked = true
        [[registry]]
        prefix = "old.example"
        location = "new.example/moved"
        insecure = true
        [[registry]]
        prefix = "*.sub.example"
        blocked = true
        """
    )
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(home / "r.conf"))

    def asked(text: str, wishes: Wishes | None = None, *, to_push: bool = False) -> list[tuple[str, str, bool]]:
        found = endpoints.endpoints(reference.parse(text), wishes or Wishes(), to_push=to_push)
        return [(one.host, one.repository, one.insecure) for one in found]

    hub = ("registry-1.docker.io", "library/debian", False)
    mirrors = [("mirror.example", "hub/library/debian", False), ("127.0.0.1:5000", "library/debian", True)]
    assert asked("debian") == [*mirrors, hub]
    assert asked("debian", to_push=True) == [hub]
    assert asked("debian", Wishes(mirrors=("mine.example",)))[0] == ("mine.example", "library/debian", False)
    assert asked("old.example/a/b:1") == [("new.example", "moved/a/b", True)]
    assert asked("old.example/a/b:1", Wishes(tls_verify=True)) == [("new.example", "moved/a/b", False)]
    assert asked("oldish.example.com/x") == [("oldish.example.com", "x", False)]
    for blocked in ("docker.io/library/secret:1", "deep.sub.example/x"):
        with pytest.raises(Refused, match="blocks"):
            asked(blocked)
    (home / "r.conf").write_text("[[registry")
    with pytest.raises(Refused):
        asked("debian")


@pytest.mark.parametrize(
    ("host", "is_it"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.3.2.1:80", True),
        ("[::1]:5000", True),
        ("10.0.0.1", False),
        ("x.example:5000", False),
        ("x.localhost:5000", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
    ],
)
def test_this_machine_is_known(host: str, is_it: bool) -> None:
    assert endpoints.is_loopback(host) is is_it

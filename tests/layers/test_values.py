"""References, digests, manifests, configurations, platforms, challenges, noted owners: text in, values out."""

from __future__ import annotations

import json
import stat
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layers import challenge, config, manifest, owners, reference
from layers import digest as digests
from layers.errors import LayerError, Malformed, NotFound, Refused
from layers.instructions import with_change
from layers.manifest import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Platform

SHA = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("debian", "docker.io/library/debian:latest", "debian:latest"),
        ("debian:12", "docker.io/library/debian:12", "debian:12"),
        ("user/name", "docker.io/user/name:latest", "user/name:latest"),
        ("docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("index.docker.io/user/x:1", "docker.io/user/x:1", "user/x:1"),
        ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x:latest"),
        ("127.0.0.1:5000/a/b/c:v1.0_x-y", "127.0.0.1:5000/a/b/c:v1.0_x-y", "127.0.0.1:5000/a/b/c:v1.0_x-y"),
        ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
        ("quay.io/a__b/c-d.e:T", "quay.io/a__b/c-d.e:T", "quay.io/a__b/c-d.e:T"),
        (f"debian@{SHA}", f"docker.io/library/debian@{SHA}", f"debian@{SHA}"),
        (f"r.example/x:1@{SHA}", f"r.example/x:1@{SHA}", f"r.example/x:1@{SHA}"),
        ("HOST/x", "HOST/x:latest", "HOST/x:latest"),
    ],
)
def test_a_reference_is_completed_as_docker_does(text: str, full: str, familiar: str) -> None:
    parsed = reference.parse(text)
    assert str(parsed) == full
    assert parsed.familiar == familiar
    assert reference.parse(full) == parsed
    assert reference.parse(familiar) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "@", "/", "a/", "/a", "a//b", "UPPER", "a/B", "a b", "a:", "a:-x", "a:" + "x" * 129, "a@",
        "a@sha256:12", f"a@{SHA.upper()}", "a@md5:" + "a" * 32, "a:1:2", "a..b", "a._b", "-a", "a-", "x" * 256,
        "host:99999/x", "host:0/x", "a" * 64, "é", "a\n", "a:1\n", "http://x/y", "../x", "r.example/../x",
        "[::1/x", "a\0b", "\ud800",
    ],
)  # fmt: skip
def test_malformed_references_are_refused(text: str) -> None:
    with pytest.raises(Malformed) as refused:
        reference.parse(text)
    assert refused.value.exit_code == 2
    assert "\n" not in str(refused.value)


@given(st.text(max_size=60))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    try:
        parsed = reference.parse(text)
    except Malformed:
        return
    assert reference.parse(str(parsed)) == parsed


@pytest.mark.parametrize("text", ["", "x y", "/x", "host/path", "host:", "host:x", "a" * 300 + " "])
def test_malformed_registries_are_refused(text: str) -> None:
    with pytest.raises(Malformed):
        reference.check_registry(text)


def test_docker_hub_has_many_names() -> None:
    names = ["docker.io", "index.docker.io", "https://index.docker.io/v1/", "registry-1.docker.io"]
    assert {reference.check_registry(name) for name in names} == {"docker.io"}


@pytest.mark.parametrize(
    "bad", [None, 5, "", "sha256:", "sha256:" + "a" * 63, "sha256:" + "G" * 64, SHA + "\n", "x:" + "a" * 64]
)
def test_malformed_digests_are_refused(bad: object) -> None:
    with pytest.raises(Malformed):
        digests.parse(bad)


def test_a_chain_id_is_as_the_specification_says() -> None:
    a, b = digests.of(b"a"), digests.of(b"b")
    assert digests.chain(None, a) == a
    assert digests.chain(a, b) == digests.of(f"{a} {b}".encode())


def _descriptor(kind: str = OCI_CONFIG, **changes: Any) -> dict[str, Any]:
    return {"mediaType": kind, "digest": SHA, "size": 3} | changes


GOOD: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": OCI_MANIFEST,
    "config": _descriptor(),
    "layers": [_descriptor(OCI_LAYER + "+gzip")],
}


def test_a_manifest_is_read_and_written() -> None:
    parsed = manifest.parse(json.dumps(GOOD).encode())
    assert isinstance(parsed, manifest.Manifest)
    assert parsed.layers[0].compression == "gzip"
    assert manifest.parse(manifest.to_json(parsed)) == parsed
    plain = {key: value for key, value in GOOD.items() if key != "mediaType"}
    assert manifest.parse(json.dumps(plain).encode(), "application/json; charset=utf-8") == parsed


@pytest.mark.parametrize(
    "changes",
    [
        {"mediaType": "application/vnd.example"},
        {"mediaType": OCI_INDEX},
        {"mediaType": 5},
        {"schemaVersion": 1, "mediaType": None},
        {"schemaVersion": "2"},
        {"manifests": []},
        {"config": None},
        {"config": _descriptor(size=-1)},
        {"config": _descriptor(size=True)},
        {"config": _descriptor(size=2**63)},
        {"config": _descriptor(size="3")},
        {"config": _descriptor(digest="sha256:no")},
        {"config": _descriptor(annotations={"a": 1})},
        {"layers": {}},
        {"layers": [5]},
        {"layers": [_descriptor()] * 5000},
        {"annotations": []},
        {"subject": 1},
    ],
)
def test_a_malformed_manifest_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        manifest.parse(json.dumps(GOOD | changes).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"size":' + b"9" * 10_000 + b"}",
        b" " * (5 << 20),
    ],
)
def test_malformed_manifests_are_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        manifest.parse(data)


def test_a_manifest_must_be_of_the_type_it_was_sent_as() -> None:
    with pytest.raises(Refused, match="sent as"):
        manifest.parse(json.dumps(GOOD).encode(), OCI_INDEX)
    with pytest.raises(Refused, match="schema 1"):
        manifest.parse(b'{"schemaVersion": 1}', "application/vnd.docker.distribution.manifest.v1+prettyjws")


def _index(*platforms: str) -> manifest.Index:
    entries = []
    for number, text in enumerate(platforms):
        platform = Platform(*text.split("/"))
        digest = digests.of(str(number).encode())
        entries.append(manifest.Descriptor(OCI_MANIFEST, digest, number, platform=platform))
    return manifest.Index(OCI_INDEX, tuple(entries))


@pytest.mark.parametrize(
    ("offered", "wanted", "chosen"),
    [
        (["linux/amd64", "linux/arm64"], "linux/arm64", 1),
        (["linux/arm64/v8"], "arm64", 0),
        (["linux/arm64"], "linux/arm64/v8", 0),
        (["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"], "linux/arm/v7", 1),
        (["linux/arm/v5", "linux/arm/v6"], "linux/arm/v7", 1),
        (["linux/amd64/v3", "linux/amd64"], "x86_64", 1),
        (["windows/amd64", "linux/amd64"], "linux/amd64", 1),
        (["linux/386"], "i686", 0),
    ],
)
def test_the_right_platform_is_chosen(offered: list[str], wanted: str, chosen: int) -> None:
    index = _index(*offered)
    assert manifest.choose(index, manifest.parse_platform(wanted)) is index.manifests[chosen]


@pytest.mark.parametrize(
    ("offered", "wanted"), [(["linux/arm/v7"], "linux/arm/v6"), (["windows/amd64"], "amd64"), ([], "amd64")]
)
def test_another_platform_is_not_taken(offered: list[str], wanted: str) -> None:
    with pytest.raises(NotFound):
        manifest.choose(_index(*offered), manifest.parse_platform(wanted))


@pytest.mark.parametrize("text", ["", "/", "linux/", "linux/a/b/c", "linux /amd64"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        manifest.parse_platform(text)


def test_a_configuration_keeps_unknown_fields() -> None:
    value = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [SHA]},
        "config": {"Cmd": ["a"], "Healthcheck": {"Test": ["NONE"]}, "Volumes": {"/v": {}}},
        "docker_version": "1",
        "history": [{"created_by": "x", "empty_layer": True}],
    }
    parsed = config.parse(json.dumps(value).encode())
    assert config.parse(config.to_json(parsed)) == parsed
    assert json.loads(config.to_json(parsed)) == value


@pytest.mark.parametrize(
    "changes",
    [
        {"rootfs": None},
        {"rootfs": {"type": "x"}},
        {"config": {"Cmd": [1]}},
        {"config": {"Labels": {"a": 1}}},
        {"history": 1},
    ],
)
def test_a_malformed_configuration_is_refused(changes: dict[str, Any]) -> None:
    value = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}} | changes
    with pytest.raises(Refused):
        config.parse(json.dumps(value).encode())


def test_instructions_change_the_settings() -> None:
    settings = config.Settings(env=("A=1", "B=2"), working_dir="/x", exposed_ports=("1/tcp",))
    for instruction in (
        'CMD ["a", "b c"]', "ENTRYPOINT exec it", "ENV A=2 C='x y'", "ENV D some text", "EXPOSE 80 53/udp", "LABEL k=v",
        "VOLUME /data /more", 'VOLUME ["/third"]', "WORKDIR y", "USER 1:2", "STOPSIGNAL SIGINT",
    ):  # fmt: skip
        settings = with_change(settings, instruction)
    assert settings == config.Settings(
        "1:2", ("A=2", "B=2", "C=x y", "D=some text"), ("/bin/sh", "-c", "exec it"), ("a", "b c"), "/x/y",
        ("/data", "/more", "/third"), ("1/tcp", "80/tcp", "53/udp"), {"k": "v"}, "SIGINT",
    )  # fmt: skip


def test_instructions_for_builders_and_for_health() -> None:
    settings = config.Settings(others={"Domainname": "kept", "OnBuild": ["RUN first"]})
    for instruction in (
        "ONBUILD COPY . /app",
        "HEALTHCHECK NONE",
        "HEALTHCHECK --interval=1m30s --timeout=500ms --retries=2 CMD curl -f http://localhost/ || exit 1",
    ):
        settings = with_change(settings, instruction)
    assert settings.others == {
        "Domainname": "kept",
        "OnBuild": ["RUN first", "COPY . /app"],
        "Healthcheck": {
            "Test": ["CMD-SHELL", "curl -f http://localhost/ || exit 1"],
            "Interval": 90_000_000_000,
            "Timeout": 500_000_000,
            "Retries": 2,
        },
    }
    assert with_change(settings, 'HEALTHCHECK CMD ["a", "b"]').others["Healthcheck"] == {"Test": ["CMD", "a", "b"]}
    whole = config.ImageConfig(Platform("linux", "amd64"), (), settings)
    assert config.parse(config.to_json(whole)).settings == settings


@pytest.mark.parametrize(
    "instruction",
    ["", "RUN x", "FROM y", "ENV", "ENV =x", "ENV 'a", "LABEL a=1 b", "USER", "ONBUILD", "ONBUILD FROM x",
     "HEALTHCHECK", "HEALTHCHECK CMD", "HEALTHCHECK --when=1s CMD a", "HEALTHCHECK --interval=soon CMD a"],
)  # fmt: skip
def test_other_instructions_are_refused(instruction: str) -> None:
    with pytest.raises(Malformed):
        with_change(config.Settings(), instruction)


def test_challenges_are_read() -> None:
    header = 'Bearer realm="https://a/t?x=1,2",service="s\\"q",scope="repository:a/b:pull,push" , Basic realm="r"'
    assert challenge.parse([header]) == [
        ("bearer", {"realm": "https://a/t?x=1,2", "service": 's"q', "scope": "repository:a/b:pull,push"}),
        ("basic", {"realm": "r"}),
    ]
    assert challenge.parse(["Basic"]) == [("basic", {})]
    assert challenge.parse([""]) == []


@given(st.text(max_size=200))
def test_no_challenge_is_too_strange(text: str) -> None:
    for one in challenge.parse([text]):
        assert one.scheme


@pytest.mark.parametrize(
    "noted",
    [
        owners.Override(0, 0, 0o755, stat.S_IFDIR),
        owners.Override(1000, 2**32 - 2, 0o4755, stat.S_IFREG),
        owners.Override(0, 5, 0o620, stat.S_IFCHR, (5, 1)),
        owners.Override(0, 6, 0o660, stat.S_IFBLK, (8, 0)),
    ],
)
def test_noted_owners_come_back(noted: owners.Override) -> None:
    assert owners.read(owners.write(noted)) == noted


@pytest.mark.parametrize(
    "value", [b"", b"0:0", b"0:0:9", b"a:0:755", b"0:0:755:x", b"4294967295:0:755", b"0:0:755:char-1", b"0:0:377777"]
)
def test_malformed_stored_owners_are_ignored(value: bytes) -> None:
    assert owners.read(value) is None


def test_old_forms_of_stored_owners_are_read() -> None:
    assert owners.read(b"1:2:0755") == owners.Override(1, 2, 0o755)
    assert owners.read(b"3:-1:100755") == owners.Override(3, 65534, 0o755, stat.S_IFREG)  # fuse-overlayfs 1.10
    assert owners.read(b"0:6:0660:block8:0") == owners.Override(0, 6, 0o660, stat.S_IFBLK, (8, 0))  # 2.0


def test_errors_cannot_move_the_cursor() -> None:
    assert "\x1b" not in str(LayerError("x", "\x1b[2J", "a\nb"))
    assert "\n" not in str(LayerError("x", "\x1b[2J", "a\nb"))


_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
_PLACES = st.sampled_from(
    ["schemaVersion", "mediaType", "config", "config.size", "config.digest", "layers", "layers.0", "layers.0.size",
     "layers.0.mediaType", "layers.0.annotations", "annotations", "subject", "artifactType", "rootfs",
     "rootfs.diff_ids", "rootfs.diff_ids.0", "history", "history.0", "config.Env", "config.Cmd", "config.Labels",
     "config.Volumes", "architecture", "os"]
)  # fmt: skip


def _with(value: Any, place: str, thing: Any) -> Any:
    """`value` with something else at a place, whether that was there or not."""
    key, _, rest = place.partition(".")
    if isinstance(value, list):
        return [_with(value[0], rest, thing) if rest else thing, *value[1:]] if value else [thing]
    if not isinstance(value, dict):
        return thing
    return {**value, key: _with(value.get(key), rest, thing) if rest else thing}


@given(st.lists(st.tuples(_PLACES, _JSON), min_size=1, max_size=3))
def test_anything_in_any_place_is_read_or_refused(changes: list[tuple[str, Any]]) -> None:
    manifest_: Any = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": SHA, "size": 2},
        "layers": [{"mediaType": OCI_LAYER, "digest": SHA, "size": 3}],
    }
    config_: Any = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [SHA]}}
    for place, thing in changes:
        manifest_, config_ = _with(manifest_, place, thing), _with(config_, place, thing)
    try:
        manifest.to_json(manifest.parse(json.dumps(manifest_).encode()))
    except LayerError:
        pass
    try:
        config.to_json(config.parse(json.dumps(config_).encode()))
    except LayerError:
        pass

"""Builds and registries: steps of another machine are used (--cache-to, --cache-from), a registry that lies gives
nothing, and podman runs what was pushed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import trio

from layers import build_cache
from layers.build_records import Step, StepLayer
from layers.digest import Digest
from layers.errors import Refused
from layers.image import Remote
from layers.manifest import OCI_LAYER, Descriptor
from layers.progress import Silent
from layers.store import Store
from tests.build.conftest import BASE, Builder, made_builder
from tests.layers import registries
from tests.support import podmans, process
from tests.support.users import User

TEXT = """\
FROM tiny:1 AS made
ARG VERSION=1
RUN head -c 9 /dev/urandom > /made; chown 5:60 /made; touch /data/kept/deep/new; rm /data/file; ln /etc/motd /hard
FROM tiny:1
ENV A=b
WORKDIR /w
COPY one /
COPY --from=made /made /
"""


@pytest.fixture(scope="module")
def registry(run_dir: Path) -> Iterator[registries.Registry]:
    with registries.Registry(run_dir / "registry-build") as started:
        yield started


def _elsewhere(builder: Builder, scratch: Path, name: str) -> Builder:
    """The same user with a new store, which has the base."""
    there = Builder(builder.user, scratch / name, scratch)
    builder("save", "-o", scratch / f"{name}.tar", BASE)
    there("load", "-q", "-i", scratch / f"{name}.tar")
    return there


@pytest.mark.parametrize("builder", ["one-id"], indirect=True)
def test_steps_of_another_machine(builder: Builder, registry: registries.Registry, scratch: Path) -> None:
    name = f"{registry.host}/cache:{builder.root.name}"
    context = builder.context(TEXT, {"one": "1"})
    first = builder("build", "-t", "t:1", "--cache-to", f"type=registry,ref={name},mode=max", context)
    there = _elsewhere(builder, scratch, "there")
    done = there("build", "-t", "t:1", "--cache-from", name, context)
    assert done.stdout.count("--> Using cache") == done.stdout.count("STEP ") - 2, "all but the two FROM"
    assert done.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    assert there.sh("stat -c %u:%g /made; cat /one") == "5:60\n1"
    assert there.is_clean()
    text = TEXT.replace("A=b", "A=c")
    done = there("build", "-t", "t:2", "--cache-from", name, there.context(text, {"one": "1"}))
    assert done.stdout.count("--> Using cache") == 2, "the stage that is as before"


def test_caches_that_are_none(
    request: pytest.FixtureRequest,
    registry: registries.Registry,
    scratch: Path,
    stores: dict[str, Path],
    tiny_tar: Path,
    fuse_device: Path,
) -> None:
    """The build goes on without a cache that is missing, that is an image, or of which a layer is another one."""
    builder = made_builder(request, "root", stores, tiny_tar, scratch)
    context = builder.context("FROM tiny:1\nRUN echo honest > /said\nCOPY one /\n", {"one": "1"})
    builder("push", "-q", BASE, f"{registry.host}/image:1")
    first = builder("build", "--cache-to", f"{registry.host}/cache:1", context)
    store = Store(str(builder.root))

    base = Digest(builder.config(BASE)["rootfs"]["diff_ids"][0])
    lies: dict[str, Callable[[StepLayer], StepLayer | None]] = {
        "nowhere": lambda layer: layer._replace(diff_id=Digest("sha256:" + "0" * 64)),
        "base": lambda layer: layer._replace(diff_id=base),  # which every store has, unpacked
        "none": lambda layer: None,
    }
    steps = trio.run(build_cache.fetch_steps, store, f"{registry.host}/cache:1", Remote())
    for name, lie in lies.items():
        lied = {key: one._replace(layer=lie(one.layer)) for key, one in steps.items() if one.layer is not None}
        assert len(lied) == 2
        with store.adding():
            trio.run(build_cache.push, store, f"{registry.host}/{name}:1", lied, Remote(), Silent())
    there = _elsewhere(builder, scratch, "there")
    names = ["nowhere:1", "base:1", "none:1", "image:1", "nosuch:1"]
    words = [word for name in names for word in ("--cache-from", f"{registry.host}/{name}")]
    done = there("build", "-t", "t:1", *words, context)
    assert "--> Using cache" not in done.stdout
    told = done.stderr
    assert "nowhere:1 is not used any more" in told
    assert "base:1 is not used any more" in told
    assert f"the cache says {base}" in told
    assert "image:1 is not used" in told
    assert "it is no cache of unionfs build" in told
    assert "nosuch:1 is not used" in told
    assert there.sh("cat /said") == "honest\n"
    assert there.is_clean()
    assert first.returncode == 0
    failed = there("build", "--cache-to", f"{registry.host}/cache@sha256:{'0' * 64}", context, check=False)
    assert (failed.returncode, "sending the cache" in failed.stderr) == (125, True)


@pytest.mark.parametrize("builder", ["one-id"], indirect=True)
def test_podman_runs_what_was_pushed(
    builder: Builder, ordinary_user: User, registry: registries.Registry, run_dir: Path
) -> None:
    podmans.need_podman()
    builder.build(
        """
        FROM tiny:1
        RUN rm /data/file && ln /etc/motd /hard && chown 5:60 /hard && chmod 640 /hard
        COPY --chown=games:tty one /copied
        ENV A=b
        USER games
        WORKDIR /data
        CMD ["sh", "-c", "stat -c '%a %u:%g' /etc/motd /copied; ls; cat /copied; echo $A; id -u; pwd"]
        """,
        files={"one": "1\n"},
    )
    name = f"{registry.host}/built:1"
    builder("push", "-q", "t:1", name)
    process.run(["skopeo", "inspect", "--tls-verify=false", f"docker://{name}"], timeout_s=60)
    where = run_dir / "pb"  # podman wants its runroot short
    where.mkdir()
    with podmans.podman_store(ordinary_user, where, podmans.our_program(where, ordinary_user)) as podman:
        pulled = podman("pull", "-q", "--tls-verify=false", name)
        said = podman("run", "--rm", "--network=none", name)
    assert f"sha256:{pulled}" == builder.config()["manifest"]["config"]["digest"]
    assert said == "640 5:60\n644 5:5\ndir\ngone\nkept\nlink\nsymlink\n1\nb\n5\n/data"


_LAYER = Descriptor(OCI_LAYER, Digest("sha256:" + "1" * 64), 10)
_STEP = Step("a" * 64, "2026-01-01T00:00:00Z", StepLayer(_LAYER, Digest("sha256:" + "2" * 64), 100), {})


def _parsed(steps: Mapping[str, Step], layers: tuple[Descriptor, ...] = (_LAYER,)) -> dict[str, Step]:
    return build_cache.parse(build_cache.to_json(steps), layers, "cache:1")


def test_what_is_read_of_a_cache() -> None:
    noted = _STEP._replace(notes={"content": "c" * 64, "entries": 3, "other": "x"})
    assert _parsed({"b" * 64: noted}) == {"b" * 64: noted._replace(notes={"content": "c" * 64, "entries": 3})}
    lying = _STEP._replace(notes={"content": "rm -rf /\n", "entries": "many"})
    assert _parsed({"b" * 64: lying})["b" * 64].notes == {}


@pytest.mark.parametrize(
    "make",
    [
        lambda: _parsed({"../../x": _STEP}),
        lambda: _parsed({"b" * 64: _STEP._replace(id="x")}),
        lambda: _parsed({"b" * 64: _STEP._replace(created="yesterday\x1b[2J")}),
        lambda: _parsed({"b" * 64: _STEP}, ()),
        lambda: _parsed({"b" * 64: _STEP}, (_LAYER._replace(size=11),)),
        lambda: build_cache.parse(b'{"version": 2, "steps": []}', (), "cache:1"),
        lambda: build_cache.parse(b'{"version": 1, "steps": {"a": 1}}', (), "cache:1"),
        lambda: build_cache.parse(b'{"version": 1, "steps": [1]}', (), "cache:1"),
        lambda: build_cache.parse(b'{"version": 1, "steps": [{"key": "k", "step": {"version": 1}}]}', (), "cache:1"),
        lambda: build_cache.parse(b"no JSON", (), "cache:1"),
    ],
)
def test_malformed_caches_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(Refused):
        make()

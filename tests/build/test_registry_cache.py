"""--cache-to and --cache-from: another machine's steps are used, and a registry that lies gives nothing."""

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

TEXT = """\
FROM tiny:1 AS made
ARG VERSION=1
RUN head -c 9 /dev/urandom > /made; chown 5:60 /made
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
    context = builder.context("FROM tiny:1\nRUN echo honest > /said\n")
    builder("push", "-q", BASE, f"{registry.host}/image:1")
    first = builder("build", "--cache-to", f"{registry.host}/cache:1", context)
    store = Store(str(builder.root))

    def lie() -> None:
        steps = trio.run(build_cache.fetch_steps, store, f"{registry.host}/cache:1", Remote())
        ((key, step),) = [(key, step) for key, step in steps.items() if step.layer is not None]
        assert step.layer is not None
        lied = step._replace(layer=step.layer._replace(diff_id=Digest("sha256:" + "0" * 64)))
        with store.adding():
            trio.run(build_cache.push, store, f"{registry.host}/lie:1", {**steps, key: lied}, Remote(), Silent())

    lie()
    there = _elsewhere(builder, scratch, "there")
    names = ["lie:1", "image:1", "nosuch:1"]
    words = [word for name in names for word in ("--cache-from", f"{registry.host}/{name}")]
    done = there("build", "-t", "t:1", *words, context)
    assert "--> Using cache" not in done.stdout
    told = done.stderr
    assert "lie:1 is not used any more" in told
    assert "image:1 is not used" in told
    assert "it is no cache of unionfs build" in told
    assert "nosuch:1 is not used" in told
    assert there.sh("cat /said") == "honest\n"
    assert there.is_clean()
    assert first.returncode == 0
    failed = there("build", "--cache-to", f"{registry.host}/cache@sha256:{'0' * 64}", context, check=False)
    assert (failed.returncode, "sending the cache" in failed.stderr) == (125, True)


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

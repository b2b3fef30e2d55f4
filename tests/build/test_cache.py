"""Which steps are executed again: by content, as with BuildKit. Counts are those of steps that used the cache."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.build.conftest import BASE, Builder
from unionfs.build.digests import Digests
from unionfs.build.trees import TreeObject

TEXT = """\
FROM tiny:1 AS first
ARG VERSION=1
COPY one /
RUN cat /one > /two
ENV VERSION=$VERSION
RUN date +%N%s > /when 2>/dev/null; head -c 8 /dev/urandom > /random
FROM tiny:1
COPY --from=first /two /
WORKDIR /work
RUN cat /two
"""


def cached(done: str) -> int:
    return done.count("--> Using cache")


@pytest.mark.parametrize("builder", ["root", "one-id"], indirect=True)
def test_equal_builds_do_nothing_and_give_the_same_image(builder: Builder) -> None:
    build = builder
    context = build.context(TEXT, {"one": "1"})
    first = build("build", "-t", "t:1", context)
    assert cached(first.stdout) == 1, "ARG is nothing to be done"
    before = sorted(build.root.rglob("*"))
    again = build("build", "-t", "t:1", context)
    assert cached(again.stdout) == first.stdout.count("STEP") - 2  # all but the two FROM
    assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    assert [path for path in sorted(build.root.rglob("*")) if path not in before and "build" not in path.parts] == []
    other = build.context(TEXT, {"one": "1"})
    os.utime(other / "one", (1, 1))
    assert cached(build("build", other).stdout) == cached(again.stdout), "times and places do not count"
    assert build.is_clean()


def test_what_makes_a_difference(user_builder: Builder) -> None:
    """ARG counts in RUN and where its value goes. A stage that is done again does not matter to another one if what is
    copied of it is the same."""
    build = user_builder
    context = build.context(TEXT, {"one": "what makes a difference"})
    build("build", context)
    one, file = context / "one", context / "Containerfile"

    def content() -> None:
        one.write_text("other")

    def mode() -> None:
        one.chmod(0o600)

    def name() -> None:
        file.write_text(TEXT.replace("COPY one /", "COPY one /one"))

    def a_later_step() -> None:
        file.write_text(TEXT.replace("RUN cat /two\n", "RUN cat /two /work/../two\n"))

    def nothing() -> None:
        pass

    cases: list[tuple[Callable[[], None], tuple[str, ...], int]] = [
        (content, (), 1),
        (mode, (), 4),
        (name, (), 4),
        (nothing, ("--build-arg", "VERSION=2"), 5),
        (a_later_step, (), 7),
        (nothing, (), 8),
        (nothing, ("--no-cache",), 0),
    ]
    for change, flags, steps in cases:
        change()
        done = build("build", *flags, context)
        assert (change.__name__, flags, cached(done.stdout)) == (change.__name__, flags, steps)
        one.write_text("what makes a difference")
        one.chmod(0o644)
        file.write_text(TEXT)


def test_a_context_that_changes_during_a_step_is_not_cached(user_builder: Builder) -> None:
    build = user_builder
    context = build.context(
        "FROM tiny:1\nRUN --mount=type=bind,target=/c cat /c/one > /got; echo 2 > /host/one\n", {"one": "1"}
    )
    done = build("build", "-v", f"{context}:/host", context)
    assert "files of the context have changed during this step" in done.stderr
    (context / "one").write_text("1")
    assert cached(build("build", "-v", f"{context}:/host", context).stdout) == 0


def test_proxies_count_only_if_arg_declares_them(user_builder: Builder) -> None:
    for declared in ("", "ARG HTTP_PROXY\n"):
        text = f"FROM tiny:1\n{declared}RUN echo proxy $HTTP_PROXY\n"
        _, done = [user_builder.build(text, "--build-arg", f"HTTP_PROXY={value}") for value in ("one", "two")]
        assert ("proxy two\n" in done.stdout) == bool(declared)
        assert ("HTTP_PROXY=two" in user_builder.history()) == bool(declared)


def test_a_stage_done_again_with_the_same_result_leaves_what_follows_alone(user_builder: Builder) -> None:
    build = user_builder
    text = (
        "FROM tiny:1 AS a\nCOPY one /\nRUN cat /data/file > /made\nFROM tiny:1\nCOPY --from=a /made /\nRUN cat /made\n"
    )
    build("build", build.context(text, {"one": "1"}))
    done = build("build", build.context(text, {"one": "2"}))
    steps = [line.partition("] ")[2] for line in done.stdout.splitlines() if line.startswith("[2/2]")]
    assert steps[2].startswith("--> Using cache"), "the file that is copied is the same"
    assert steps[-1].startswith("--> Using cache")


def test_linked_copies_are_found_upon_other_parents(user_builder: Builder) -> None:
    build = user_builder
    build.build("FROM tiny:1\nRUN echo one\nCOPY --link one /here/\nRUN cat /here/one\n", files={"one": "linked"})
    done = build.build(
        "FROM tiny:1\nRUN echo two\nCOPY --link one /here/\nRUN cat /here/one\n", files={"one": "linked"}
    )
    lines = done.stdout.splitlines()
    assert lines[lines.index("STEP 3/4: COPY --link one /here/") + 1].startswith("--> Using cache")
    assert "linked" in done.stdout, "what follows is another step"


def test_secrets_and_the_place_of_caches_do_not_count(user_builder: Builder) -> None:
    build = user_builder
    context = build.context("FROM tiny:1\nRUN --mount=type=secret,id=s wc -c < /run/secrets/s\n")
    build("build", "--secret", "id=s,env=S", context, env={"S": "one"})
    done = build("build", "--secret", "id=s,env=S", context, env={"S": "another"})
    assert cached(done.stdout) == 1


def test_prune_forgets_what_no_image_has(user_builder: Builder) -> None:
    build = user_builder
    context = build.context("FROM tiny:1\nRUN --mount=type=cache,target=/c echo x > /c/x; touch /kept\n")
    build("build", "-t", "kept:1", context)
    build("build", "-t", "gone:1", build.context("FROM tiny:1\nRUN touch /gone\n"))
    build("rmi", "gone:1")
    assert cached(build.build("FROM tiny:1\nRUN touch /gone\n").stdout) == 1, "rmi leaves the cache alone"
    build("rmi", "t:1")
    told = json.loads(build("image", "prune", "--json").stdout)
    assert told["steps"] >= 1
    assert not (build.root / "build/mounts").exists()
    assert cached(build("build", context).stdout) == 1, "its layer is in kept:1"
    assert cached(build.build("FROM tiny:1\nRUN touch /gone\n").stdout) == 0
    assert build.is_clean()
    build("rmi", "kept:1")


def test_a_layer_that_is_gone_is_made_again(user_builder: Builder) -> None:
    build = user_builder
    text = "FROM tiny:1\nRUN echo unique-to-this-test > /x\n"
    build.build(text)
    digest = build.config()["manifest"]["layers"][-1]["digest"]
    (build.root / "images/blobs/sha256" / digest.partition(":")[2]).unlink()
    assert cached(build.build(text).stdout) == 0
    assert build.sh("cat /x") == "unique-to-this-test\n"


@pytest.mark.parametrize(
    ("builder", "flags"),
    [("root", ("--timestamp", "1000000000")), ("ordinary", ()), ("one-id", ())],
    indirect=["builder"],
)
def test_reproducible(builder: Builder, stores: dict[str, Path], flags: tuple[str, ...]) -> None:
    """Two builds that share nothing but their input give the same digests."""
    text = (
        "FROM tiny:1\nCOPY one /a/\nWORKDIR /w\nRUN echo x > f; mkdir d; rm /data/file; chmod 700 /data/dir\nENV A=b\n"
    )
    env = {} if flags else {"SOURCE_DATE_EPOCH": "1000000000"}
    found = []
    contexts = [builder.context(text, {"one": "1"}) for _ in range(2)]
    for context in contexts:
        builder("build", "--no-cache", "-t", "t:1", *flags, context, env=env)
        config = builder.config()
        assert config["created"] == "2001-09-09T01:46:40Z"
        found.append(builder("build", "-q", *flags, context, env=env).stdout)
    assert found[0] == found[1]
    if not flags:
        argument = builder("build", "-q", "--build-arg", "SOURCE_DATE_EPOCH=1000000000", contexts[1])
        assert (argument.stdout, argument.stderr) == (found[0], ""), "as with BuildKit, without ARG"
    newest = builder.sh("stat -c %Y /w/f /w/d /w /a").split()
    assert set(newest) == {"1000000000"}, "the directory of the store has the times of the blob"
    assert (BASE in text, stores != {}) == (True, True)


def test_digests_are_remembered_unless_a_file_has_just_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_text("1")
    opened = []

    def open_file() -> int:
        opened.append(path)
        return os.open(path, os.O_RDONLY)

    def look() -> TreeObject:
        st = path.stat()
        return TreeObject(
            (b"f",), 0o100000, 0, 0, 0, st.st_size, st.st_mtime_ns, st.st_ctime_ns, (st.st_dev, st.st_ino), 1
        )

    known = Digests()
    first = known.of((b"f",), look(), open_file)
    assert known.of((b"f",), look(), open_file) == first
    assert len(opened) == 2, "it is too new to be remembered"
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 3 * 10**9)
    for _ in range(3):
        assert known.of((b"f",), look(), open_file) == first
    assert len(opened) == 3
    again = Digests(known.record())
    assert again.of((b"f",), look(), open_file) == first
    assert len(opened) == 3
    path.write_text("2")
    assert again.of((b"f",), look(), open_file) != first
    assert Digests(b"not json").of((b"f",), look(), open_file) != first

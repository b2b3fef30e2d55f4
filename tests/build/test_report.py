"""Reports of a build's steps: --report, --html, and the line on a terminal."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

from tests.build.conftest import Builder

_TEXT = """\
FROM tiny:1
COPY big /big
RUN chown 5:60 /big
RUN mkdir -p /var/cache/apt && head -c 5000 /dev/zero > /var/cache/apt/pkg
RUN rm /big
"""


def test_what_makes_an_image_large(user_builder: Builder, scratch: Path) -> None:
    builder = user_builder
    context = builder.context(_TEXT, {"big": "x" * 4096})
    done = builder("build", "-t", "t:1", "--json", "--html", scratch / "page.html", context)
    copied, owned, cache, removed = json.loads(done.stdout)["steps"]
    assert (copied["added"], copied["files"], copied["hidden_later"]) == (4096, 1, 4096)
    assert (owned["copied_for_metadata"], owned["hidden_later"]) == (4096, 4096)
    assert "--chown" in " ".join(owned["hints"])
    assert (cache["added"], cache["hidden_later"]) == (5000, 0)
    assert "apt-get clean" in " ".join(cache["hints"])
    assert removed["hints"] == [
        "4096 bytes of earlier steps are removed, and travel with the image all the same: remove them there"
    ]
    assert "pkg" in (scratch / "page.html").read_text()
    table = builder("build", "--report", context).stdout
    assert "HIDDEN LATER" in table
    assert "step 3, RUN chown 5:60 /big: 4096 bytes" in table
    why = builder.user.run(["layers", "why", "--root", builder.root, "t:1", "/var/cache/apt/pkg"], timeout_s=60)
    assert "mkdir -p /var/cache/apt" in why.stdout


def test_an_image_built_on_a_stage(builder: Builder) -> None:
    """The steps of the stage that it begins with are steps of the image."""
    text = "FROM tiny:1 AS base\nCOPY big /big\nFROM tiny:1 AS other\nFROM base\nRUN chown 5:60 /big\nCMD true\n"
    context = builder.context(text, {"big": "x" * 4096})
    steps = json.loads(builder("build", "--json", context).stdout)["steps"]
    assert [(one["stage"], one["number"], one["text"].split()[0]) for one in steps] == [
        *((1, 2, "COPY"), (3, 2, "RUN"), (3, 3, "CMD"))
    ]
    assert [(one["added"], one["hidden_later"]) for one in steps] == [(4096, 4096), (4096, 0), (0, 0)]
    assert "step 3/2, RUN chown 5:60 /big: 4096 bytes" in builder("build", "--report", context).stdout


def test_on_a_terminal(user_builder: Builder, scratch: Path) -> None:
    """The step in work is on one line; what a command has printed is shown if it fails."""
    context = user_builder.context("FROM tiny:1\nRUN echo quiet\nRUN echo loud; exit 4\n")
    command = shlex.join([*user_builder.user.unionfs_cmd, "build", os.fspath(context)])
    argv = ["script", "-qec", f"stty cols 60; exec {command}", os.fspath(scratch / "typescript")]
    env = {"UNIONFS_ROOT": os.fspath(user_builder.root), "TERM": "xterm"}
    done = user_builder.user.run(argv, env=env, timeout_s=100, check=False)
    assert done.returncode == 4, done
    # Reading it as text has made a newline of each carriage return.
    assert "\n\x1b[K2/3 RUN echo quiet\n\x1b[K3/3 RUN echo loud; exit 4\n\x1b[Kloud\n" in done.stdout
    assert "\nquiet\n" not in done.stdout
    assert "it returned 4" in done.stdout

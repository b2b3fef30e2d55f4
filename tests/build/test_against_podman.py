"""The same Containerfiles built by podman and by us: configuration, history, number of layers, and every file.

As root, with podman's chroot isolation on its vfs storage, which works on every machine. Podman 4 knows no heredocs and
few of the newer flags, so these are in the other files.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from _pytest.mark import ParameterSet

from tests.build.conftest import Builder
from tests.support import process
from tests.support.users import User

_BASE: Final = "localhost/tiny:1"
_MADE_TO_MOUNT_ON: Final = ("etc/hosts", "etc/resolv.conf", "etc/hostname", "run", "proc", "sys", "dev")
_FILES: Final[Mapping[str, str]] = {
    "src/main.c": "int main(){}\n", "src/lib/a.h": "#pragma once\n", "src/lib/deep/b.h": "", "Makefile": "all:\n",
    "requirements.txt": "x==1\n", "setup.py": "pass\n", "run.sh!": "#!/bin/sh\necho run\n",
    "conf/app.conf": "port=80\n", "conf/extra.conf": "", "package.json": "{}", "static/index.html": "<p>",
    ".dockerignore": "*.tmp\nsecret\n",
    "x.tmp": "t", "secret": "s", "README.md": "# read me\n",
}  # fmt: skip

CASES: Final[Mapping[str, str]] = {
    "c": """
        FROM localhost/tiny:1 AS build
        WORKDIR /src
        COPY Makefile .
        COPY src/ src/
        RUN mkdir -p out && cat src/main.c src/lib/a.h > out/app && chmod 755 out/app
        FROM localhost/tiny:1
        COPY --from=build /src/out/app /usr/local/bin/app
        USER games
        CMD ["app"]
        """,
    "python": """
        ARG BASE=localhost/tiny:1
        FROM $BASE
        ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR="1"
        WORKDIR /app
        COPY requirements.txt ./
        RUN cat requirements.txt > installed
        COPY . .
        EXPOSE 8000
        ENTRYPOINT ["/app/run.sh"]
        CMD ["--port", "8000"]
        """,
    "node": """
        FROM localhost/tiny:1 AS deps
        COPY package.json /app/
        FROM deps
        WORKDIR /app
        COPY static static
        COPY conf/*.conf /etc/app/
        VOLUME /data/kept
        STOPSIGNAL SIGINT
        LABEL org.example.one=1 org.example.two="two words"
        CMD node server.js
        """,
    "users": """
        FROM localhost/tiny:1
        RUN echo 'app:x:1001:1001::/home/app:/bin/sh' >> /etc/passwd && echo 'app:x:1001:' >> /etc/group
        COPY --chown=app:app conf /home/app/conf
        COPY --chown=5:60 run.sh /home/app/
        RUN chown -R app:app /home/app && chmod 2750 /home/app
        USER app
        WORKDIR /home/app
        RUN id -u > uid
        """,
    "removed": """
        FROM localhost/tiny:1
        RUN rm -rf /data/kept && rm /data/file
        RUN mkdir /data/kept && echo new > /data/kept/new
        RUN ln -s /data/kept /lnk && ln /data/kept/new /data/hard && chmod 600 /data/hard
        RUN rm -r /data/dir && echo file > /data/dir
        """,
    "into links": """
        FROM localhost/tiny:1
        RUN mkdir /real && ln -s /real /link && ln -s file /data/to-file
        COPY README.md /link/
        COPY conf /link/conf
        COPY README.md /data/to-file
        """,
    "arguments": """
        FROM localhost/tiny:1
        ARG VERSION=1.2.3
        ARG EMPTY
        ENV MAJOR=${VERSION%%.*} FALLBACK=${EMPTY:-fallback} SET=${VERSION:+set}
        RUN echo "$VERSION $EMPTY" > /version
        LABEL version=$VERSION
        WORKDIR /opt/$VERSION
        COPY README.md $VERSION.md
        """.replace("${VERSION%%.*}", "1"),
    "directories": """
        FROM localhost/tiny:1
        COPY src /a
        COPY src /b/
        COPY src/lib /data
        COPY conf static /c/
        COPY ./ /d/
        ADD conf /e/
        """,
    "shell": """
        FROM localhost/tiny:1
        RUN echo one > /one
        ENTRYPOINT exec /bin/cat
        CMD /one
        """,
    "on build": """
        FROM localhost/tiny:1
        ONBUILD COPY README.md /triggered
        ONBUILD RUN echo ran > /ran
        MAINTAINER me
        """,
    "scratch": """
        FROM localhost/tiny:1 AS a
        RUN mkdir /out && echo a > /out/a && chown 7:8 /out/a
        FROM scratch
        COPY --from=a /out /
        COPY run.sh /bin/
        ENV A=b
        """,
    "archive": """
        FROM localhost/tiny:1
        ADD app.tar.gz /srv/
        COPY app.tar.gz /packed/
        """,
}


@pytest.fixture(scope="module")
def podman(run_dir: Path, root_user: User, tiny_tar: Path) -> Iterator[list[str]]:
    """What stands before podman's verbs."""
    for program in ("podman", "skopeo"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian packages podman, skopeo)")
    where = run_dir / "podman-build"
    command = ["podman", "--root", f"{where}/root", "--runroot", f"{run_dir}/pr", "--storage-driver", "vfs"]
    root_user.run([*command, "import", "-q", tiny_tar, _BASE], timeout_s=100)
    yield command
    root_user.run([*command, "rmi", "-af"], timeout_s=100, check=False)
    shutil.rmtree(where, ignore_errors=True)


def _case(name: str) -> ParameterSet:
    differs = pytest.mark.xfail(reason=f"podman: {_DIFFERENT[name]}", strict=True) if name in _DIFFERENT else ()
    return pytest.param(name, marks=differs)


_DIFFERENT = {
    "into links": "a file replaces a link that leads to no directory; unionfs build writes to where the link leads",
    "on build": "images of the OCI format lose their triggers; unionfs build keeps OnBuild, as Docker has it",
}


@pytest.mark.parametrize("builder", ["root"], indirect=True)
@pytest.mark.parametrize("name", [_case(name) for name in CASES])
def test_same_image(builder: Builder, podman: list[str], tiny_tar: Path, name: str) -> None:
    files: dict[str, str | bytes] = {**_FILES, "app.tar.gz": _archive()}
    context = builder.context(CASES[name], files)
    builder("import", "-q", tiny_tar, _BASE)
    builder("build", "-t", "localhost/ours:1", context)
    builder.user.run(
        [*podman, "build", "-q", "--isolation", "chroot", "-t", "localhost/theirs:1", context], timeout_s=100
    )
    archives = builder.where / "ours.tar", builder.where / "theirs.tar"
    builder("save", "-o", archives[0], "localhost/ours:1")
    builder.user.run(
        [*podman, "save", "-q", "--format", "oci-archive", "-o", archives[1], "localhost/theirs:1"], timeout_s=100
    )
    (ours, our_tree), (theirs, their_tree) = map(_read, archives)
    assert _settings(ours) == _settings(theirs)
    assert _history(ours) == _history(theirs)
    assert {path: found for path, found in our_tree.items() if found != their_tree.get(path)} == {}
    assert their_tree.keys() - our_tree.keys() == set()
    loaded = builder.user.run([*podman, "load", "-q", "-i", archives[0]], timeout_s=100).stdout
    assert "localhost/ours:1" in loaded
    process.run(["skopeo", "inspect", f"oci-archive:{archives[0]}"], timeout_s=60)


def _archive() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for path, uid in (("app/bin", 0), ("app/owned", 5)):
            entry = tarfile.TarInfo(path)
            entry.size, entry.uid, entry.mode, entry.mtime = 3, uid, 0o750, 1_000_000_000
            tar.addfile(entry, io.BytesIO(b"abc"))
    return data.getvalue()


def _read(archive: Path) -> tuple[dict[str, Any], dict[str, tuple[object, ...]]]:
    """The configuration of an OCI archive, and the files that its layers come to."""
    with tarfile.open(archive) as outer:

        def blob(digest: str) -> bytes:
            found = outer.extractfile(f"blobs/{digest.replace(':', '/')}")
            assert found is not None
            return found.read()

        index = outer.extractfile("index.json")
        assert index is not None
        manifest = json.loads(blob(json.load(index)["manifests"][0]["digest"]))
        tree: dict[str, tuple[object, ...]] = {}
        for layer in manifest["layers"]:
            _apply(blob(layer["digest"]), tree)
        return json.loads(blob(manifest["config"]["digest"])), {
            path: found for path, found in tree.items() if path not in _MADE_TO_MOUNT_ON
        }


def _apply(layer: bytes, tree: dict[str, tuple[object, ...]]) -> None:
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        members = tar.getmembers()
        for member in members:
            parent, name = os.path.split(member.name.strip("./") if member.name != "." else "")
            if name.startswith(".wh."):
                hidden = os.path.join(parent, name[4:])
                for path in [one for one in tree if one == hidden or one.startswith(hidden + "/")]:
                    del tree[path]
                if name == ".wh..wh..opq":
                    for path in [one for one in tree if one.startswith(parent + "/")]:
                        del tree[path]
        for member in members:
            path = member.name.removeprefix("./").strip("/")
            if os.path.basename(path).startswith(".wh.") or path in ("", "."):
                continue
            data = tar.extractfile(member) if member.isfile() else None
            if member.islnk():
                tree[path] = tree[member.linkname.removeprefix("./").strip("/")]
                continue
            if not member.isdir():
                for below in [one for one in tree if one.startswith(path + "/")]:
                    del tree[below]
            content = hashlib.sha256(data.read()).hexdigest() if data is not None else member.linkname
            mode = 0o777 if member.issym() else member.mode & 0o7777  # podman writes the type there, too
            tree[path] = (member.type if not member.isfile() else b"0", mode, member.uid, member.gid, content)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in config.get("config", {}).items() if value}
    labels = {key: value for key, value in found.pop("Labels", {}).items() if key != "io.buildah.version"}
    for key in ("Env", "Volumes", "ExposedPorts"):
        if key in found:
            found[key] = sorted(found[key])
    return {**found, "labels": labels, "author": config.get("author", "")}


def _history(config: Mapping[str, Any]) -> list[str]:
    """Without what is copied, of which each tool has a digest of its own, and without what the base has."""
    steps = [str(one.get("created_by", "")).strip() for one in config["history"]]
    own = [step for step in steps if step != "unionfs import" and not re.search(r"ADD file:[0-9a-f]+ in /$", step)]
    named = [re.sub(r"(?:file|dir|multi):[0-9a-f]+", "WHAT", step) for step in own]
    return [step for step in named if "#(nop) ARG" not in step]  # podman names some of them more than once, or not

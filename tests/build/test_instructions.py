"""Each instruction: the configuration, the layer and the directory that it makes, for each kind of user."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from tests.build.conftest import Builder, Entry
from tests.support import process

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def test_settings(user_builder: Builder) -> None:
    build = user_builder
    build.build(
        r"""
        ARG GLOBAL=global
        FROM tiny:1
        MAINTAINER me <me@example.org>
        ENV A=a B="b c" C=$A
        ENV A=new D=${A}x E=${NO:-else}
        LABEL one=1 "two words"='x $A' three="$A"
        ARG GLOBAL
        ARG GIVEN=default
        ARG DERIVED=$GLOBAL-$GIVEN
        ENV FROM_ARG=$DERIVED
        EXPOSE 80 1000-1002/udp
        VOLUME /v /w
        VOLUME ["/x y"]
        USER games
        STOPSIGNAL SIGINT
        WORKDIR /srv
        WORKDIR a/../$A
        HEALTHCHECK --interval=90s --retries=2 CMD test -e /ok
        SHELL ["/bin/sh", "-xc"]
        ENTRYPOINT exec server $A
        CMD ["--verbose", "$A"]
        ONBUILD RUN echo triggered
        """,
        "--build-arg", "GIVEN=given", "--label", "last=label",
    )  # fmt: skip
    config = build.config()
    settings = config["config"]
    assert config["author"] == "me <me@example.org>"
    assert settings["Env"] == [_PATH, "A=new", "B=b c", "C=", "D=ax", "E=else", "FROM_ARG=global-given"]
    assert settings["Labels"] == {"one": "1", "two words": "x $A", "three": "new", "last": "label"}
    assert list(settings["ExposedPorts"]) == ["80/tcp", "1000/udp", "1001/udp", "1002/udp"]
    assert list(settings["Volumes"]) == ["/v", "/w", "/x y"]
    assert settings["User"] == "games"
    assert settings["StopSignal"] == "SIGINT"
    assert settings["WorkingDir"] == "/srv/new"
    assert settings["Healthcheck"] == {"Test": ["CMD-SHELL", "test -e /ok"], "Interval": 90 * 10**9, "Retries": 2}
    assert settings["Shell"] == ["/bin/sh", "-xc"]
    assert settings["Entrypoint"] == ["/bin/sh", "-xc", "exec server $A"]
    assert settings["Cmd"] == ["--verbose", "$A"]
    assert settings["OnBuild"] == ["RUN echo triggered"]
    steps = [one.get("created_by") for one in config["history"]][1:]
    assert steps[1] == '/bin/sh -c #(nop) ENV A=a B="b c" C=$A'
    assert sum(not one.get("empty_layer") for one in config["history"]) == len(config["rootfs"]["diff_ids"])


def test_an_entrypoint_drops_the_command_of_the_base_only(user_builder: Builder) -> None:
    build = user_builder
    build.build('FROM tiny:1 AS a\nCMD ["x"]\nFROM a\nENTRYPOINT ["y"]\n')
    assert build.config()["config"]["Entrypoint"] == ["y"]
    assert "Cmd" not in build.config()["config"]
    build.build('FROM tiny:1\nCMD ["x"]\nENTRYPOINT ["y"]\n')
    assert build.config()["config"]["Cmd"] == ["x"]


def test_a_stage_inherits_the_arguments_of_its_parent(user_builder: Builder) -> None:
    text = "FROM tiny:1 AS a\nARG NAME=joe\nFROM a\nENV SAID=$NAME\nFROM tiny:1 AS other\nENV SAID=$NAME\n"
    user_builder.build(text, "--target", "1")
    assert user_builder.config()["config"]["Env"] == [_PATH, "SAID=joe"]
    user_builder.build(text)
    assert user_builder.config()["config"]["Env"] == [_PATH, "SAID="]


def test_run(builder: Builder) -> None:
    build = builder
    done = build.build(
        """
        FROM tiny:1
        ARG WHO=world
        ENV WORD=hello
        RUN echo "$WORD $WHO" > /said; echo told; echo wrong >&2
        RUN ["/bin/sh", "-c", "echo $0 json >> /said", "the"]
        RUN <<EOF
        echo heredoc $WORD >> /said
        EOF
        RUN <<SCRIPT
        #!/bin/cat
        never executed by a shell
        SCRIPT
        RUN cat /dev/fd/3 - 3<<A <<B >> /said
        first
        A
        second
        B
        USER games
        WORKDIR /tmp/work
        RUN id -u > who; pwd >> who; echo $HOME >> who
        USER root
        RUN rm -r /data/kept && chown games:games /data/file && chmod 4755 /data/file
        """
    )
    assert "told\n" in done.stdout
    assert "never executed by a shell" in done.stdout
    assert "wrong\n" in done.stderr
    assert build.sh("cat /said") == "hello world\nthe json\nheredoc hello\nfirst\nsecond\n"
    assert build.sh("cat /tmp/work/who") == "5\n/tmp/work\n/usr/games\n"
    layer = build.layers()[-1]
    assert layer["/data/.wh.kept"].kind == "file"
    assert layer["/data/file"] == Entry("file", 0o4755, (5, 60), "a file\n")
    assert layer["/data/link"].content == "data/file"
    work = build.layers()[-3]["/tmp/work"]
    assert (work.kind, work.owner) == ("dir", (5, 60))
    assert build.is_clean()


def test_copy(builder: Builder) -> None:
    build = builder
    build.build(
        """
        FROM tiny:1
        COPY one two* /new/
        COPY one /data/
        COPY one /data/file
        COPY --chown=games:tty --chmod=751 run /opt/deep/down
        COPY --chown=7 tree /tree
        COPY tree/ /data/kept/
        WORKDIR /w
        COPY one .
        COPY one renamed
        COPY --exclude=*.c --exclude=sub tree /some
        COPY <<EOF <<'RAW' /texts/
        value $HOSTNAME_UNSET${NOTHING:-here}
        EOF
        raw $VALUE
        RAW
        COPY ["with space", "/json dir/"]
        """,
        files={
            "one": "1", "two1": "21", "two2": "22", "run!": "#!/bin/sh\n", "tree/a.c": "a", "tree/sub/b": "b",
            "tree/empty/": "", "with space": "spaced",
        },
    )  # fmt: skip
    one, into, over, owned, tree, merged, _, here, renamed, some, texts, spaced = build.layers()
    assert {path: found.content for path, found in one.items() if found.kind == "file"} == {
        "/new/one": "1", "/new/two1": "21", "/new/two2": "22"
    }  # fmt: skip
    assert one["/new"] == Entry("dir", 0o755, (0, 0))
    assert one["/new/one"].owner == (0, 0)
    assert (into["/data/one"].content, over["/data/file"].content) == ("1", "1")
    assert owned["/opt/deep/down"] == Entry("file", 0o751, (5, 5), "#!/bin/sh\n")
    assert owned["/opt/deep"].owner == (5, 5)
    assert {path: found.owner for path, found in tree.items() if path.startswith("/tree")} == dict.fromkeys(
        ("/tree", "/tree/a.c", "/tree/sub", "/tree/sub/b", "/tree/empty"), (7, 7)
    )
    assert merged["/data/kept/a.c"].content == "a"
    assert here["/w/one"].content == renamed["/w/renamed"].content == "1"
    assert set(some) == {"/", "/some", "/some/empty"}
    assert texts["/texts/EOF"].content == "value here\n"
    assert texts["/texts/RAW"] == Entry("file", 0o644, (0, 0), "raw $VALUE\n")
    assert spaced["/json dir/with space"].content == "spaced"
    assert build.sh("stat -c '%a %u:%g' /opt/deep/down; cat /data/kept/deep/down") == "751 5:5\nkept\n"
    assert build.is_clean()


def test_copy_from_stages_and_images(builder: Builder) -> None:
    build = builder
    build.build(
        """
        FROM tiny:1 AS made
        RUN mkdir -p /out/sub && echo made > /out/file && chown 5:60 /out/file && chmod 2750 /out/file && \
            ln /out/file /out/sub/same && ln -s /out/file /out/link && rm /data/dir/old
        FROM made AS unused
        RUN false
        FROM scratch
        COPY --from=made /out /copy
        COPY --from=0 /out/link /data/kept/ /followed/
        COPY --from=tiny:1 /etc/motd /
        COPY --from=made --chown=9:9 /out/f* /globbed/
        """,
    )
    copied, followed, motd, globbed = build.layers()
    assert copied["/copy/file"] == Entry("file", 0o2750, (5, 60), "made\n")
    assert copied["/copy/link"] == Entry("link", 0o777, (0, 0), "/out/file")
    assert copied["/copy/sub/same"].content == "copy/file"
    assert followed["/followed/link"].content == "made\n"
    assert followed["/followed/deep/down"].content == "kept\n"
    assert "/followed/dir" not in followed
    assert motd["/motd"].content == "welcome\n"
    assert globbed["/globbed/file"].owner == (9, 9)
    assert build.is_clean()


def _tar(**files: tuple[str, int, int]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for name, (content, uid, mode) in files.items():
            entry = tarfile.TarInfo(name.replace("__", "/"))
            entry.uid, entry.mode, entry.size = uid, mode, len(content)
            tar.addfile(entry, io.BytesIO(content.encode()))
    return data.getvalue()


def test_add_unpacks_archives(builder: Builder) -> None:
    build = builder
    build.build(
        """
        FROM tiny:1
        ADD archive.tar.gz plain.gz /into/
        ADD --unpack=false archive.tar.gz /packed/
        ADD --chown=3:4 archive.tar.gz /owned
        """,
        files={"archive.tar.gz": _tar(a=("a", 5, 0o640), d__b=("b", 0, 0o755)), "plain.gz": b"\x1f\x8b no tar"},
    )
    into, packed, owned = build.layers()
    assert into["/into/a"] == Entry("file", 0o640, (5, 0), "a")
    assert into["/into/d/b"].content == "b"
    assert into["/into/plain.gz"].kind == "file"
    assert set(packed) == {"/", "/packed", "/packed/archive.tar.gz"}
    assert owned["/owned/a"].owner == (3, 4)
    assert build.is_clean()


def test_mounts_of_run(builder: Builder) -> None:
    build = builder
    text = """
        FROM tiny:1 AS other
        RUN mkdir /lib2 && echo of the stage > /lib2/file && ln -s /etc/passwd /lib2/out
        FROM tiny:1
        RUN --mount=type=bind,target=/ctx --mount=type=bind,from=other,source=/lib2,target=/other,rw \
            cat /ctx/one /other/file > /got; ls /ctx >> /got; echo thrown > /other/away; \
            ! touch /ctx/x 2>/dev/null
        RUN --mount=type=cache,target=/cache,mode=700 echo again >> /cache/log; cat /cache/log > /cached
        RUN --mount=type=tmpfs,target=/mem,size=1m echo x > /mem/x
        RUN --mount=type=secret,id=token,mode=440 --mount=type=secret,id=token,env=TOKEN \
            grep -q '^s3.ret$' /run/secrets/token && test "$TOKEN" = "$(cat /run/secrets/token)"
        RUN --network=none test "$(ls /sys/class/net)" = lo
        RUN ls -a /ctx /other /mem /run/secrets /lib2 > /after 2>&1 || true
    """
    files = {"one": "1\n", "left": "out", ".dockerignore": "left\nContainerfile\n", "token.txt": "s3cret"}
    context = build.context(text, files)
    build("build", "-t", "t:1", "--secret", f"id=token,src={context}/token.txt", context)
    assert build.sh("cat /got") == "1\nof the stage\none\ntoken.txt\n"
    assert build.sh("cat /cached") == "again\n"
    after = build.sh("cat /after")
    assert not any(name in after for name in ("one", "away", "token"))
    for layer in build.layers():
        assert not any(path.startswith(("/ctx", "/other", "/cache/", "/mem", "/run/secrets")) for path in layer)
    assert _holders(build, "s3cret") == []
    build.build("FROM tiny:1\nRUN --mount=type=cache,target=/cache,mode=700 cat /cache/log > /kept\n")
    assert build.sh("cat /kept") == "again\n"
    assert build.is_clean()


def _holders(build: Builder, text: str) -> list[str]:
    """The files of the store in which a text is."""
    return process.run(["grep", "-rlF", text, build.root], check=False, timeout_s=100).stdout.splitlines()


def test_triggers_of_the_base(user_builder: Builder) -> None:
    build = user_builder
    build("build", "-t", "parent:1", build.context("FROM tiny:1\nONBUILD COPY app /app\nONBUILD RUN cat /app > /ran\n"))
    done = build.build("FROM parent:1\nENV X=y\n", files={"app": "the app\n"})
    assert "STEP 2/4: COPY app /app" in done.stdout
    assert build.sh("cat /ran") == "the app\n"
    assert "OnBuild" not in build.config()["config"]
    assert "ONBUILD of parent:1:1: app: not in the context" in build.refused("FROM parent:1\n")
    build("build", "-t", "parent:1", build.context("FROM tiny:1\nONBUILD COPY --from=made /a /b\n"))
    refused = build.refused("FROM tiny:1 AS made\nFROM parent:1\n")
    assert "ONBUILD of parent:1:1: from=made stands in a trigger of ONBUILD" in refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("COPY missing /", "Containerfile:2: missing: not in the context"),
        ("COPY ../../etc/passwd /", "etc/passwd: not in the context"),
        ("COPY out /x", "out: not in the context"),
        ("COPY *.none /", "nothing in the context matches *.none"),
        ("COPY one two /file", "must be a directory"),
        ("COPY one /data/file/", "it is not a directory"),
        ("COPY one /data/dir/old/below", "it is not a directory"),
        ("COPY tree /etc/motd", "it is not a directory"),
        ("COPY hidden /", "excluded by the ignore file"),
        ("COPY --from=nosuch:1 /a /b", "no such image: nosuch:1"),
        ("COPY --from=0 /a /b", "the stage itself"),
        ("COPY --chown=nosuch one /", "no such user"),
        ("COPY --chmod=rwx one /", "expected an octal mode"),
        ("COPY [ /", "missing in the pattern"),
        ("COPY one /.wh.x", "a layer cannot hold this name"),
        ("ADD https://example.org/x.git /x", "git repository is not supported"),
        ("EXPOSE http", "http is no port"),
        ("USER $NONE", "the user is empty"),
        ("RUN --mount=type=secret,id=s,required x", "the secret s is required"),
        ("RUN --mount=type=bind,source=nosuch,target=/x true", "nosuch"),
        ("RUN --network=some x", "expected default, none or host"),
        ('ENV A="${B:?must be set}"', "B: must be set"),
        ("RUN []", "has no command"),
    ],
)
def test_what_cannot_be_built(user_builder: Builder, text: str, said: str) -> None:
    files = {"one": "1", "two": "2", "tree/x": "x", "hidden": "h", ".containerignore": "hidden\n"}
    context = user_builder.context(f"FROM tiny:1\n{text}\n", files)
    (context / "out").symlink_to("/etc/passwd")
    done = user_builder("build", "--pull", "never", context, check=False)
    assert done.returncode == 125
    assert said in done.stderr
    assert "Containerfile:2" in done.stderr
    assert not list((user_builder.root / "aside").iterdir())


def test_a_command_that_fails(user_builder: Builder) -> None:
    build = user_builder
    done = build.build("FROM tiny:1\nRUN echo before\nRUN echo lost; exit 3\nRUN echo never\n", check=False)
    assert done.returncode == 3
    assert "Containerfile:3: RUN echo lost; exit 3: it returned 3" in done.stderr
    assert "lost" in done.stdout
    assert "never" not in done.stdout.replace("echo never", "")
    done = build.build("FROM tiny:1\nRUN nosuchcommand\n", check=False)
    assert done.returncode == 127
    done = build.build('FROM tiny:1\nRUN ["nosuch"]\n', check=False)
    assert (done.returncode, "no such command" in done.stderr) == (127, True)
    again = build.build("FROM tiny:1\nRUN echo before\n")
    assert "--> Using cache" in again.stdout
    assert build.is_clean()


@pytest.mark.parametrize("builder", ["ordinary", "one-id"], indirect=True)
def test_a_container_of_what_failed(builder: Builder) -> None:
    build = builder
    text = (
        "FROM tiny:1\nRUN touch /earlier\nRUN --mount=type=secret,id=s,env=TOKEN test $TOKEN && touch /left; exit 3\n"
    )
    flags = ("--keep-failed", "look", "--secret", "id=s,env=S")
    done = build.build(text, *flags, env={"S": "h1dden"}, check=False)
    assert done.returncode == 3
    assert "unionfs diff look" in done.stderr
    assert _holders(build, "h1dden") == []
    again = build.build(text, *flags, env={"S": "h1dden"}, check=False)
    assert (again.returncode, "warning: no container is kept" in again.stderr) == (3, True)
    assert build("diff", "look").stdout == "A /left\n"
    build("start", "look")
    assert build("exec", "look", "ls", "/left", "/earlier").stdout == "/earlier\n/left\n"
    build("rm", "-f", "look")
    assert build.is_clean()


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_layers_of_each_compression(user_builder: Builder, compression: str) -> None:
    user_builder.build("FROM tiny:1\nRUN touch /a\nCOPY one /\n", "--compression", compression, files={"one": "1"})
    types = {one["mediaType"].rpartition("tar")[2] for one in user_builder.config()["manifest"]["layers"][1:]}
    assert types == {{"gzip": "+gzip", "zstd": "+zstd", "none": ""}[compression]}
    assert user_builder.sh("ls /a /one") == "/a\n/one\n"


@pytest.mark.parametrize("builder", ["ordinary", "one-id"], indirect=True)
def test_squash(builder: Builder) -> None:
    text = "FROM tiny:1\nRUN touch /a /b\nRUN rm /a /data/file\nCOPY one /\nENV X=y\n"
    builder.build(text, "--squash", files={"one": "1"})
    (layer,) = builder.layers()
    assert {"/b", "/one", "/data/.wh.file"} <= set(layer)
    assert "/a" not in layer
    assert builder.config()["config"]["Env"] == [_PATH, "X=y"]
    assert builder.sh("ls /b /one") == "/b\n/one\n"
    assert builder.is_clean()


def test_stage_trees_are_not_followed_out(user_builder: Builder, scratch: Path) -> None:
    """Links of a stage lead to the stage's own files."""
    build = user_builder
    secret = scratch / "secret"
    secret.write_text("of the machine")
    secret.chmod(0o644)
    text = f"""
        FROM tiny:1 AS bad
        RUN mkdir -p {scratch} && echo of the image > {scratch}/secret && ln -s {scratch}/secret /link && ln -s / /root2
        FROM tiny:1
        COPY --from=bad /link /copied
        COPY --from=bad /root2/link /copied2
        RUN --mount=type=bind,from=bad,source=/link,target=/mounted cat /mounted > /copied3
    """
    build.build(text)
    assert build.sh("cat /copied /copied2 /copied3") == "of the image\n" * 3
    assert os.path.exists(secret)

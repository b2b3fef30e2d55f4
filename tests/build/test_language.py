"""The language of Containerfiles: as Docker's own parser reads it, and as the Dockerfile reference says.

docker_parser.json has texts with what Docker's parser (PyPI: dockerfile 3.4.0) makes of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unionfs.build import flags, instructions, lines, stages
from unionfs.build.instructions import Instruction
from unionfs.build.mount_flags import MountFlag, parse_mount
from unionfs.build.source import ContainerfileError
from unionfs.build.words import WordError, replace, split_words

_KNOWN = json.loads((Path(__file__).parent / "docker_parser.json").read_text())


def parsed(text: str) -> list[Instruction]:
    return instructions.parse(lines.split(text, "Containerfile"))


@pytest.mark.parametrize("known", _KNOWN, ids=range(len(_KNOWN)))
def test_as_dockers_parser_reads_it(known: dict[str, Any]) -> None:
    document = lines.split(known["text"], "f")
    assert [(one.keyword, one.place.line, one.last) for one in document.lines] == [
        (one["keyword"], one["first"], one["last"]) for one in known["parsed"]
    ]
    for line, wanted in zip(document.lines, known["parsed"], strict=True):
        if line.keyword == "ONBUILD":
            made = instructions.trigger(instructions.parse_line(line, document.escape), document.escape)
            assert made.keyword == wanted["sub"].upper()
            continue  # docker's parser says nothing of the flags and heredocs of what it triggers
        assert [one.name for one in line.heredocs] == [name for name, _ in wanted["heredocs"]]
        for one, (_, content) in zip(line.heredocs, wanted["heredocs"], strict=True):
            assert one.text == "".join(
                part.lstrip("\t") if "<<-" in line.rest else part for part in content.splitlines(True)
            )
        if line.keyword == "HEALTHCHECK":
            continue  # docker's parser takes its flags apart later
        made = instructions.parse_line(line, document.escape)
        keyword = made.keyword
        assert [f"--{name}={value}" for name, value in made.flags.pairs] == wanted["flags"]
        if wanted["json"]:
            assert list(made.words or ()) == wanted["value"]
        elif keyword in ("RUN", "CMD", "ENTRYPOINT", "USER", "WORKDIR", "MAINTAINER", "STOPSIGNAL"):
            assert made.words is None
            assert [made.rest] == wanted["value"]
        elif keyword in ("ENV", "LABEL"):
            pairs = [word for name, value in instructions.pairs(made, document.escape) for word in (name, value)]
            assert pairs == [word for word in wanted["value"] if word != "="]
        elif made.words is None:
            assert made.rest.split() == wanted["value"]


# -- words -----------------------------------------------------------------------------------------------------------

VARIABLES = {"foo": "bar", "empty": "", "path": "/a/b.tar.gz", "two": "x  y"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$foo", "bar"),
        ("${foo}x", "barx"),
        ("$foo_x", ""),
        ("$nosuch.", "."),
        (r"\$foo", "$foo"),
        (r"\${foo}", "${foo}"),
        ("'$foo'", "$foo"),
        ('"$foo"', "bar"),
        (r'"\$foo"', "$foo"),
        (r'"a\b\"c\\"', r'a\b"c' + "\\"),
        (r"a\ b", "a b"),
        ("$", "$"),
        ("a$ b", "a$ b"),
        ("$1x", "x"),
        ("${foo:-x}", "bar"),
        ("${empty:-x}", "x"),
        ("${empty-x}", ""),
        ("${nosuch-x}", "x"),
        ("${nosuch:-$foo}", "bar"),
        ("${nosuch:-${empty:-deep}}", "deep"),
        ("${foo:+x}", "x"),
        ("${empty:+x}", ""),
        ("${empty+x}", "x"),
        ("${nosuch:+x}", ""),
        ("${foo:?needed}", "bar"),
        ("${path#/*/}", "b.tar.gz"),
        ("${path##*/}", "b.tar.gz"),
        ("${path%.*}", "/a/b.tar"),
        ("${path%%.*}", "/a/b"),
        ("${path/b/c}", "/a/c.tar.gz"),
        ("${path//a/x}", "/x/b.txr.gz"),
        (r"${path/\/a/}", "/b.tar.gz"),
        ("${nosuch:-'a b'}", "a b"),
        ("${nosuch:-}", ""),
    ],
)
def test_variables(text: str, value: str) -> None:
    assert replace(text, VARIABLES) == value


def test_words_are_split_after_variables_and_not_within_quotes() -> None:
    assert split_words('a "b c" $two "$two" d\\ e', VARIABLES) == ["a", "b c", "x", "y", "x  y", "d e"]
    assert split_words("a`b `$foo", VARIABLES, "`") == ["ab", "$foo"]
    assert replace(r"C:\$foo", VARIABLES, "`") == r"C:\bar"
    assert replace("a 'b' \\$foo $foo", VARIABLES, quotes=False) == "a 'b' $foo bar"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("${foo", "the modifier"),
        ("${}", "NAME"),
        ("${:x}", "NAME"),
        ("${foo:x}", "modifier"),
        ("${foo:-x", "a } is missing"),
        ("'a", "single quote"),
        ('"a', "double quote"),
        ("${nosuch:?gone fishing}", "nosuch: gone fishing"),
        ("${nosuch?}", "nosuch: is not set"),
        ("${empty:?}", "empty: is empty"),
    ],
)
def test_words_that_cannot_be_read(text: str, why: str) -> None:
    with pytest.raises(WordError, match=why):
        replace(text, VARIABLES)


# -- errors -----------------------------------------------------------------------------------------------------------


def _needs_of(text: str) -> list[set[int]]:
    plan = stages.read(text, "dir/Containerfile", {}, {})
    return [plan.needs(stage) for stage in plan.stages]


@pytest.mark.parametrize(
    ("text", "line", "why", "hint"),
    [
        ("FROM a\nRUNN x\n", 2, "there is no instruction RUNN", "RUN"),
        ("FROM a\n\n\nxyzzy\n", 4, "there is no instruction XYZZY", "ADD, ARG"),
        ("RUN x\n", 1, "there is no FROM", "FROM IMAGE"),
        ("RUN x\nFROM a\n", 1, "RUN stands before the first FROM", "only ARG"),
        ("", 1, "no instructions", "FROM IMAGE"),
        ("# only\n", 1, "no instructions", "FROM IMAGE"),
        ("FROM a b c d\n", 1, "other arguments", "FROM IMAGE [AS NAME]"),
        ("FROM a AS 1x\n", 1, "cannot be the name", "letter"),
        ("FROM a AS b\nFROM c AS b\n", 2, "another stage b", ""),
        ("FROM $x\n", 1, "the name of the base is empty", "ARG"),
        ("FROM a\nCOPY x\n", 2, "needs a source and a destination", ""),
        ("FROM a\nCOPY --form=b x /\n", 2, "COPY has no flag --form", "--from"),
        ("FROM a\nUSER --x=1 y\n", 2, "USER has no flag --x", "takes no flags"),
        ("FROM a\nCOPY --chown x /\n", 2, "--chown has no value", "--chown=VALUE"),
        ("FROM a\nCOPY --link=maybe x /\n", 2, "--link=maybe", "--link=true"),
        ("FROM a\nCOPY --from=a --from=b x /\n", 2, "given twice", ""),
        ("FROM a\nENV x\n", 2, "ENV x has no value", "NAME=VALUE"),
        ("FROM a\nENV a=b c\n", 2, "c has no =", "NAME=VALUE"),
        ("FROM a\nENV =b\n", 2, "a name is empty", ""),
        ("FROM a\nENV a='b\n", 2, "a single quote is not closed", ""),
        ("FROM a\nARG 1=2\n", 2, "cannot be the name of an argument", "ARG NAME"),
        ("FROM a\nSHELL sh\n", 2, "JSON form only", "SHELL ["),
        ('FROM a\nCMD ["a", 1]\n', 2, "no string", '["WORD"'),
        ("FROM a\nRUN <<EOF\nx\n", 2, "the heredoc EOF has no end", "a line with EOF alone"),
        ("FROM a\nONBUILD FROM b\n", 2, "ONBUILD cannot be followed by FROM", ""),
        ("FROM a\nONBUILD NONSENSE\n", 2, "no instruction NONSENSE", ""),
        ("FROM a\nHEALTHCHECK curl\n", 2, "has no command", "CMD COMMAND"),
        ("FROM a\nRUN --mount=type=cache x\n", 2, "it has no target", ""),
        ("FROM a\nUSER\n", 2, "USER has no arguments", "USER[:GROUP]"),
        ("# escape=x\nFROM a\n", 1, "the escape character is 'x'", "escape"),
        ("# escape=`\n# escape=`\nFROM a\n", 2, "given twice", ""),
        ("FROM a\nCOPY --from=b x /\nFROM c AS b\n", 2, "comes later", ""),
        ("FROM a AS b\nCOPY --from=b x /\n", 2, "the stage itself", ""),
    ],
)
def test_errors_name_the_line_and_what_was_expected(text: str, line: int, why: str, hint: str) -> None:
    with pytest.raises(ContainerfileError) as caught:
        _needs_of(text)
    assert caught.value.place == ("dir/Containerfile", line)
    assert str(caught.value).startswith(f"dir/Containerfile:{line}: ")
    assert why in str(caught.value)
    assert hint in caught.value.hint


def test_an_empty_line_within_a_continued_one_is_warned_of() -> None:
    (warning,) = lines.split("FROM a\nRUN a \\\n\n b\n", "f").warnings
    assert warning.startswith("f:2: ")


def test_heredocs_expand_unless_a_part_of_the_name_is_quoted() -> None:
    for word, expand in (("<<A", True), ("<<'A'", False), ('<<"A"', False), ("<<\\A", False), ("<<-A", True)):
        assert lines.announces(word) == ("A", word.startswith("<<-"), expand)
    assert lines.announces("x<<A") is None
    assert lines.announces("<<") is None


# -- stages -----------------------------------------------------------------------------------------------------------

STAGES = """\
ARG BASE=debian
ARG TAG=12
ARG REF=${BASE}:${TAG}
FROM $REF AS Build
ARG TAG
RUN make
FROM build AS test
RUN test
FROM scratch AS docs
COPY --from=2 /x /y
FROM scratch
COPY --from=BUILD /a /b
RUN --mount=from=other:1,target=/o --mount=type=bind,from=test,target=/t x
"""


def test_stages() -> None:
    text = STAGES.replace("COPY --from=2", "COPY --from=1")
    plan = stages.read(text, "f", {"TAG": "13"}, {"TARGETARCH": "amd64"})
    assert [(stage.name, stage.base, stage.parent) for stage in plan.stages] == [
        ("build", "debian:13", None), ("test", "build", 0), ("docs", "scratch", None), ("", "scratch", None)
    ]  # fmt: skip
    assert plan.arguments == {"TARGETARCH": "amd64", "BASE": "debian", "TAG": "13", "REF": "debian:13"}
    assert plan.declared == {"BASE", "TAG", "REF"}
    assert plan.target("") is plan.stages[3]
    assert plan.target("TEST") is plan.stages[1]
    assert plan.target("2") is plan.stages[2]
    assert [stage.number for stage in plan.needed(plan.stages[3])] == [0, 1, 3]
    assert [stage.number for stage in plan.needed(plan.stages[2])] == [0, 1, 2]
    assert [name for name, _, _ in stages.images(plan.needed(plan.stages[3]), plan)] == ["debian:13", "other:1"]
    with pytest.raises(Exception, match="there is no stage nosuch") as caught:
        plan.target("nosuch")
    assert "build, test, docs, 3" in caught.value.hint  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("target=/x", MountFlag("bind", "/x", read_only=True, id="/x")),
        ("type=bind,src=a,dst=/x,rw", MountFlag("bind", "/x", "a", read_only=False, id="/x")),
        ("type=bind,target=/x,ro=false", MountFlag("bind", "/x", read_only=False, id="/x")),
        ("type=cache,target=/c,id=me,sharing=locked,mode=0700,uid=5",
         MountFlag("cache", "/c", id="me", sharing="locked", mode=0o700, uid=5)),
        ("type=cache,target=/c,readonly", MountFlag("cache", "/c", read_only=True, id="/c")),
        ("type=tmpfs,target=/t,size=64m", MountFlag("tmpfs", "/t", id="/t", size="64m")),
        ("type=secret,id=s", MountFlag("secret", "/run/secrets/s", id="s")),
        ("type=secret,id=s,env=S,required", MountFlag("secret", "", id="s", env="S", required=True)),
        ("type=secret,dst=/a/b", MountFlag("secret", "/a/b", id="b")),
    ],
)  # fmt: skip
def test_mounts(text: str, wanted: MountFlag) -> None:
    assert parse_mount(text) == wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("type=ssh", "there is no type ssh"), ("type=cache", "no target"), ("type=secret", "no id"),
        ("target=/x,nosuch=1", "has no nosuch"), ("target=/x,dst=/y", "twice"),
        ("type=cache,target=/x,sharing=some", "sharing=some"), ("type=tmpfs,target=/x,size=lots", "size=lots"),
        ("type=cache,target=/x,mode=rwx", "octal"), ("type=cache,target=/x,ro=perhaps", "true or false"),
    ],
)  # fmt: skip
def test_mounts_that_make_no_sense(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_mount(text)


def test_flags_end_where_arguments_begin() -> None:
    (_, made) = parsed("FROM a\nRUN --network=none -- --mount=x\n")
    assert (made.flags, made.rest) == (flags.Flags((("network", "none"),)), "--mount=x")
    (_, made) = parsed('FROM a\nCOPY --chown="a b" --exclude=*.o --exclude=x y /\n')
    assert (made.flags.value("chown"), made.flags.all("exclude"), made.rest) == ("a b", ["*.o", "x"], "y /")

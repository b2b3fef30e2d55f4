"""The help of every verb shows an example, and its parser takes it."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator

import pytest

from unionfs.cli import parsers


def _verbs() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for command in (parsers.of_unionfs(), parsers.of_layers()):
        for name, verb in command.verbs.items():
            for below, inner in {"": verb, **verb.verbs}.items():
                if inner.parser is not None:
                    yield f"{command.name} {name} {below}".strip(), inner.parser


VERBS = dict(_verbs())


@pytest.mark.parametrize("name", VERBS)
def test_an_example_of_the_help_is_a_command_line_of_the_verb(name: str) -> None:
    parser = VERBS[name]
    _, found, examples = parser.format_help().partition("example")
    assert found, f"the help of {name} has no example"
    lines = re.findall(rf"^ +(?:.* \| )?({re.escape(parser.prog)}(?: .*)?)$", examples, re.MULTILINE)
    assert lines, f"no example of {name} begins with {parser.prog}"
    for line in lines:
        words = shlex.split(re.split(r" [|>&;<] ?|\s#|\$\(|\s{2,}", line)[0])
        parser.parse_args(words[len(parser.prog.split()) :])

"""Flags: defaults from the environment, no abbreviations, and how a senseless command line is refused."""

from __future__ import annotations

import pytest

from unionfs.cli.arguments import Parser, variable_of
from unionfs.cli.errors import USAGE, CommandError


def _parser() -> Parser:
    parser = Parser("verb", "Does something.")
    parser.add_argument("path", nargs="?")
    parser.add_argument("--lower", action="append")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--no-wait", dest="wait", action="store_false")
    parser.add_argument("--kind", choices=("a", "b"), default="a")
    parser.add_argument("--timeout", type=float, default=1.5)
    parser.add_argument("--needed-flag", required=True)
    return parser


_NEEDED = {"UNIONFS_NEEDED_FLAG": "there"}


def test_variables_are_named_after_flags() -> None:
    assert variable_of("--read-only") == "UNIONFS_READ_ONLY"


def test_defaults_without_variables() -> None:
    values = _parser().parse(["--needed-flag", "x"], {})
    assert (values.lower, values.read_only, values.wait, values.kind, values.timeout) == (None, False, True, "a", 1.5)


def test_variables_set_defaults() -> None:
    environment = {"UNIONFS_LOWER": "x:y", "UNIONFS_READ_ONLY": "1", "UNIONFS_NO_WAIT": "yes", "UNIONFS_KIND": "b"}
    values = _parser().parse([], {**environment, **_NEEDED, "UNIONFS_TIMEOUT": "2"})
    assert (values.lower, values.read_only, values.wait, values.kind) == (["x", "y"], True, False, "b")
    assert (values.timeout, values.needed_flag) == (2.0, "there")


def test_the_command_line_overrules_variables() -> None:
    environment = {**_NEEDED, "UNIONFS_LOWER": "x:y", "UNIONFS_KIND": "b"}
    values = _parser().parse(["--lower", "z", "--lower", "w", "--kind", "a"], environment)
    assert (values.lower, values.kind) == (["z", "w"], "a")


@pytest.mark.parametrize("word", ["0", "no", "false", "off", "", "OFF"])
def test_a_switch_can_be_set_to_off(word: str) -> None:
    assert _parser().parse([], {**_NEEDED, "UNIONFS_READ_ONLY": word}).read_only is False


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("UNIONFS_READ_ONLY", "maybe", "expected one of 1, yes, true, on, 0, no, false, off"),
        ("UNIONFS_KIND", "c", "invalid choice: 'c'"),
        ("UNIONFS_TIMEOUT", "soon", "invalid float value: 'soon'"),
    ],
)
def test_a_senseless_variable_is_refused_by_name(name: str, value: str, why: str) -> None:
    with pytest.raises(CommandError, match=f"verb: {name}={value}: {why}") as refused:
        _parser().parse([], {**_NEEDED, name: value})
    assert refused.value.status == USAGE


@pytest.mark.parametrize("argv", [["--read"], ["--kind", "c"], ["a", "b"], ["--lower"], ["--unknown"]])
def test_a_senseless_command_line_is_refused(argv: list[str]) -> None:
    with pytest.raises(CommandError) as refused:
        _parser().parse(argv, _NEEDED)
    assert refused.value.status == USAGE
    assert refused.value.hint == "see unionfs verb --help"


def test_a_required_flag_is_missed() -> None:
    with pytest.raises(CommandError, match="required: --needed-flag"):
        _parser().parse([], {})

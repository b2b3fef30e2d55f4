"""Man pages and completion: each verb and flag is there, and the shells and groff understand what is made of them."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from layers.cli import command as layers_command
from tests.support import process
from tests.support.users import CHECKOUT
from unionfs.cli import completion, entry, man, parsers

COMMANDS = ("unionfs", "layers")


@pytest.fixture(scope="module")
def commands() -> dict[str, parsers.Command]:
    """Both commands with the parsers of all their verbs."""
    return {"unionfs": parsers.of_unionfs(), "layers": parsers.of_layers()}


@pytest.fixture(scope="module")
def scripts(commands: dict[str, parsers.Command], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with NAME.SHELL for both commands and all shells."""
    directory = tmp_path_factory.mktemp("completion")
    for name, command in commands.items():
        for shell in completion.SHELLS:
            (directory / f"{name}.{shell}").write_text(completion.script(command, shell))
    return directory


def _leaves(name: str, verbs: dict[str, parsers.Verb]) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for verb, found in verbs.items():
        if found.parser is None:
            yield from _leaves(f"{name} {verb}", found.verbs)
        else:
            yield f"{name} {verb}", found.parser


def test_every_verb_has_its_parser_and_none_has_run(commands: dict[str, parsers.Command]) -> None:
    assert list(commands["unionfs"].verbs) == list(entry.VERBS)
    assert list(commands["layers"].verbs) == list(layers_command.VERBS)
    for name, parser in _leaves("unionfs", commands["unionfs"].verbs):
        if not name.startswith(("unionfs container", "unionfs image ")):
            assert parser.prog == name
    assert "parse_args" not in vars(parsers)  # argparse has its own back
    assert argparse.ArgumentParser.parse_args.__module__ == "argparse"


def _complete_in_bash(scripts: Path, line: str) -> list[str]:
    """What bash offers for the last word of `line`, as it calls the function that the script registers."""
    name = line.partition(" ")[0]
    code = """
        source "$1"; shift
        read -r _ _ _ _ function _ <<<"$(complete -p "$1")"
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
        "$function" "$1" "${@: -1}" "${@: -2:1}"
        printf '%s\\n' "${COMPREPLY[@]}"
        """
    done = process.run(["bash", "--norc", "-c", code, "bash", scripts / f"{name}.bash", *line.split(" ")], cwd=scripts)
    assert done.stderr == ""
    return sorted(filter(None, done.stdout.splitlines()))


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("unionfs mou", ["mount"]),
        ("unionfs st", ["start", "stats", "status", "stop"]),
        ("unionfs mount --wr", ["--writeback"]),
        ("unionfs mount --whiteout ", ["aufs", "fuse-overlayfs", "overlay"]),
        ("unionfs mount --lower a --durability vol", ["volatile"]),
        ("unionfs container l", ["list", "logs", "ls"]),
        ("unionfs container ls --no-t", ["--no-trunc"]),
        ("unionfs volume cr", ["create"]),
        ("unionfs completion ", ["bash", "fish", "zsh"]),
        ("layers ins", ["inspect"]),
        ("layers gc --dr", ["--dry-run"]),
    ],
)
def test_bash_completes(scripts: Path, line: str, offered: list[str]) -> None:
    assert _complete_in_bash(scripts, line) == offered


def test_bash_completes_directories_where_one_is_wanted(scripts: Path) -> None:
    (scripts / "here").mkdir(exist_ok=True)
    (scripts / "here.txt").touch()
    assert _complete_in_bash(scripts, "unionfs mount --upper he") == ["here"]
    assert _complete_in_bash(scripts, "unionfs mount --log he") == ["here", "here.txt"]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_shell_can_read_its_script(scripts: Path, shell: str, name: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert process.run([shell, "-n", scripts / f"{name}.{shell}"]).stderr == ""


def test_fish_completes(scripts: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    code = 'source unionfs.fish; complete -C "unionfs mount --whi"; complete -C "unionfs mount --whiteout a"'
    done = process.run(["fish", "--no-config", "-c", code], cwd=scripts)
    assert [line.partition("\t")[0] for line in done.stdout.splitlines()] == ["--whiteout", "aufs"]


def test_zsh_completes(scripts: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    code = """
        autoload -U compinit; compinit -D -u
        eval "$(<unionfs.zsh)"
        print -r -- $_comps[unionfs]
        """
    assert process.run(["zsh", "-f", "-c", code], cwd=scripts).stdout.strip() == "_shtab_unionfs"


@pytest.mark.parametrize("name", COMMANDS)
def test_groff_renders_the_page_without_a_warning(
    commands: dict[str, parsers.Command], tmp_path: Path, name: str
) -> None:
    (tmp_path / "page").write_text(man.page(commands[name]))
    assert process.run(["groff", "-man", "-Tutf8", "-ww", "-z", tmp_path / "page"]).stderr == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_verb_and_flag_is_in_the_page(commands: dict[str, parsers.Command], tmp_path: Path, name: str) -> None:
    (tmp_path / "page").write_text(man.page(commands[name]))
    shown = process.run(["groff", "-man", "-Tascii", "-P-cbou", "-rLL=200n", tmp_path / "page"]).stdout
    sections = dict(re.findall(rf"^   ({name} \S+)$\n((?:(?!   \S).*\n)*)", shown, re.MULTILINE))
    assert list(sections) == [f"{name} {verb}" for verb in commands[name].verbs]
    missing = [
        (verb, flag)
        for verb, parser in _leaves(name, commands[name].verbs)
        if verb in sections
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction) and action.help != argparse.SUPPRESS
        for flag in action.option_strings
        if not re.search(rf"^ {{7}}(-.*, )?{re.escape(flag)}\b", sections[verb], re.MULTILINE)
    ]
    assert missing == []


def test_the_page_does_not_depend_on_the_terminal(
    commands: dict[str, parsers.Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = man.page(commands["unionfs"])
    monkeypatch.setenv("COLUMNS", "40")
    assert man.page(parsers.of_unionfs()) == before


@pytest.mark.parametrize("argv", [["man"], ["man", "layers"], ["completion", "bash"]])
def test_the_verbs_print_them(argv: list[str]) -> None:
    done = process.run([sys.executable, "-m", "unionfs", *argv], cwd=CHECKOUT, env={**os.environ, "PYTHONPATH": "."})
    name = "layers" if "layers" in argv else "unionfs"
    wanted = f'.TH {name.upper()} 1 "" "{name}" "User Commands"\n' if argv[0] == "man" else "_shtab_unionfs()"
    assert wanted in done.stdout
    assert done.stderr == ""

"""The project's rules that a machine can check: imports between modules, content of `__init__.py`, sizes of files.

ALLOWED is the picture of the imports in ARCHITECTURE.md as a table. A module belongs to the row with the longest
matching name; it may import what its row names, at that name or below. A module that no row covers fails, so a new
room needs a new row.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
HOUSES = ("unionfs", "layers")
GROUND_FLOOR = (
    *("unionfs.markers", "unionfs.syscalls", "unionfs.trees", "unionfs.id_ranges", "unionfs.posix_acl"),
    *("unionfs.compiled", "unionfs.standard_descriptors", "unionfs.output_file", "unionfs.printable"),
    "unionfs.log_lines",
    *("unionfs.store_files", "unionfs.write_all", "unionfs.detach", "unionfs.partial_record"),
)
CORE_DOOR = tuple(
    f"unionfs.core.{name}"
    for name in (
        *("union", "view", "attrs", "ledger", "options", "node_record", "takeover", "branches", "pointers", "freeze"),
        *("partial", "fill", "kept_numbers", "frozen_names", "unfinished_change", "recorded_node"),
        "recorded_entry",
    )
)

MAX_LINES = 600
REFUSED_FILES = ("utils.py", "util.py", "helpers.py", "common.py", "misc.py")
REFUSED_WORDS = re.compile(r"promot(?:e|ed|ion)|\bcow\b|\bcow_|_cow\b")  # the word is copy-up (see the glossary)


class Row(NamedTuple):
    """What a room may import: of ours, and from outside of the standard library."""

    ours: tuple[str, ...]
    outside: tuple[str, ...] = ()
    not_even: tuple[str, ...] = ()  # of ours or of the standard library, though the rest would allow it


FACES = {
    "unionfs": Row(("unionfs.api", "unionfs.compiled", "unionfs.core.options", "unionfs.fuse.mounting")),
    "layers": Row(("layers.api", "layers.errors", "unionfs.compiled")),
}
"""The doors that are more than a docstring: the public faces (docs/library.md), which import late what they name."""

ALLOWED = {
    "unionfs.markers": Row(()),
    "unionfs.partial_record": Row(()),
    "unionfs.compiled": Row((), ("xxhash",)),
    "unionfs.standard_descriptors": Row(()),
    "unionfs.output_file": Row(()),
    "unionfs.printable": Row(()),
    "unionfs.store_files": Row(("unionfs.syscalls",)),
    "unionfs.write_all": Row((), ("_typeshed",)),
    "unionfs.detach": Row(("unionfs.store_files",)),
    "unionfs.log_lines": Row(("unionfs.printable",)),
    "unionfs.id_ranges": Row(()),
    "unionfs.posix_acl": Row(()),
    "unionfs.syscalls": Row(("unionfs.syscalls",)),
    "unionfs.trees": Row(("unionfs.markers", "unionfs.syscalls", "unionfs.trees")),
    "unionfs.core": Row(
        (*GROUND_FLOOR, "unionfs.core"), ("xxhash",), not_even=("argparse", "logging.handlers", "threading", "asyncio")
    ),
    "unionfs.fuse": Row(
        (*GROUND_FLOOR, *CORE_DOOR, "unionfs.fuse"),
        not_even=("argparse", "unionfs.fuse.kernel", "unionfs.fuse.via_pyfuse3"),
    ),
    "unionfs.fuse.kernel": Row(
        (*GROUND_FLOOR, *CORE_DOOR, "unionfs.fuse"), not_even=("argparse", "unionfs.fuse.via_pyfuse3")
    ),
    "unionfs.fuse.via_pyfuse3": Row(
        (*GROUND_FLOOR, *CORE_DOOR, "unionfs.fuse"), ("trio", "pyfuse3"), not_even=("argparse", "unionfs.fuse.kernel")
    ),
    "unionfs.fuse.pyfuse3_attributes": Row(CORE_DOOR, ("pyfuse3",)),
    "unionfs.control": Row((*GROUND_FLOOR, *CORE_DOOR, "unionfs.control", "unionfs.fuse"), not_even=("argparse",)),
    "unionfs.daemon": Row(()),
    "unionfs.changes": Row((*GROUND_FLOOR, "unionfs.changes"), ("xxhash",), not_even=("argparse",)),
    "unionfs.snapshotter": Row(
        (
            *(*GROUND_FLOOR, "unionfs.changes", "unionfs.snapshotter"),
            *("unionfs.core.complete", "unionfs.core.options"),
        ),
        ("grpc", "google"),
        not_even=("argparse",),
    ),
    "unionfs.launcher": Row((*GROUND_FLOOR, "unionfs.launcher"), not_even=("argparse",)),
    "unionfs.version": Row(("unionfs.compiled",)),
    **{f"unionfs.mount_parent.{name}": Row(("unionfs.mount_parent",)) for name in ("identity", "messages", "client")},
    "unionfs.mount_parent": Row(
        (
            *(*GROUND_FLOOR, *CORE_DOOR, "unionfs.mount_parent", "unionfs.daemon.process", "unionfs.fuse"),
            *("unionfs.daemon.options", "unionfs.daemon.mounted_union", "unionfs.daemon.start"),
            *("unionfs.daemon.continued", "unionfs.daemon.keeper_process", "unionfs.process_properties"),
        ),
        not_even=("argparse",),
    ),
    "unionfs.process_properties": Row((*GROUND_FLOOR, "unionfs.mount_parent.client")),
    "unionfs.daemon.options": Row(
        ("unionfs.core.options", "unionfs.fuse.keeper_channel", "unionfs.fuse.mounting", "unionfs.fuse.options")
    ),
    "unionfs.daemon.start": Row(
        ("unionfs.daemon.process", "unionfs.daemon.options", "unionfs.fuse.mounting", "unionfs.mount_parent.client")
    ),
    "unionfs.daemon.mounted_union": Row(
        (*GROUND_FLOOR, *CORE_DOOR, "unionfs.control", "unionfs.daemon.options", "unionfs.fuse", "unionfs.version"),
        not_even=("argparse",),
    ),
    "unionfs.daemon.state": Row(
        (
            *(*GROUND_FLOOR, *CORE_DOOR, "unionfs.core.handover", "unionfs.core.owners"),
            *(
                "unionfs.daemon.options",
                "unionfs.daemon.mounted_union",
                "unionfs.fuse",
                "unionfs.mount_parent.identity",
            ),
        ),
        not_even=("argparse",),
    ),
    "unionfs.daemon.keeper_process": Row(
        (
            *(*GROUND_FLOOR, *CORE_DOOR, "unionfs.daemon.mounted_union", "unionfs.daemon.state", "unionfs.fuse"),
            *("unionfs.control.listening", "unionfs.core.handover", "unionfs.process_properties", "unionfs.version"),
        ),
        not_even=("argparse",),
    ),
    "unionfs.daemon.continued": Row(
        (
            *(
                *GROUND_FLOOR,
                *CORE_DOOR,
                "unionfs.core.handover",
                "unionfs.daemon.mounted_union",
                "unionfs.daemon.state",
            ),
            *("unionfs.fuse", "unionfs.mount_parent.identity"),
        ),
        not_even=("argparse",),
    ),
    "unionfs.daemon.process": Row(
        (
            *(*GROUND_FLOOR, "unionfs.core", "unionfs.daemon.options", "unionfs.daemon.mounted_union"),
            *(
                "unionfs.control.listening",
                "unionfs.daemon.keeper_process",
                "unionfs.fuse",
                "unionfs.mount_parent.client",
            ),
        ),
        not_even=("argparse",),
    ),
    "unionfs.daemon.upgrade": Row(
        (
            *(*GROUND_FLOOR, *CORE_DOOR, "unionfs.daemon.continued", "unionfs.daemon.keeper_process"),
            *("unionfs.daemon.mounted_union", "unionfs.daemon.state", "unionfs.fuse"),
        ),
        not_even=("argparse",),
    ),
    "unionfs.upgrade_entry": Row(("unionfs.compiled", "unionfs.daemon.upgrade")),
    "unionfs.api": Row(
        (
            *(*GROUND_FLOOR, *CORE_DOOR, "unionfs.api", "unionfs.changes"),
            *("unionfs.daemon.options", "unionfs.daemon.start"),
            *("unionfs.fuse.mounting", "unionfs.fuse.unmounting", "unionfs.control.client", "unionfs.fuse.options"),
        ),
        ("_typeshed",),
        not_even=("argparse",),
    ),
    "unionfs.drivers": Row(
        (
            *(*GROUND_FLOOR, "unionfs.drivers", "unionfs.changes"),
            *("unionfs.core.options", "unionfs.daemon.options", "unionfs.daemon.start", "unionfs.mount_parent.client"),
            *("unionfs.fuse.mounting", "unionfs.fuse.options"),
        ),
        not_even=("argparse",),
    ),
    "unionfs.oci": Row(
        (
            *(*GROUND_FLOOR, "unionfs.oci", "unionfs.launcher", "unionfs.core.options"),
            *("unionfs.daemon.options", "unionfs.daemon.start", "unionfs.fuse.mounting"),
        ),
        not_even=("argparse",),
    ),
    "unionfs.doctor": Row(
        (
            *GROUND_FLOOR,
            "unionfs.doctor",
            "unionfs.launcher",
            "unionfs.drivers",
            "unionfs.fuse",
            "unionfs.containers",
        ),
        not_even=("argparse",),
    ),
    "unionfs.containers": Row(
        (
            *(*GROUND_FLOOR, "unionfs.containers", "unionfs.changes", "unionfs.drivers", "unionfs.launcher", "layers"),
            *(
                "unionfs.core.options",
                "unionfs.core.owners",
                "unionfs.core.attrs",
                "unionfs.core.complete",
                "unionfs.core.copydata",
                "unionfs.core.freeze",
                "unionfs.core.frozen_names",
                "unionfs.core.hardlinks",
                "unionfs.core.pointers",
                "unionfs.core.union",
                "unionfs.control.branch_client",
                "unionfs.fuse.options",
                "unionfs.mount_parent.client",
            ),
        ),
        ("trio", "yaml"),
        not_even=("argparse", "layers.cli"),
    ),
    "unionfs.build": Row(
        (
            *(*GROUND_FLOOR, "unionfs.build", "unionfs.containers", "unionfs.launcher", "layers"),
            *(
                "unionfs.drivers.names",
                "unionfs.core.complete",
                "unionfs.core.hardlinks",
                "unionfs.mount_parent.client",
            ),
        ),
        ("trio",),
        not_even=("argparse", "layers.cli"),
    ),
    "unionfs.bench": Row(
        (
            *(*GROUND_FLOOR, "unionfs.bench", "unionfs.drivers.device_tools", "unionfs.drivers.driver"),
            "unionfs.drivers.thin_pool",
        ),
        ("rich", "matplotlib"),
        not_even=("argparse",),
    ),
    "unionfs.profiles": Row(
        (*GROUND_FLOOR, "unionfs.profiles", "layers.screen.page_assets", "layers.cli.showing"), not_even=("argparse",)
    ),
    "unionfs.cli": Row(HOUSES, ("rich", "trio", "grpc", "google", "shtab")),
    "unionfs.__main__": Row(
        (
            *(*GROUND_FLOOR, "unionfs.version", "unionfs.cli", "unionfs.mount_parent.client"),
            "unionfs.launcher.own_executable",
        )
    ),
    "layers": Row((*GROUND_FLOOR, "layers"), ("trio", "httpx", "zstandard", "xxhash"), not_even=("argparse",)),
    "layers.explore": Row((*GROUND_FLOOR, "layers"), ("xxhash",), not_even=("argparse", "layers.cli")),
    "layers.cli": Row((*GROUND_FLOOR, "layers"), ("trio", "rich")),
    "layers.screen": Row((*GROUND_FLOOR, "layers"), ("rich", "textual")),
    "layers.__main__": Row(("layers.cli",)),
}


class Module(NamedTuple):
    """A source file of ours, parsed."""

    name: str
    path: Path
    tree: ast.Module


def _modules(*tops: str) -> list[Module]:
    found = []
    for path in sorted(path for top in tops for path in (ROOT / top).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(name, path, ast.parse(path.read_bytes(), path)))
    return found


HOUSE_MODULES = _modules(*HOUSES)
ALL_MODULES = [*HOUSE_MODULES, *_modules("tests", "benchmarks")]


def _is_within(name: str, tops: tuple[str, ...]) -> bool:
    return any(name == top or name.startswith(top + ".") for top in tops)


def _row_of(name: str) -> Row | None:
    covering = [top for top in ALLOWED if _is_within(name, (top,))]
    return ALLOWED[max(covering, key=len)] if covering else None


def _imports(module: Module) -> Iterator[tuple[int, str]]:
    """Each imported module with its line, also inside functions and TYPE_CHECKING blocks."""
    known = {other.name for other in HOUSE_MODULES}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.path}:{node.lineno}: a relative import"
            assert node.module is not None
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                yield node.lineno, below if below in known else node.module


def _is_refused(name: str, importer: str, row: Row) -> bool:
    if _is_within(name, row.not_even) and not _is_within(importer, row.not_even):
        return True
    top = name.partition(".")[0]
    if top in HOUSES:
        return not _is_within(name, row.ours)
    return top not in sys.stdlib_module_names and not _is_within(name, row.outside)


def test_imports_go_in_the_allowed_direction() -> None:
    refused = []
    for module in HOUSE_MODULES:
        row = FACES.get(module.name, Row(())) if module.name in HOUSES else _row_of(module.name)
        assert row is not None, f"{module.name} is in no room: give it a row in ALLOWED"
        for line, name in _imports(module):
            if _is_refused(name, module.name, row):
                refused.append(f"{module.path}:{line}: {name}")
    assert refused == []


def _run_time_imports(module: Module) -> set[str]:
    """The modules of ours that `module` imports when it runs, also from within functions. Not what stands under `if
    TYPE_CHECKING`: names of types alone bind no module to another when either is read or replaced."""
    for_types = [
        node
        for node in ast.walk(module.tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    lines = {line for block in for_types for line in range(block.lineno, (block.body[-1].end_lineno or 0) + 1)}
    known = {other.name for other in HOUSE_MODULES}
    return {name for line, name in _imports(module) if line not in lines and name in known and name != module.name}


def _circle(imports: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, the first one again at the end; empty when there is no circle."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert _circle({module.name: _run_time_imports(module) for module in HOUSE_MODULES}) == []


NO_MODULES = ("fuse.unionfs",)  # the type of our filesystem in the mount table
FILE_ENDINGS = ("h", "json", "log", "md", "py", "rst", "toml")
ROOMS = {name.split(".")[1] for name in ALLOWED if name.startswith("unionfs.")}
DOTTED = re.compile(r"(?<![\w./@-])[a-z_]\w*(?:\.[A-Za-z_]\w*)+(?![\w/-])")


def _dangling(text: str) -> Iterator[str]:
    """The names in `text` like `core.copyup`, `unionfs.core.copyup` or `core.options.Options` of which no module, or
    nothing in the module, is there."""
    for name in DOTTED.findall(text):
        if name in NO_MODULES:
            continue
        parts = name.split(".")
        if parts[0] in ROOMS and parts[-1] not in FILE_ENDINGS:
            parts.insert(0, "unionfs")
        elif parts[0] not in HOUSES or parts[-1] in FILE_ENDINGS:
            continue
        known = [size for size in range(len(parts), 0, -1) if ".".join(parts[:size]) in BY_NAME]
        rest = parts[known[0] :]
        if rest and not _defines(BY_NAME[".".join(parts[: known[0]])], rest[0]):
            yield name


def _defines(module: Module, name: str) -> bool:
    if module.name in HOUSES:  # a public face makes its names on demand
        return bool(re.search(rf"\b{name}\b", module.path.read_text()))
    if module.path.name == "__init__.py":
        return False
    for node in module.tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return True
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return True
    return False


BY_NAME = {module.name: module for module in HOUSE_MODULES}


def test_names_of_modules_in_comments_and_documents_exist() -> None:
    dangling = [f"{path}: {name}" for path in _documents() for name in _dangling(path.read_text())]
    for module in HOUSE_MODULES:
        for token in tokenize.generate_tokens(io.StringIO(module.path.read_text()).readline):
            if token.type == tokenize.COMMENT or token.string.startswith('"""'):
                dangling += [f"{module.path}:{token.start[0]}: {name}" for name in _dangling(token.string)]
    assert dangling == []


def _documents() -> list[Path]:
    return [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks/README.md"]


def test_every_file_is_small_enough_to_read() -> None:
    sizes = {str(module.path): len(module.path.read_bytes().splitlines()) for module in ALL_MODULES}
    assert {path: size for path, size in sizes.items() if size > MAX_LINES} == {}


def test_every_module_has_a_docstring() -> None:
    assert [str(module.path) for module in ALL_MODULES if not ast.get_docstring(module.tree)] == []


def test_a_package_door_is_only_a_docstring() -> None:
    doors = [module for module in ALL_MODULES if module.path.name == "__init__.py" and module.name not in FACES]
    assert [str(door.path) for door in doors if len(door.tree.body) != 1] == []


def test_no_file_is_a_drawer_for_everything() -> None:
    assert [str(module.path) for module in ALL_MODULES if module.path.name in REFUSED_FILES] == []


def test_one_word_for_one_thing() -> None:
    refused = []
    for module in HOUSE_MODULES:
        lines = enumerate(module.path.read_text().splitlines(), 1)
        refused += [
            f"{module.path}:{number}: {line.strip()}"
            for number, line in lines
            if REFUSED_WORDS.search(line) and "unionfs-fuse's word" not in line
        ]
    assert refused == []


def _modules_on_the_map() -> dict[str, set[str]]:
    """Package -> its modules in the map of ARCHITECTURE.md, whose lines are `PACKAGE/   TEXT` and `MODULE   TEXT`."""
    found: dict[str, set[str]] = {}
    packages: list[tuple[int, str]] = []
    page = (ROOT / "ARCHITECTURE.md").read_text()
    for line in page.partition("## Packages and modules")[2].partition("\n## ")[0].splitlines():
        indent = len(line) - len(line.lstrip())
        packages = [pair for pair in packages if pair[0] < indent]
        if package := re.match(r"([a-z_/]+)/(?:\s|$)", line.strip()):
            packages.append((indent, package[1].replace("/", ".")))
        elif packages and (module := re.match(r"([a-z_0-9]+)\s{3}", line.strip())):
            found.setdefault(".".join(name for _, name in packages), set()).add(module[1])
    return found


def test_the_map_names_all_modules() -> None:
    listed = _modules_on_the_map()
    assert {"unionfs.core", "unionfs.fuse.kernel", "unionfs.containers", "layers"} <= set(listed)
    for package, names in listed.items():
        files = (ROOT / package.replace(".", "/")).glob("*.py")
        existing = {path.stem for path in files if not path.stem.startswith("__")}
        assert names - existing == set(), f"{package}: ARCHITECTURE.md names modules that do not exist"
        assert existing - names <= {"errors", "entry", "progress"}, f"{package}: ARCHITECTURE.md does not name these"


def test_the_checks_refuse_forbidden_imports() -> None:
    core, kernel = ALLOWED["unionfs.core"], ALLOWED["unionfs.fuse.kernel"]
    assert _is_refused("trio", "unionfs.core.copyup", core)
    assert _is_refused("unionfs.fuse.errors", "unionfs.core.copyup", core)
    assert not _is_refused("unionfs.markers", "unionfs.core.copyup", core)
    assert _is_refused("unionfs.fuse.via_pyfuse3", "unionfs.fuse.kernel.server", kernel)
    assert _is_refused("unionfs.core.node", "unionfs.fuse.kernel.dispatch", kernel)
    assert _is_refused("trio", "unionfs.fuse.kernel.server", kernel)
    assert not _is_refused("unionfs.core.union", "unionfs.fuse.kernel.dispatch", kernel)
    assert _row_of("unionfs.fuse.kernel.server") is kernel
    assert _row_of("unionfs.attic") is None
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) != []
    assert _circle({"a": {"b", "c"}, "b": {"c"}}) == []
    union = _run_time_imports(BY_NAME["unionfs.core.union"])
    assert "unionfs.core.union_state" in union
    handlers = _run_time_imports(BY_NAME["unionfs.fuse.kernel.handlers"])
    assert "unionfs.fuse.kernel.dispatch" not in handlers, "it is imported for types only"
    assert "unionfs.fuse.watching" in _run_time_imports(BY_NAME["unionfs.daemon.process"]), "in a function"
    text = "see core.attic, `unionfs.core.copyup.ensure`, unionfs.fuse.attic, core.copyup.attic, fuse.h, layers.tree"
    assert list(_dangling(text)) == ["core.attic", "unionfs.fuse.attic", "core.copyup.attic"]

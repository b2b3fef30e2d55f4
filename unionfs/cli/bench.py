"""`unionfs bench`: measure the cost of copy-up on this machine, on several union filesystems."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from unionfs.bench import cases, copyup, filesystems, markdown, page, plots, summary, systems, table
from unionfs.bench.cases import RunSize, Series
from unionfs.bench.child import FailedError
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import USAGE, CommandError, failed

_DESCRIPTION: Final = """\
Measure the cost of the first write to a file of a lower, by file size, operation, depth, layers, number of
files, holes and hard links, on ext4, xfs, btrfs and tmpfs, warm and cold: ours beside fuse-overlayfs, unionfs-fuse, the
kernel's overlayfs, btrfs snapshots, reflinks and plain copies. Systems that this machine lacks are listed and left out;
root can measure most of them. All mounts and files are removed at the end, also after Ctrl-C."""

_EPILOG: Final = f"""\
series:   {", ".join(one.name for one in cases.all_series(cases.FULL))}
systems:  {", ".join(name.replace(" ", "-").replace(",", "") for name in systems.SYSTEMS)}
filesystems: {", ".join(filesystems.FILESYSTEMS)} (here: where --dir is)

--json prints one object: format, machine, versions, grounds, rounds, seconds, systems, series (each with points, each
with the figures of each system: median, least, most and values in nanoseconds, again: the second write, bytes:
bytes written, resident: the share found in the page cache), left_out (series, system, why), order.

examples:
  unionfs bench copyup --quick
  unionfs bench copyup --json > run.json; unionfs bench copyup --from run.json --report run.html
  unionfs bench copyup --only size-ext4,storm --systems ours,fuse-overlayfs,copy --rounds 9"""

_SIZE_UNITS: Final = {"k": cases.KB, "m": cases.MB, "g": cases.GB}


def main(argv: list[str]) -> int:
    """Run `unionfs bench ARGV`."""
    arguments = _parser().parse(argv)
    _check_outputs(arguments)  # reported before the measurement, which takes minutes
    found = _read(arguments.from_) if arguments.from_ else _measure(arguments)
    if arguments.json:
        print(json.dumps(found))
    else:
        table.show(found)
    _write(found, arguments)
    return 0


def _parser() -> Parser:
    parser = Parser("bench", _DESCRIPTION, _EPILOG)
    add = parser.add_argument
    add("what", choices=["copyup"], help="what to measure")
    add("--quick", action="store_true", help="smaller files and fewer rounds, in under a minute")
    add("--only", metavar="SERIES,...", type=_words, help="only these series")
    add("--systems", metavar="NAME,...", type=_words, help="only these systems")
    add("--on", metavar="FS,...", type=_words, help="filesystems of the branches; most series run on the first")
    add("--rounds", metavar="N", type=_positive, help="maximum number of rounds (default: 5)")
    add(
        "--minutes",
        metavar="M",
        type=_duration,
        help="stop after M minutes (default: 9), but not before the first round is complete",
    )
    add("--max-size", metavar="SIZE", type=_size, help="largest file, such as 64k, 16M, 1G")
    add("--max-files", metavar="N", type=_positive, help="maximum number of files, links, layers and directories")
    add(
        "--timeout",
        metavar="SECONDS",
        type=_duration,
        default=90.0,
        help="limit of one session of one system (default: 90)",
    )
    add("--dir", metavar="DIR", help="the directory of temporary files (default: /var/tmp)")
    add("--json", action="store_true", help="print JSON instead of tables")
    add("--report", metavar="FILE", help="write one HTML file with pictures and tables (needs matplotlib)")
    add("--plots", metavar="DIR", help="write each picture as PNG and SVG (needs matplotlib)")
    add("--markdown", metavar="FILE", help="write figures and claims between the marker lines of FILE")
    add("--from", dest="from_", metavar="FILE", help="measure nothing; read the output of an earlier --json")
    return parser


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    choice = _choice(arguments)
    heeded = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) != signal.SIG_IGN]  # nohup(1)
    before = {one: signal.signal(one, signal.default_int_handler) for one in heeded}
    progress = table.progress if sys.stderr.isatty() else (lambda _: None)
    try:
        result = copyup.run(choice, progress)
    except FailedError as why:
        raise CommandError(
            failed("bench", None, str(why)), hint="unionfs doctor says what this machine lacks"
        ) from None
    except OSError as error:
        raise CommandError.of("bench", error) from error
    except KeyboardInterrupt:
        print("\nstopped; nothing is left mounted", file=sys.stderr)
        raise
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)
    if not result.samples:
        reasons = dict.fromkeys(f"{one['system']}: {one['why']}" for one in result.left_out)
        raise CommandError(failed("bench", None, "nothing could be measured"), hint="\n".join(reasons))
    return summary.summary(result, choice)


def _choice(arguments: argparse.Namespace) -> copyup.Choice:
    run_size = cases.QUICK if arguments.quick else cases.FULL
    if arguments.rounds:
        run_size = dataclasses.replace(run_size, rounds=arguments.rounds)
    if arguments.minutes:
        run_size = dataclasses.replace(run_size, minutes=arguments.minutes)
    if arguments.on:
        run_size = dataclasses.replace(
            run_size, filesystems=_known(arguments.on, filesystems.FILESYSTEMS, "filesystem")
        )
    run_size = _limited(run_size, arguments.max_size, arguments.max_files)
    chosen = list(systems.SYSTEMS)
    if arguments.systems:
        by_flag = {name.replace(" ", "-").replace(",", ""): name for name in systems.SYSTEMS}
        by_flag |= {name: name for name in systems.SYSTEMS}
        chosen = [by_flag[name] for name in _known(arguments.systems, list(by_flag), "system")]
    series: list[Series] = cases.all_series(run_size)
    if arguments.only:
        known = [one.name for one in series]
        wanted = _known(arguments.only, known, "series")
        series = [one for one in series if one.name in wanted]
    return copyup.Choice(run_size, series, chosen, arguments.timeout, arguments.dir)


def _limited(run_size: RunSize, size: int | None, files: int | None) -> RunSize:
    if size is not None:
        run_size = dataclasses.replace(
            run_size,
            sizes=[one for one in run_size.sizes if one <= size] or [size],
            sparse=[one for one in run_size.sparse if one <= size] or [max(size, 8 * cases.KB)],
            triggers_size=min(run_size.triggers_size, size),
            shared_size=min(run_size.shared_size, size),
            part_size=min(run_size.part_size, size),
            large_size=min(run_size.large_size, size),
        )
    if files is not None:
        run_size = dataclasses.replace(
            run_size,
            storm=[one for one in run_size.storm if one <= files] or [files],
            links=[one for one in run_size.links if one <= files] or [files],
            layers=[one for one in run_size.layers if one <= files] or [files],
            depths=[one for one in run_size.depths if one <= files] or [files],
            large_files=[one for one in run_size.large_files if one <= files] or [files],
        )
    return run_size


def _known(wanted: Sequence[str], known: Sequence[str], what: str) -> list[str]:
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise CommandError(
            f"bench: unknown {what}: {', '.join(unknown)}", hint=f"there are: {', '.join(known)}", status=USAGE
        )
    return list(wanted)


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        if found["what"] != "copyup" or found["format"] != summary.FORMAT:
            raise ValueError("made by another version")
    except OSError as error:
        raise CommandError.of("reading the figures", error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(failed("reading the figures", path, f"not what --json prints: {error}")) from error
    assert isinstance(found, dict)
    return found


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Raises: CommandError if an output file cannot be written after the measurement."""
    try:
        if arguments.report or arguments.plots:
            plots.check()
        if arguments.report:
            with open(arguments.report, "a", encoding="utf-8"):
                pass
        if arguments.plots:
            os.makedirs(arguments.plots, exist_ok=True)
        if arguments.markdown:
            markdown.check(Path(arguments.markdown))
    except plots.NoMatplotlibError as why:
        raise CommandError(failed("bench", None, str(why)), hint="pip install 'unionfs[bench]'") from None
    except markdown.NoMarkersError as why:
        raise CommandError(failed("writing the figures", arguments.markdown, str(why))) from None
    except OSError as error:
        raise CommandError.of("writing the report", error) from error


def _write(found: dict[str, Any], arguments: argparse.Namespace) -> None:
    try:
        if arguments.plots:
            for path in plots.draw(found, Path(arguments.plots)):
                print(os.fspath(path), file=sys.stderr)
        if arguments.report:
            Path(arguments.report).write_text(page.page(found), encoding="utf-8")
            print(arguments.report, file=sys.stderr)
        if arguments.markdown:
            markdown.write_between_markers(Path(arguments.markdown), markdown.text(found))
    except OSError as error:
        raise CommandError.of("writing the report", error) from error


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _duration(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError(text)
    return number


def _size(text: str) -> int:
    factor = _SIZE_UNITS.get(text[-1:].lower(), 1)
    return _positive(text.rstrip("kKmMgG")) * factor

"""Print, at the end of a run, the number of tests by transport and user, the reasons of skips and expected failures,
and the time of each directory.

A test belongs to a transport and a user by its parameters `transport` and `user`, else by the markers
`transport(name)` and `runs_as(kind)`, else by using the fixture `ordinary_user`.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict

import pytest
from _pytest.terminal import TerminalReporter

_KEY = "unionfs-report"
_NO_MOUNT = "no mount"

_COLUMN_OF = {
    "passed": "passed",
    "failed": "failed",
    "xpassed": "failed",  # xfail_strict makes it a failure; otherwise it counts as a wrong expectation
    "error": "failed",
    "xfailed": "xfailed",
    "skipped": "skipped",
}
"""pytest's categories, and the column in which we count them."""
_COLUMNS = tuple(dict.fromkeys(_COLUMN_OF.values()))
_WITH_REASON = ("xfailed", "skipped")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "transport(name): the transport on which the test runs")
    config.addinivalue_line("markers", "runs_as(kind): root or ordinary, the user whose commands the test runs")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.user_properties.append((_KEY, (_transport_of(item), _user_of(item))))


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Write the tables."""
    _tell_times(terminalreporter)
    counts: Counter[tuple[tuple[str, str], str]] = Counter()
    reasons: Counter[tuple[str, str]] = Counter()
    for category, column in _COLUMN_OF.items():
        for report in terminalreporter.stats.get(category, []):
            row = dict(getattr(report, "user_properties", ())).get(_KEY)
            if row is None:
                continue
            counts[tuple(row), column] += 1
            if column in _WITH_REASON:
                reasons[column, _reason(report)] += 1
    if not counts:
        return
    terminalreporter.section("tests by transport and user")
    terminalreporter.write_line(f"{'transport':<12}{'as':<12}" + "".join(f"{column:>10}" for column in _COLUMNS))
    for row in sorted({row for row, _ in counts}):
        line = f"{row[0]:<12}{row[1]:<12}" + "".join(f"{counts[row, column]:>10}" for column in _COLUMNS)
        terminalreporter.write_line(line)
    for (column, reason), count in reasons.most_common():
        terminalreporter.write_line(f"{column} {count}: {reason}")


def _tell_times(terminalreporter: TerminalReporter) -> None:
    """Seconds by directory, the longest first. Workers run at the same time: the sum is longer than the run."""
    seconds: defaultdict[str, float] = defaultdict(float)
    tests: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                directory = report.nodeid.partition("::")[0].rpartition("/")[0]
                seconds[directory] += report.duration
                tests[directory] += report.when == "call"
    if len(seconds) < 2:
        return
    terminalreporter.section("time by directory")
    terminalreporter.write_line(f"{'directory':<24}{'tests':>8}{'seconds':>10}")
    for directory, took in sorted(seconds.items(), key=lambda one: -one[1]):
        terminalreporter.write_line(f"{directory or '.':<24}{tests[directory]:>8}{took:>10.1f}")


def _reason(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return report.wasxfail.removeprefix("reason: ")
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def _transport_of(item: pytest.Item) -> str:
    return _parameter(item, "transport") or _marker(item, "transport") or _NO_MOUNT


def _user_of(item: pytest.Item) -> str:
    named = _parameter(item, "user") or _marker(item, "runs_as")
    if named:
        return named
    uses_ordinary = "ordinary_user" in getattr(item, "fixturenames", ())
    return "ordinary" if uses_ordinary or os.geteuid() != 0 else "root"


def _parameter(item: pytest.Item, name: str) -> str | None:
    callspec = getattr(item, "callspec", None)
    value = callspec.params.get(name) if callspec else None
    return value if isinstance(value, str) else None


def _marker(item: pytest.Item, name: str) -> str | None:
    marker = item.get_closest_marker(name)
    return str(marker.args[0]) if marker else None

"""`.ci/run`: failed tests are repeated once, those that pass then are named, and more than three of them are a failure.
`.ci/run --cluster` and `.ci/run --guests` run the tests of those jobs alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import process
from tests.support.users import CHECKOUT

_TESTS = """
import pathlib, pytest
@pytest.mark.parametrize("number", range({flaky}))
def test_flaky(number):
    seen = pathlib.Path(f"seen{{number}}")
    try:
        assert seen.exists()
    finally:
        seen.touch()
@pytest.mark.parametrize("number", range({broken}))
def test_broken(number): assert 0
def test_good(): pass
"""


def _run(where: Path, *, flaky: int = 0, broken: int = 0) -> subprocess.CompletedProcess[str]:
    (where / ".ci").mkdir()
    shutil.copy(CHECKOUT / ".ci/run", where / ".ci/run")
    (where / "Makefile").write_text(f"check:\ntest:\n\t@{sys.executable} -m pytest -rfE -c pytest.ini $(ARGS)\n")
    (where / "pytest.ini").write_text("[pytest]\n")
    (where / "test_it.py").write_text(_TESTS.format(flaky=flaky, broken=broken))
    return process.run([where / ".ci/run"], check=False)


def test_the_first_try_is_enough(tmp_path: Path) -> None:
    done = _run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "flaky" not in done.stdout
    assert " 1 passed" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(("flaky", "code"), [(1, 0), (3, 0), (4, 1)])
def test_tests_that_pass_only_when_repeated_are_named(tmp_path: Path, flaky: int, code: int) -> None:
    done = _run(tmp_path, flaky=flaky)
    told = [line for line in done.stdout.splitlines() if line.startswith("flaky: ")]
    assert told == [f"flaky: test_it.py::test_flaky[{number}]" for number in range(flaky)]
    assert done.returncode == code
    assert f" {flaky} passed" in done.stdout.splitlines()[-1]


def test_what_fails_twice_has_failed(tmp_path: Path) -> None:
    done = _run(tmp_path, flaky=1, broken=1)
    assert done.returncode == 1
    assert "flaky: test_it.py::test_flaky[0]\n" in done.stdout
    assert "flaky: test_it.py::test_broken" not in done.stdout
    assert "1 failed, 1 passed" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("job", ["cluster", "guests"])
def test_a_job_beside_the_tests(tmp_path: Path, job: str) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(CHECKOUT / ".ci/run", tmp_path / ".ci/run")
    (tmp_path / "Makefile").write_text(f"test-{job}:\n\t@echo {job}; exit 3\n")
    done = process.run([tmp_path / ".ci/run", f"--{job}"], check=False)
    assert (done.returncode, done.stdout.splitlines()) == (2, [job])
    assert f"- run: .ci/run --{job}\n" in (CHECKOUT / ".github/workflows/ci.yml").read_text()

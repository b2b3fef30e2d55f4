"""The packages that users install: a source archive that builds, and a wheel that mounts a union without a checkout.
Both are made from a clean copy of HEAD, without uncommitted changes.
"""

from __future__ import annotations

import email.message
import email.policy
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import process
from tests.support import scratch as scratch_dirs
from tests.support.mountinfo import mount_at
from tests.support.timing import limit
from tests.support.users import CHECKOUT, User
from unionfs import compiled

_BUILD_S = 500.0
"""Time limit of a step that downloads or compiles, on a loaded machine."""
pytestmark = pytest.mark.timeout(limit(4 * _BUILD_S))  # the first test waits for the builds


@dataclass(frozen=True, slots=True)
class Archives:
    """What `python -m build` makes."""

    sdist: Path
    wheel: Path  # built from the sdist, as Python only


@pytest.fixture(scope="module")
def directory(run_dir: Path) -> Iterator[Path]:
    """A directory that every user can enter."""
    made = Path(tempfile.mkdtemp(prefix="install-", dir=run_dir))
    made.chmod(0o755)
    yield made
    scratch_dirs.remove(made)


@pytest.fixture(scope="module")
def archives(directory: Path) -> Archives:
    """A source archive of HEAD, and a wheel of it, built with what pip finds for it."""
    if not (CHECKOUT / ".git").exists():
        pytest.skip("not a git checkout: there is no HEAD to build")
    source = directory / "source"
    source.mkdir()
    archive = subprocess.run(
        ["git", "-C", CHECKOUT, "archive", "HEAD"], stdout=subprocess.PIPE, check=True, timeout=limit(60)
    )
    subprocess.run(["tar", "-x", "-C", source], input=archive.stdout, check=True, timeout=limit(60))
    out = directory / "dist"
    _run([sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, source], directory)
    (sdist,) = out.iterdir()
    shutil.rmtree(source)
    _run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", out, sdist],
        directory,
        **{compiled.PURE: "1"},
    )
    (wheel,) = out.glob("*.whl")
    return Archives(sdist, wheel)


def _run(argv: Sequence[str | os.PathLike[str]], cwd: Path, **env: str) -> str:
    wanted = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", compiled.PURE)}
    wanted |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"} | env
    return process.run(argv, cwd=cwd, env=wanted, timeout_s=_BUILD_S).stdout


@pytest.fixture(scope="module")
def venv(archives: Archives, directory: Path) -> Path:
    """An environment in which the wheel is all that was asked for."""
    place = directory / "venv"
    _run([sys.executable, "-m", "venv", place], directory)
    _run([place / "bin/pip", "install", archives.wheel], directory)
    return place


class Installed:
    """The commands of an environment, called by a user who knows nothing of the checkout."""

    def __init__(self, venv: Path, user: User) -> None:
        self._bin = venv / "bin"
        self._user = user

    def run(self, name: str, *args: str | os.PathLike[str], check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `name ARGS` in the user's home."""
        return self._user.run(["env", "-u", "PYTHONPATH", self._bin / name, *args], check=check)


@pytest.fixture
def installed(venv: Path, ordinary_user: User) -> Installed:
    """For the ordinary user."""
    return Installed(venv, ordinary_user)


def _metadata(wheel: Path) -> email.message.EmailMessage:
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        text = opened.read(name)
    made = email.message_from_bytes(text, policy=email.policy.default)
    assert isinstance(made, email.message.EmailMessage)
    return made


def test_the_source_archive_has_the_files_of_a_checkout(archives: Archives) -> None:
    listed = process.run(["git", "-C", CHECKOUT, "ls-tree", "-r", "-z", "--name-only", "HEAD"]).stdout
    with tarfile.open(archives.sdist) as opened:
        found = {name.partition("/")[2] for name in opened.getnames()}
    assert set(filter(None, listed.split("\0"))) - found == set()


def test_the_wheel_has_the_packages_and_their_files(archives: Archives) -> None:
    with zipfile.ZipFile(archives.wheel) as opened:
        names = set(opened.namelist())
    modules = {
        str(path.relative_to(CHECKOUT)) for top in ("unionfs", "layers") for path in (CHECKOUT / top).rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == modules
    assert {"unionfs/py.typed", "layers/py.typed"} <= names
    data = {name.partition(".data/data/")[2] for name in names if ".data/data/" in name}
    assert data == {
        f"share/{path}"
        for name in ("unionfs", "layers")
        for path in (
            f"man/man1/{name}.1",
            f"bash-completion/completions/{name}",
            f"zsh/site-functions/_{name}",
            f"fish/vendor_completions.d/{name}.fish",
        )
    }


def test_the_base_needs_neither_compiler_nor_headers(archives: Archives) -> None:
    metadata = _metadata(archives.wheel)
    required = [text for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text]
    assert sorted(re.split(r"[<>=]", text)[0] for text in required) == [
        *("httpx", "pyyaml", "rich", "shtab", "trio", "xxhash", "zstandard")
    ]
    assert "pyfuse3" in metadata.get_all("Provides-Extra", [])
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("License-File") == ["LICENSE"]


@pytest.mark.usefixtures("fuse_device")
def test_an_ordinary_user_mounts_with_the_installed_program(
    installed: Installed, ordinary_user: User, scratch: Path
) -> None:
    lower, upper, merged = (scratch / name for name in ("lower", "upper", "merged"))
    for made in (lower, upper, merged):
        made.mkdir()
    (lower / "greeting").write_text("hello\n")
    (lower / "old").write_text("old\n")
    ordinary_user.own(scratch)
    installed.run("unionfs", "mount", "--lower", lower, "--upper", upper, merged)
    try:
        script = f"cd {merged}; cat greeting; echo more >>greeting; echo new >new; rm old; cat greeting"
        assert ordinary_user.run(["sh", "-ec", script]).stdout == "hello\nhello\nmore\n"
        assert "Python (installed without compiled modules)" in installed.run("unionfs", "stats", merged).stdout
    finally:
        installed.run("unionfs", "umount", merged)
    assert mount_at(merged) is None
    assert sorted(os.listdir(upper)) == [".wh.old", "greeting", "new"]
    assert (lower / "greeting").read_text() == "hello\n"


def test_the_version_and_the_kind_of_code_are_printed(installed: Installed, archives: Archives) -> None:
    said = installed.run("unionfs", "--version").stdout
    assert said == f"unionfs {_metadata(archives.wheel)['Version']}, Python (installed without compiled modules)\n"


def test_the_transport_of_an_extra_is_named_when_it_is_missing(
    installed: Installed, ordinary_user: User, scratch: Path
) -> None:
    (scratch / "merged").mkdir()
    ordinary_user.own(scratch)
    done = installed.run(
        *("unionfs", "mount", "--transport", "pyfuse3", "--lower", scratch, scratch / "merged"), check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "unionfs: transport pyfuse3 cannot be used: no Python module pyfuse3\n"
        "  pip install 'unionfs[pyfuse3]', or choose another --transport\n"
    )
    assert mount_at(scratch / "merged") is None
    told = installed.run("unionfs", "doctor", check=False).stdout
    assert "only --transport pyfuse3 needs it" in told
    assert "pip install 'unionfs[pyfuse3]'" in told


def test_both_commands_have_their_pages_and_completion(installed: Installed, venv: Path) -> None:
    for name in ("unionfs", "layers"):
        assert installed.run(name, "--help").stdout.startswith(f"usage: {name} VERB")
        page = (venv / f"share/man/man1/{name}.1").read_text()
        assert page == installed.run("unionfs", "man", name).stdout
        script = (venv / f"share/bash-completion/completions/{name}").read_text()
        assert script == installed.run("unionfs", "completion", "--command", name, "bash").stdout


def test_with_a_compiler_the_wheel_is_compiled(archives: Archives, directory: Path) -> None:
    """Some modules: that all of them can be compiled shows when a checkout is made ready, by the same script."""
    if os.environ.get(compiled.PURE):
        pytest.skip(f"{compiled.PURE} is set: nothing is compiled")
    (directory / "some").mkdir()
    subprocess.run(["tar", "-xf", archives.sdist, "-C", directory / "some"], check=True, timeout=limit(60))
    (source,) = (directory / "some").iterdir()
    script = source / ".build/setup.py"
    text, cut = re.subn(r'^(CORE|KERNEL) = """.*?"""', r'\1 = ""', script.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert cut == 2
    script.write_text(text)
    out = directory / "compiled"
    _run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, source],
        directory,
    )
    (made,) = out.glob("*.whl")
    assert not made.name.endswith("-none-any.whl")
    shutil.unpack_archive(made, out / "site", "zip")
    there = {str(path.relative_to(out / "site")) for path in (out / "site").rglob("*.so")}
    top = CHECKOUT / compiled.COMPILED_DIR
    rest = ("unionfs/core/", "unionfs/fuse/kernel/")
    assert there == {name for path in top.rglob("*.so") if not (name := str(path.relative_to(top))).startswith(rest)}
    loaded = "from unionfs.trees import open_beneath; print(open_beneath.__file__)"
    said = _run([sys.executable, "-c", loaded], out / "site", PYTHONPATH=os.fspath(out / "site"))
    assert said.strip() in {os.fspath(out / "site" / name) for name in there}
